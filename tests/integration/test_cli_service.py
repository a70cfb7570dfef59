"""The command line and a node against the real service, each a process of its own."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from demo.ports import free_port
from tests.integration.gate import gate
from tests.integration.leeward_process import (
    Done,
    Installation,
    installation,
    wait_for,
)

from leeward.cli.main import run

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def leeward() -> Iterator[Installation]:
    with installation() as made:
        service = made.serve()
        assert made.run("region", "create", "east").code == 0
        assert made.run("vault", "create", "default").code == 0
        yield made
        assert made.end(service) == 0, "SIGTERM ends it cleanly"


@pytest.fixture
def quick(
    leeward: Installation, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Quick:
    for name, value in leeward.environment.items():
        monkeypatch.setenv(name, value)
    return Quick(capsys)


class Quick:
    """Commands run in this process: a third of a second each is saved, and there are many."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def run(self, *arguments: str) -> Done:
        code = run(list(arguments))
        printed = self._capsys.readouterr()
        return Done(code, printed.out, printed.err)

    def ask(self, *arguments: str) -> Any:
        done = self.run(*arguments, "-o", "json")
        assert done.code == 0, done.err
        return done.json


def test_resources_are_made_listed_shown_and_deleted(quick: Quick) -> None:
    place = ("--region", "east", "--resource-group", "rg")
    assert quick.run("resource-group", "create", "rg", "--region", "east").code == 0
    made = quick.run(
        *("network", "create", "corp", *place, "--address-space", "10.10.0.0/16"),
        *("--subnet", "front=10.10.1.0/24", "--subnet", "back=10.10.2.0/24"),
    )
    assert made.out == "virtual network east/corp exists\n"
    assert quick.run("availability-set", "create", "east/as1", "-g", "rg").code == 0
    shown = quick.ask("network", "show", "east/corp")
    assert [subnet["name"] for subnet in shown["subnets"]] == ["front", "back"]
    assert [group["name"] for group in quick.ask("resource-group", "list")] == ["rg"]
    refused = quick.run("resource-group", "delete", "east/rg")
    assert refused.code == 4, "it holds a network"
    assert refused.err.count("\n") == 1
    assert quick.run("network", "delete", "east/corp").code == 0
    assert quick.run("availability-set", "delete", "east/as1").code == 0
    assert quick.run("resource-group", "delete", "east/rg").code == 0
    assert quick.ask("resource-group", "list") == []


def test_policies(quick: Quick) -> None:
    made = quick.run("policy", "create", "fast", "--cut-interval", "0.5", "--tier", "all:5m")
    assert made.code == 0, made.err
    shown = quick.ask("policy", "show", "fast")
    assert shown["cut_interval_seconds"] == 0.5
    assert shown["tiers"] == [{"every_seconds": 0, "for_seconds": 300}]
    assert quick.run("policy", "create", "fast", "--bandwidth", "5M").code == 0
    changed = quick.ask("policy", "show", "fast")
    assert changed["bandwidth"], "what is named is changed"
    assert {**changed, "bandwidth": []} == shown, "and nothing else: points would be dropped"
    assert {policy["name"] for policy in quick.ask("policy", "list")} == {"default", "fast"}
    assert quick.run("policy", "delete", "fast").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("vm", "show", "east/nobody"), 3, "nobody"),
        (("vm", "list", "--region", "nowhere"), 3, "nowhere"),
        (("vm", "show", "north/nobody"), 3, "there is no region north"),
        (("vm", "create", "north/v", "-g", "rg", "--disk", "d=sa,size=1M"), 3,
         "there is no region north"),
        (("protect", "east/nobody", "--to", "west"), 3, "west"),
        (("resource-group", "create", "Bad_Name", "--region", "east"), 2, "Bad_Name"),
        (("network", "create", "east/n", "-g", "nope", "--address-space", "10.0.0.0/16",
          "--subnet", "a=10.0.1.0/24"), 3, "nope"),
        (("item", "show", "nobody"), 3, "nobody"),
        (("job", "show", "job-nope"), 3, "job-nope"),
        (("recovery-point", "list", "nobody"), 3, "nobody"),
        (("failover", "nobody"), 3, "nobody"),
        (("vm", "create", "east/v", "-g", "rg", "--disk", "d=sa,size=lots"), 2, "lots"),
        (("recovery-plan", "create", "p", "--file", "/nope.toml"), 2, "cannot read /nope.toml"),
        (("vm", "show", ""), 2, "names nothing"),
        (("policy", "create", "p", "--app-consistent-every", "1s"), 2, "seconds: 1 is neither 0"),
        (("policy", "create", "p", "--bandwidth", "08:00-25:00=1M"), 2, "--bandwidth: '25:00'"),
    ],
)  # fmt: skip
def test_every_error_is_one_sentence_and_its_exit_code(
    quick: Quick, arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = quick.run(*arguments)
    assert (done.code, done.out) == (code, ""), done.err
    assert done.err.startswith("leeward: ")
    assert says in done.err
    assert done.err.count("\n") == 1


def test_wrong_token_is_not_allowed(
    quick: Quick, leeward: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEEWARD_URL", leeward.url)
    monkeypatch.setenv("LEEWARD_TOKEN", "wrong")
    done = quick.run("status")
    assert done.code == 6
    assert "token" in done.err


def test_missing_token_is_named(
    quick: Quick, leeward: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEEWARD_URL", leeward.url)
    monkeypatch.delenv("LEEWARD_TOKEN", raising=False)
    done = quick.run("status")
    assert done.code == 2
    assert "LEEWARD_TOKEN is not" in done.err


def test_unreachable_service_and_broken_configuration(quick: Quick, tmp_path: Path) -> None:
    (tmp_path / "client.toml").write_text('url = "http://127.0.0.1:1"\ntoken = "t"\n')
    away = quick.run("status", "--data-dir", str(tmp_path))
    assert away.code == 5
    assert "does not answer" in away.err
    (tmp_path / "client.toml").write_text("url = ")
    assert quick.run("status", "--data-dir", str(tmp_path)).code == 2
    (tmp_path / "client.toml").unlink()
    assert quick.run("status", "--data-dir", str(tmp_path)).code == 5
    (tmp_path / "leeward.toml").write_text("[service]\nprot = 1\n")
    broken = quick.run("serve", "--config", str(tmp_path / "leeward.toml"))
    assert broken.code == 2
    assert "prot" in broken.err


def test_port_taken_is_said_before_anything_is_touched(
    quick: Quick, leeward: Installation, tmp_path: Path
) -> None:
    done = quick.run("serve", "--data-dir", str(tmp_path / "other"))
    assert done.code == 5
    assert str(leeward.port) in done.err
    assert not (tmp_path / "other").exists()
    up = leeward.run("up", "--data-dir", str(tmp_path / "other"), "--port", str(leeward.port))
    assert up.code == 5
    assert "is taken" in up.err


def test_second_service_with_one_data_directory_is_refused(leeward: Installation) -> None:
    done = leeward.run("serve", LEEWARD_SERVICE__PORT="0")
    assert done.code in (2, 4), done.err
    assert done.err.count("\n") == 1


def test_node_without_a_token_is_refused(leeward: Installation, tmp_path: Path) -> None:
    done = leeward.run(
        *("worker", "--region", "east", "--name", "w9", "--service", leeward.url),
        *("--data-dir", str(tmp_path)),
    )
    assert done.code == 2
    assert "has no token" in done.err
    done = leeward.run(
        *("worker", "--region", "east", "--name", "w9", "--service", leeward.url),
        *("--data-dir", str(tmp_path), "--token-file", str(tmp_path / "nope")),
    )
    assert done.code == 2
    assert "there is no token file" in done.err


def test_life_of_a_node(leeward: Installation) -> None:
    token = leeward.ask("region", "token", "east")["token"]
    token_file = leeward.data / "token"
    token_file.write_text(token)
    arguments = ("worker", "--region", "east", "--name", "w1", "--service", leeward.url)
    worker = leeward.start(*arguments, "--token-file", str(token_file))
    wait_for(lambda: online(leeward) == {"w1"})
    assert not token_file.exists(), "a spent token is not kept"
    identity = leeward.data / "regions" / "east" / "worker" / "identity.json"
    assert identity.stat().st_mode & 0o777 == 0o600
    node_id = json.loads(identity.read_text())["node_id"]

    second = leeward.run(*arguments)
    assert second.code == 4
    assert "another worker already runs" in second.err

    leeward.end(worker, signal.SIGKILL)
    killed_ns = time.time_ns()
    again = leeward.start(*arguments)
    wait_for(
        lambda: any(
            node["last_seen_ns"] > killed_ns + 10**8
            for node in leeward.ask("region", "show", "east")["nodes"]
        )
    )
    assert json.loads(identity.read_text())["node_id"] == node_id, "one node, enrolled once"
    assert leeward.end(again) == 0, "SIGTERM ends it cleanly"


def test_node_waits_for_a_service_that_comes_late_and_goes_away(
    leeward: Installation, tmp_path: Path
) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(leeward.ask("region", "token", "east")["token"])
    log = leeward.data / "worker.log"
    with gate(free_port(), leeward.port) as door:
        arguments = ("worker", "--region", "east", "--name", "w2", "--service", door.url)
        worker = leeward.start(
            *arguments, "--token-file", str(token_file), "--data-dir", str(tmp_path)
        )
        wait_for(lambda: "service_away" in log.read_text())
        door.open()
        wait_for(lambda: "w2" in online(leeward))
        door.close()
        wait_for(lambda: "w2" not in online(leeward))
        assert worker.poll() is None, "it waits"
        door.open()
        wait_for(lambda: "w2" in online(leeward))
        assert leeward.end(worker) == 0


def online(leeward: Installation) -> set[str]:
    nodes = leeward.ask("region", "show", "east")["nodes"]
    return {node["name"] for node in nodes if node["is_online"]}

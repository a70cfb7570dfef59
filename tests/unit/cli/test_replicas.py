"""`leeward storage replicas`: what is shown, what is asked, what is refused before it is."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from tests.unit.cli.fake_api import Api, Capture, api, job

from leeward.cli.main import run

__all__ = ["api"]


def replica(item_id: str, account: str, **more: Any) -> dict[str, Any]:
    used_by = more.pop("used_by", "")
    stored = {"url": f"file:///{account}", "item_id": item_id, "objects": 2, "bytes": 1 << 20}
    return {"region": "west", "account": account, "used_by": used_by, "stored": stored | more}


FOUND = [
    replica("item-1", "sysasr", used_by="default/web-1", has_catalog=True, name="web-1"),
    replica("item-2", "sysasr", has_catalog=True, name="db-1", point_count=7, newest_time_ns=1),
    replica("item-2", "cacheasr"),
    replica("item-3", "sysasr", has_catalog=True, name="db-2", held=1),
]


@pytest.fixture
def stored(api: Api) -> Api:
    result = {"replicas": FOUND, "problems": ["west/away: its root is gone"]}
    done = job("succeeded", result=result, ended_ns=2)
    api.changes = lambda request: httpx.Response(202, json=done)
    api.pages["jobs/job-1"] = done
    return api


def test_the_list_tells_leftovers_from_what_is_used(stored: Api, capsys: Capture) -> None:
    assert run(["storage", "replicas", "list", "west/sysasr"]) == 0
    assert stored.seen == [("POST", "storage/replicas", {"region": "west", "account": "sysasr"})]
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[1].startswith("item-1 web-1 west/sysasr replica 1.0 MiB 0")
    assert lines[1].endswith("default/web-1")
    assert lines[2].endswith("left over")
    assert lines[3].startswith("item-2 - west/cacheasr cache 1.0 MiB")
    assert lines[-1] == "not read: west/away: its root is gone"
    assert run(["storage", "replicas", "list", "-o", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["replicas"]) == len(FOUND)


@pytest.mark.parametrize("name", ["item-2", "db-1"])
def test_a_leftover_is_deleted_by_id_or_name(stored: Api, capsys: Capture, name: str) -> None:
    assert run(["storage", "replicas", "delete", name, "--yes"]) == 0
    assert stored.seen[-1] == ("POST", "storage/replicas/item-2/delete", {"even_if_held": False})
    assert capsys.readouterr().out == "nothing is stored of item-2 any more\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["web-1", "--yes"], "in use: it is the replica of default/web-1"),
        (["item-3", "--yes"], "1 readers have pinned item-3"),
        (["nobody", "--yes"], "no storage account has anything of nobody; not read: west/away"),
        (["item-2", "-o", "json"], "add --yes"),
        (["item-2"], "nothing was deleted"),
    ],
)
def test_what_is_refused_is_refused_before_anything_is_asked_of_the_service(
    stored: Api, capsys: Capture, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.setattr("typer.confirm", lambda question: False)
    assert run(["storage", "replicas", "delete", *arguments]) != 0
    assert said in " ".join(capsys.readouterr().err.split())
    assert all(path == "storage/replicas" for _, path, _ in stored.seen)


def test_one_whose_readers_are_lost_is_deleted_when_told(stored: Api) -> None:
    arguments = ["item-3", "--yes", "--even-if-held"]
    assert run(["storage", "replicas", "delete", *arguments]) == 0
    assert stored.seen[-1] == ("POST", "storage/replicas/item-3/delete", {"even_if_held": True})

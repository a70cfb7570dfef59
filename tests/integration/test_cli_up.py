"""`leeward up` and `leeward down`: started, started again, a region burned, ended."""

from __future__ import annotations

import json
import os
import signal

import pytest
from demo.fire import burn, processes_of
from tests.integration.leeward_process import Installation, installation, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


def pid_of(leeward: Installation, daemon: str) -> int:
    return int(json.loads((leeward.data / "up" / f"{daemon}.pid").read_text())["pid"])


def online(leeward: Installation) -> set[str]:
    done = leeward.run("status", "-o", "json")
    regions = done.json["regions"] if done.code == 0 else []
    return {node["name"] for region in regions for node in region["nodes"] if node["is_online"]}


def said(leeward: Installation) -> str:
    return (leeward.data / "up" / "up.log").read_text()


def test_up_says_what_the_machine_lacks() -> None:
    with installation() as leeward:
        empty = leeward.data / "no-programs"
        empty.mkdir()
        up = ("up", "--detach", "--regions", "a", "--port", str(leeward.port))
        done = leeward.run(*up, PATH=str(empty))
        assert done.code == 0, done.err
        assert done.out.startswith(f"Leeward is up: {leeward.url}\n")
        doctor = leeward.run("doctor", PATH=str(empty)).out.splitlines()
        lacking = [line for line in doctor if line.startswith("bad ")]
        assert any("QEMU is not installed" in line for line in lacking)
        assert set(lacking) <= set(done.out.splitlines())
        assert leeward.run("down").code == 0


def test_life_of_an_installation() -> None:
    with installation() as leeward:
        up = ("up", "--detach", "--regions", "a,b", "--port", str(leeward.port))
        first = leeward.run(*up)
        assert first.code == 0, first.err
        assert first.out.startswith(f"Leeward is up: {leeward.url}\n")
        assert "agent a-1" in first.out
        assert online(leeward) == {"a-1", "a-worker", "b-1", "b-worker"}
        assert (leeward.data / "client.toml").stat().st_mode & 0o777 == 0o600
        daemons = {name: pid_of(leeward, name) for name in ("service", "agent-a-1", "agent-b-1")}

        told = leeward.run(*up, "-o", "json").json  # started again it changes nothing
        runs = {daemon["name"]: daemon["pid"] for daemon in told["daemons"]}
        assert told["url"] == leeward.url
        assert runs["agent a-1"] == daemons["agent-a-1"]
        assert leeward.run("up", "-o", "json").code == 2
        assert {name: pid_of(leeward, name) for name in daemons} == daemons
        elsewhere = leeward.run("up", "--detach", "--port", str(leeward.port + 1))
        assert elsewhere.code == 4
        assert f"already runs on port {leeward.port}" in elsewhere.err
        more = leeward.run("up", "--detach", "--hosts", "2")
        assert more.code == 4
        assert "regions a, b, hosts in each: 1 (`leeward down`" in more.err

        os.kill(pid_of(leeward, "worker-b-worker"), signal.SIGKILL)
        wait_for(lambda: "worker b-worker runs again" in said(leeward))

        killed, _ = burn(leeward.data, "a")
        assert killed >= 2
        wait_for(lambda: "agent a-1: " in said(leeward) and "worker a-worker: " in said(leeward))
        assert "is gone, so it is not started again" in said(leeward)
        assert not (leeward.data / "regions" / "a").exists()
        assert pid_of(leeward, "agent-b-1") == daemons["agent-b-1"], "region b noticed nothing"

        os.kill(pid_of(leeward, "up"), signal.SIGKILL)  # its daemons run on without it
        again = leeward.run("up", "--detach")
        assert again.code == 0, again.err
        assert pid_of(leeward, "service") == daemons["service"]
        assert "region a is gone" in again.out

        assert leeward.run("down", "-o", "json").json["ended"] >= 1
        assert processes_of(leeward.data) == []
        assert leeward.run("status").code == 5
        assert leeward.run("down", "--vms").out == "nothing was running\n"
        (leeward.data / "burned-a").chmod(0o700)

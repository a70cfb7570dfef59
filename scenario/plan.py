"""A recovery plan over two VMs: stopped by what fails, killed, resumed, and back home again.

Owns: what a plan must do and never do. Must not know: how any of it is done.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from leeward.cli.vaults import DEFAULT_VAULT
from leeward.model.recovery import ItemState, JobState
from scenario.common import Findings, Result, command_of
from scenario.pair import check_machines, check_nothing_left, check_together, create_peer
from scenario.rig import GUEST_PORT, Part, Rig, create_vm
from scenario.stage import play

HANG_SECONDS = 2
_NEVER = "sleep 3600"
Plan = dict[str, Any]


def run() -> Result:
    """Return what the plan's runs showed."""
    return play(_story)


def _story(rig: Rig, findings: Findings) -> None:
    with findings.part("two VMs in east, protected in west by one command"):
        create_vm(rig)
        create_peer(rig)
        rig.wait_guest("east")
        rig.run("protect", "east/web-1", "east/db-1", "--to", "west")
        rig.wait_protected(since=time.time())
        for region in ("west", "east"):
            put_scripts(rig, region)
    with findings.part("a test of the plan: both in isolation, together"):
        tested(rig, findings)
    with findings.part("plans that make no sense are refused, and nothing is kept"):
        refusals(rig, findings)
    with findings.part("a script that hangs is ended, and nothing has moved"):
        hanging(rig, findings)
    with findings.part("there: approval, service killed, a failing script, resumed"):
        there(rig, findings)
    with findings.part("and back"):
        back(rig, findings)


# ── parts ────────────────────────────────────────────────────────────────────────────────────────


def tested(rig: Rig, findings: Findings) -> None:
    """Both test VMs see each other; scripts know that it is a test; nothing is left of it."""
    port = {"name": "port", "kind": "wait-port", "item": "db-1", "port": GUEST_PORT}
    tell = {"name": "tell", "kind": "script", "script": "tell"}
    groups = [_group("db", "db-1", post=[{**port, "timeout_seconds": 180}])]
    put(rig, "create", {"groups": [*groups, _group("web", "web-1", post=[tell])]})
    rig.run("recovery-plan", "test", "site", seconds=300)
    check_together(rig, findings)
    told = json.loads((scripts(rig, "west") / "told").read_text())
    findings.check("the script knows that it is a test", told["is_test"] is True)
    rig.run("recovery-plan", "test-cleanup", "site")
    check_nothing_left(rig, findings)
    rig.run("recovery-plan", "delete", "site")


def refusals(rig: Rig, findings: Findings) -> None:
    """A circle, an item twice, an unknown one: each named."""
    wrong = {
        "wait for each other": [
            _group("a", "db-1", after=["b"]),
            _group("b", "web-1", after=["a"]),
        ],
        "more than once": [_group("a", "db-1"), _group("b", "db-1")],
        "does not protect ghost": [_group("a", "ghost")],
    }
    for sentence, groups in wrong.items():
        ended = try_put(rig, "create", {"groups": groups})
        findings.check(f"refused: {sentence}", ended[0] != 0 and sentence in ended[1], ended[1])
    findings.check(
        "no plan is kept", json.loads(rig.run("recovery-plan", "list", "-o", "json")) == []
    )


def hanging(rig: Rig, findings: Findings) -> None:
    """The plan stops before its first VM; the script is gone."""
    script = {"name": "hang", "kind": "script", "script": "hang", "timeout_seconds": HANG_SECONDS}
    put(rig, "create", {"groups": [_group("db", "db-1", pre=[script]), _group("web", "web-1")]})
    ended = rig.try_run("recovery-plan", "run", "site")
    findings.check("the run fails and says why", "it hung" in ended.said, ended.said)
    states = [rig.item(name).state for name in ("db-1", "web-1")]
    findings.check("no VM has moved", states == [ItemState.PROTECTED] * 2, f"{states}")
    findings.check("the script and its child are gone", not _running(rig, _NEVER))


def there(rig: Rig, findings: Findings) -> None:
    """Both VMs run in west, each failed over once, every action carried out once but the one that
    failed."""
    with listening() as (url, calls):
        put(rig, "update", {"groups": _whole(url)})
        job = rig.job("recovery-plan", "run", "site")
        wait_approval(rig)
        findings.check("db-1 has moved", rig.item("db-1").state is ItemState.FAILED_OVER)
        findings.check("web-1 has not", rig.item("web-1").state is ItemState.PROTECTED)
        rig.kill(Part.SERVICE)
        rig.wait("the service again", lambda: rig.client.jobs(limit=1))
        wait_approval(rig)
        rig.run("recovery-plan", "approve", "site", "--comment", "it burns")
        stopped = rig.wait_job(job)
        findings.check(
            "the failing script stops it exactly there",
            stopped.state is JobState.FAILED and "not today" in stopped.error,
            stopped.error,
        )
        findings.check("web-1 has moved before", rig.item().state is ItemState.FAILED_OVER)
        findings.check("nobody was called after it", len(calls) == 0, f"{calls}")
        (scripts(rig, "west") / "allow").touch()
        rig.run("recovery-plan", "resume", "site")
        findings.check("resumed, the call came", len(calls) == 1, f"{calls}")
    done = (scripts(rig, "west") / "log").read_text().split()
    findings.check(
        "every script once, the failing one twice", done == ["first", "flaky", "flaky"], f"{done}"
    )
    check_machines(rig, findings, {"west": 2, "east": 0})
    report = json.loads(rig.run("recovery-plan", "report", "site", "-o", "json"))
    states = {each["state"] for each in report["steps"]}
    findings.check("the report tells every step", states == {"succeeded"}, f"{states}")
    findings.check("and a critical path", len(report["critical_path"]) >= 4)
    findings.figures["plan_s"] = float(report["took_seconds"])
    failovers = [job for job in rig.client.jobs() if job.verb == "item.failover"]
    findings.check("each VM failed over once", len(failovers) == 2, f"{len(failovers)}")
    rig.wait_guest("west")


def back(rig: Rig, findings: Findings) -> None:
    """Reprotected, the same plan brings both home."""
    for name in ("web-1", "db-1"):
        rig.run("commit", name)
    rig.wait_hydrated()
    for name in ("web-1", "db-1"):
        rig.run("reprotect", name, seconds=180)
    put(rig, "update", {"groups": [_group("db", "db-1"), _group("web", "web-1")]})
    rig.run("recovery-plan", "run", "site", "--recovery-point", "latest-processed", seconds=180)
    check_machines(rig, findings, {"west": 0, "east": 2})
    rig.wait_guest("east")
    rig.run("recovery-plan", "delete", "site")


# ── plans and scripts ────────────────────────────────────────────────────────────────────────────


def _whole(url: str) -> list[Plan]:
    first = {"name": "first", "kind": "script", "script": "first"}
    sure = {"name": "sure", "kind": "approval", "message": "really?"}
    port = {"name": "port", "kind": "wait-port", "item": "web-1", "port": GUEST_PORT}
    flaky = {"name": "flaky", "kind": "script", "script": "flaky"}
    tell = {"name": "tell", "kind": "http", "url": url}
    return [
        _group("db", "db-1", pre=[first]),
        _group("web", "web-1", pre=[sure], post=[port, flaky, tell]),
    ]


def _group(name: str, item: str, **more: object) -> Plan:
    return {"name": name, "items": [item], **more}


def put(rig: Rig, verb: str, plan: Plan) -> None:
    """The plan `site` is as given."""
    code, said = try_put(rig, verb, plan)
    assert code == 0, said


def try_put(rig: Rig, verb: str, plan: Plan) -> tuple[int, str]:
    """Return how that ended and what was said."""
    file = rig.directory / "site.json"
    file.write_text(json.dumps(plan))
    ended = rig.try_run("recovery-plan", verb, "site", "--file", str(file))
    return ended.code, ended.said


def scripts(rig: Rig, region: str) -> Path:
    """Return where the region's host looks for scripts."""
    return rig.data / "regions" / region / "hosts" / f"{region}-1" / "scripts"


def put_scripts(rig: Rig, region: str) -> None:
    """The scripts are there: one that hangs, one that works, one that fails until it may not."""
    for name, text in {
        "hang": f"{_NEVER} & wait",
        "first": "echo first >> log",
        "tell": "cat > told",
        "flaky": "echo flaky >> log; [ -e allow ] || { echo not today; exit 1; }",
    }.items():
        path = scripts(rig, region) / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o700)


def wait_approval(rig: Rig) -> None:
    """The plan's run waits for a person."""
    rig.wait(
        "a wait for approval",
        lambda: rig.client.plans.report(DEFAULT_VAULT, "site").waits_for,
        seconds=120,
    )


@contextmanager
def listening() -> Iterator[tuple[str, list[str]]]:
    """Give the URL of a server that takes calls, and what it was sent."""
    calls: list[str] = []

    class Taker(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            calls.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Taker)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/", calls
    finally:
        server.shutdown()
        server.server_close()


# ── looking ───────────────────────────────────────────────────────────────────────────────────────


def _running(rig: Rig, command: str) -> list[int]:
    """Return processes of the rig's scripts that run that command."""
    place = str(rig.data)
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str((entry / "cwd").resolve()).startswith(place) and command in command_of(
                int(entry.name)
            ):
                found.append(int(entry.name))
        except OSError:
            continue
    return found

"""A partition with both sides alive, and two workers that both believe an item is theirs.

The source's host, in a network namespace of its own, is cut off while its VM fails over; the
worker that processed it sleeps meanwhile. The replica has one writer throughout, and the VM that
comes back into view is stopped before anything else.

Owns: the cable, and what must be true while it is cut and after. Must not know: how fencing works.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from demo.fire import processes_of
from demo.ports import free_port

from leeward.client.config import load_config
from leeward.model.recovery import ItemState
from leeward.object_store.open import open_store
from leeward.replica.catalog import Catalog
from leeward.replica.manifest import cuts_prefix, parse_sequence
from scenario.common import Findings, Result
from scenario.rig import Part, Rig, create_vm
from scenario.round_trip import check_guest
from scenario.stage import play

BOTH_ALIVE_SECONDS = 8.0
STOPPED_SECONDS = 20.0
SILENT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Cable:
    """A namespace and the one cable between it and ours."""

    namespace: str
    outer: str
    service: str

    def inside(self, *argv: str) -> list[str]:
        """Return the command that runs `argv` at the far end."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}", *argv]

    def cut(self) -> None:
        """Nothing comes through."""
        _run("ip", "link", "set", self.outer, "down")

    def mend(self) -> None:
        """Everything comes through."""
        _run("ip", "link", "set", self.outer, "up")


@dataclass(frozen=True, slots=True)
class Written:
    """What a catalog says: the newest cut, the epoch, and how often it was written to at all, be it
    only by somebody who takes it over."""

    newest: tuple[int, int]
    epoch: int
    version: int


def run() -> Result:
    """Return what the partition showed."""
    with ExitStack() as stack:
        cable = stack.enter_context(_cable())
        return play(
            lambda rig, findings: _story(rig, findings, cable),
            up=lambda rig: _up(rig, free_port()),
        )


def _up(rig: Rig, port: int) -> None:
    """Service, west and its worker run; the service answers at the cable, too."""
    environment = {"LEEWARD_SERVICE__HOST": "0.0.0.0"}
    ended = rig.try_run(
        *("up", "--detach", "--regions", "west", "--port", str(port)), environment=environment
    )
    assert ended.code == 0, ended.said
    state = rig.data / "up" / "state.json"  # so that `leeward down --vms` ends east's host as well
    state.write_text(json.dumps({**json.loads(state.read_text()), "regions": ["west", "east"]}))


def _story(rig: Rig, findings: Findings, cable: Cable) -> None:
    with ExitStack() as stack:
        with findings.part("a host of east at the end of a cable; web-1 there, protected in west"):
            rig.client.create_region("east")
            stack.enter_context(_node(rig, "agent", "east", "east-1", cable=cable))
            rig.wait("east answers", lambda: _online(rig, "east"))
            create_vm(rig)
            rig.run("protect", "east/web-1", "--to", "west")
            rig.wait_protected(since=time.time())
        with findings.part("the cable is cut, the worker falls asleep, another one is there"):
            other = rig.directory / "other"
            stack.enter_context(_node(rig, "worker", "west", "west-worker-2", data=other))
            rig.wait("three nodes of west", lambda: _online(rig, "west") == 3)
            first = rig.wait_pid(Part.WORKER, "west")
            cable.cut()
            os.kill(first, signal.SIGSTOP)
            stack.callback(os.kill, first, signal.SIGCONT)
            rig.wait("both are silent", lambda: _is_silent(rig), SILENT_SECONDS)
        with findings.part("failed over: both VMs run"):
            rig.run("failover", "web-1", seconds=120)
            _check_guest_of_west(rig, findings)
            os.kill(first, signal.SIGCONT)
            _check_one_writer(rig, findings)
        with findings.part("the cable is mended"):
            before = _written(rig)
            cable.mend()
            mended = time.monotonic()
            rig.wait("the VM of east is stopped", lambda: not _qemus(rig, "east"), STOPPED_SECONDS)
            seconds = time.monotonic() - mended
            findings.check("the VM of east is stopped", True, f"after {seconds:.1f} s")
            findings.figures["stopped_s"] = seconds
            started = rig.try_run("vm", "start", "east/web-1")
            findings.check("and cannot be started", started.code != 0, started.said)
            time.sleep(3.0)
            findings.check("nothing was written since", _written(rig) == before, f"{before}")
            findings.check("the VM of west runs on", _qemus(rig, "west") == 1)
            findings.check("failed over", rig.item().state is ItemState.FAILED_OVER)


def _check_guest_of_west(rig: Rig, findings: Findings) -> None:
    check_guest(findings, rig.wait_guest("west"))
    alive = {region: _qemus(rig, region) for region in ("east", "west")}
    findings.check("both sides are alive", alive == {"east": 1, "west": 1}, str(alive))


def _check_one_writer(rig: Rig, findings: Findings) -> None:
    """While source and sleeper go on as before, nothing of theirs gets into the replica."""
    before, sent = _written(rig), _sent(rig)
    time.sleep(BOTH_ALIVE_SECONDS)
    after = _written(rig)
    findings.check(
        "the source goes on sending under its old epoch",
        _sent(rig) > sent,
        f"cut {sent} to {_sent(rig)}",
    )
    findings.check(
        "nothing of it gets into the replica",
        after.newest == before.newest and after.epoch == 2,
        f"{before} → {after}",
    )
    findings.check(
        "nobody took the item back",
        after.version == before.version,
        f"version {before.version} of the catalog",
    )


# ── looking ──────────────────────────────────────────────────────────────────────────────────────


def _written(rig: Rig) -> Written:
    item = rig.item()
    catalog = Catalog.open(open_store(_catalog_url(rig)), item.id)
    newest = catalog.newest_cut
    return Written(newest.position if newest else (0, 0), catalog.epoch, catalog.version)


def _catalog_url(rig: Rig) -> str:
    return next(url for url in rig.store_urls() if "system" in url)


def _sent(rig: Rig) -> int:
    """Return the newest cut in the cache, of the source's epoch."""
    item = rig.item()
    cache = rig.data / "regions" / "east" / "storage" / item.cache_account / "objects"
    names = open_store(f"file://{cache}").list(cuts_prefix(item.id))
    return max((parse_sequence(name)[1] for name in names), default=0)


def _is_silent(rig: Rig) -> bool:
    silent = {node.name for node in rig.client.nodes() if not node.is_online}
    return {"east-1", "west-worker"} <= silent


def _online(rig: Rig, region: str) -> int:
    return sum(node.is_online for node in rig.client.nodes() if node.region == region)


def _qemus(rig: Rig, region: str) -> int:
    count = 0
    for pid in processes_of(rig.data, region):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                count += file.read().startswith(b"qemu-system-x86_64\0")
        except OSError:
            continue
    return count


# ── making ───────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _node(
    rig: Rig,
    role: str,
    region: str,
    name: str,
    *,
    cable: Cable | None = None,
    data: Path | None = None,
) -> Iterator[None]:
    """One more node runs meanwhile, at the end of the cable if there is one; data: its own
    directory instead of the rig's."""
    port = load_config(rig.data).url.rpartition(":")[2]
    token = rig.directory / f"{name}.token"
    token.write_text(rig.client.enrolment_token(region).token)
    host = cable.service if cable else "127.0.0.1"
    command = [sys.executable, "-m", "leeward.cli.main", role, "--region", region, "--name", name]
    command += ["--service", f"http://{host}:{port}", "--token-file", str(token)]
    state = json.loads((rig.data / "up" / "state.json").read_text())
    environment = {
        **os.environ,
        "LEEWARD_DATA": str(data or rig.data),
        "LEEWARD_REGION": region,
        "LEEWARD_INSTANCE": state["instance"],
    }
    with (rig.directory / f"{name}.log").open("ab") as log:
        daemon = subprocess.Popen(
            cable.inside(*command) if cable else command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield
    finally:
        daemon.terminate()
        daemon.wait(timeout=30)


@contextmanager
def _cable() -> Iterator[Cable]:
    tag = secrets.token_hex(3)
    subnet = f"10.215.{secrets.randbelow(256)}"
    cable = Cable(f"lwscn-{tag}", f"lws{tag}a", f"{subnet}.1")
    inner = f"lws{tag}b"
    _run("ip", "netns", "add", cable.namespace)
    try:
        peer = ("type", "veth", "peer", inner, "netns", cable.namespace)
        _run("ip", "link", "add", cable.outer, *peer)
        _run("ip", "address", "add", f"{cable.service}/30", "dev", cable.outer)
        _run("ip", "link", "set", cable.outer, "up")
        _run(*cable.inside("ip", "address", "add", f"{subnet}.2/30", "dev", inner))
        _run(*cable.inside("ip", "link", "set", inner, "up"))
        _run(*cable.inside("ip", "link", "set", "lo", "up"))
        yield cable
    finally:
        _run("ip", "netns", "delete", cable.namespace)


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr}"

"""Everything lost but the target's stores and a key: a vault made anew, and the VM from it.

An encrypted item is protected and its key changed once. Then service, vault, both regions' nodes
and the source go; a new service with new nodes reads the stores, and the VM boots from them.

Owns: the loss, and what must be true after. Must not know: what a vault keeps.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

from demo.fire import kill_all, processes_of
from demo.ports import free_port

from leeward.model.recovery import ItemState
from leeward.replica.host_keys import KEY_FILE
from scenario.common import Findings, Result
from scenario.rig import Rig, create_vm
from scenario.stage import play

POINTS = 5


def run() -> Result:
    """Return what the loss and the rebuilding showed."""
    return play(_story, up=_up)


def _up(rig: Rig) -> None:
    key_file = rig.directory / "keys"
    key_id = rig.run("vault", "key", "new", str(key_file)).strip()
    os.environ[KEY_FILE] = str(key_file)
    (rig.directory / "first-key-id").write_text(key_id)
    rig.up(free_port())


def _story(rig: Rig, findings: Findings) -> None:
    try:
        stores = _protect(rig, findings)
        _lose_everything(rig, findings, stores)
        _rebuild(rig, findings, stores)
    finally:
        os.environ.pop(KEY_FILE, None)


def _protect(rig: Rig, findings: Findings) -> list[str]:
    """The VM is protected under two keys, one after the other; return its replica's stores."""
    first = (rig.directory / "first-key-id").read_text()
    create_vm(rig)
    rig.run("vault", "create", "main")
    rig.run("vault", "key", "use", "main", first)
    rig.run("policy", "create", "secret", "--vault", "main", "--encryption", "aes-256-gcm")
    rig.run("protect", "east/web-1", "--to", "west", "--vault", "main", "--policy", "secret")
    rig.wait_protected(since=time.time())
    second = rig.run("vault", "key", "new", str(rig.directory / "keys")).strip()
    rig.wait(
        "every node has the new key",
        lambda: [k for k in rig.client.vault_keys("main") if k.key_id == second and not k.missing],
    )
    rig.run("vault", "key", "use", "main", second)
    rig.wait_protected(since=time.time())
    rig.wait("a few points", lambda: len(rig.points()) >= POINTS)
    said = json.loads(rig.run("storage", "scrub", "web-1", "-o", "json"))[0]
    findings.check("a scrub finds everything whole", not said["damaged"], str(said["damaged"]))
    findings.check("the scrub has read what is stored", said["objects"] > POINTS, str(said))
    return rig.store_urls()


def _lose_everything(rig: Rig, findings: Findings, stores: list[str]) -> None:
    """Every process is dead, VMs included, and nothing is left on disk but the replica and keys."""
    kill_all(processes_of(rig.data))
    rig.wait("everything is dead", lambda: not processes_of(rig.data))
    rig.forget_client()
    kept = rig.directory / "rescued"
    kept.mkdir()
    for index, url in enumerate(stores):
        shutil.copytree(Path(url.removeprefix("file://")), kept / str(index))
    guest = b"leeward-demo"
    leaks = [
        path.name
        for path in kept.rglob("*")
        if path.is_file() and (b"web-rg" in (data := path.read_bytes()) or guest in data)
    ]
    findings.check("nothing of the VM can be read in the stores", not leaks, str(leaks[:3]))
    rig.run("down", "--vms")
    shutil.rmtree(rig.data)
    stores[:] = [f"file://{kept}/{index}" for index in range(len(stores))]


def _rebuild(rig: Rig, findings: Findings, stores: list[str]) -> None:
    rig.up(free_port())
    sources = [word for url in stores for word in ("--from", url)]
    began = time.monotonic()
    said = rig.run("vault", "rebuild", *sources, "--region", "west")
    findings.figures["rebuild_s"] = round(time.monotonic() - began, 2)
    item = rig.item()
    findings.check("the item is there, degraded", item.state is ItemState.DEGRADED, said)
    findings.check("its points are there", len(rig.points()) >= POINTS, str(len(rig.points())))
    rig.run("failover", "web-1", "--recovery-point", "latest-processed")
    answer = rig.wait_guest("west")
    findings.check("the VM answers from the target region", bool(answer), answer)
    rig.wait_hydrated()
    rig.run("commit", "web-1")

"""Agent side and worker side of many VMs at once, each one process as in production.

Owns: making a replicator or an item's loop for every VM, and passing on what agents say of their
cuts. Must not know: what is measured. Run as `python -m bench.fleet agent|worker SETUP.json`;
started by scale.py. A line on standard input is answered by one: the agent is asked for
{item: sequence}, the worker is told that, as it hears it from the service every second.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.sides import DISK, Session
from leeward.core.clock import SystemClock
from leeward.core.codec import from_json, to_json
from leeward.mobility.replicator import Places, Replicator
from leeward.mobility.tap_client import stop_watchdog
from leeward.object_store.open import open_store
from leeward.observability.log import configure_logging
from leeward.processor.item import ItemProcessor
from leeward.processor.loop import ItemLoop
from leeward.protocol.fabric import ProcessingSpec, ReplicaDisk, ReplicationSpec
from leeward.protocol.messages import NodeStatus
from leeward.recovery_points.retention import plan_retention


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetVm:
    """A storage daemon that stands for a VM."""

    item_id: str
    qmp_socket: str
    nbd_socket: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSetup:
    """Where everything is, as in Setup of sides.py."""

    root: str
    shm: str
    disk_bytes: int
    cache_url: str
    target_url: str
    vms: tuple[FleetVm, ...]


def run_agent(setup: FleetSetup) -> None:
    """Every VM is protected until standard input ends."""
    replicators = [_replicator(setup, vm) for vm in setup.vms]
    for replicator in replicators:
        replicator.start()
    for _ in sys.stdin:
        statuses = tuple(replicator.status() for replicator in replicators)
        to_json(NodeStatus(replications=statuses))  # what the link posts every second
        said = {
            status.item_id: [status.state.value, status.uploaded_sequence] for status in statuses
        }
        print(json.dumps(said), flush=True)
    for replicator in replicators:
        replicator.stop(detach=True)
    stop_watchdog(Path(setup.root) / "run")


def _replicator(setup: FleetSetup, vm: FleetVm) -> Replicator:
    return Replicator(
        ReplicationSpec(
            item_id=vm.item_id,
            epoch=1,
            vm_id=vm.item_id,
            disks=(DISK,),
            cache_url=setup.cache_url,
        ),
        open_session=Session(Path(vm.qmp_socket)).get,
        open_store=open_store,
        places=Places(
            run_dir=Path(setup.root) / "run",
            shm_dir=Path(setup.shm),
            data_dir=Path(setup.root) / "data",
            nbd_socket=Path(vm.nbd_socket),
        ),
    )


def run_worker(setup: FleetSetup) -> None:
    """Every item is processed until standard input ends."""
    loops = {vm.item_id: _loop(setup, vm) for vm in setup.vms}
    for loop in loops.values():
        loop.start()
    for line in sys.stdin:
        for item_id, (_, sequence) in json.loads(line).items():
            loops[item_id].announce(1, sequence)
        statuses = tuple(loop.status() for loop in loops.values())
        to_json(NodeStatus(processings=statuses))
        applied = {status.item_id: status.applied_sequence for status in statuses}
        print(json.dumps(applied), flush=True)
    for loop in loops.values():
        loop.stop()


def _loop(setup: FleetSetup, vm: FleetVm) -> ItemLoop:
    replica = ReplicaDisk(disk=DISK, size_bytes=setup.disk_bytes, target_url=setup.target_url)
    spec = ProcessingSpec(
        item_id=vm.item_id,
        epoch=1,
        cache_url=setup.cache_url,
        catalog_url=setup.target_url,
        replicas=(replica,),
    )
    clock = SystemClock()
    processor = ItemProcessor(spec, open_store, clock)
    return ItemLoop(spec, processor, partial(plan_retention, tiers=spec.tiers), clock)


def main() -> None:
    """Be the side named on the command line."""
    configure_logging()
    setup = from_json(Path(sys.argv[2]).read_bytes(), FleetSetup)
    {"agent": run_agent, "worker": run_worker}[sys.argv[1]](setup)


if __name__ == "__main__":
    main()

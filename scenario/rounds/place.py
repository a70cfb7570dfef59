"""What rounds begin and end with, in peace: a place in east, VMs in it, protected or not; all gone.

Owns: how these are asked for. Must not know: who is killed.
"""

from __future__ import annotations

from functools import partial

from leeward.cli.vaults import DEFAULT_VAULT
from leeward.core.units import MIB
from leeward.model.drills import Drill
from leeward.model.recovery import ItemState, Job, JobState
from leeward.model.resources import (
    Disk,
    NetworkInterface,
    PowerState,
    ResourceGroup,
    StorageAccount,
    Subnet,
    VirtualMachine,
    VirtualNetwork,
)
from scenario.rig import Rig
from scenario.rounds.act import ACCOUNT, ASK_SECONDS, GROUP, MEMORY_MIB, NETWORK, WEB, Ask


def do(rig: Rig, what: str, ask: Ask) -> Job:
    """Return the job, which has succeeded."""
    begun = rig.wait(what, lambda: ask(rig), ASK_SECONDS)
    ended = rig.wait_job(begun.id)
    assert ended.state is JobState.SUCCEEDED, f"{what}: {ended.error}"
    return ended


def place(rig: Rig) -> None:
    """East has a resource group with what VMs need, and there is a vault."""
    rig.client.create_vault(DEFAULT_VAULT)
    rig.client.put(ResourceGroup(region="east", name=GROUP))
    rig.client.put(network())
    do(rig, "a storage account", create_account)


def network() -> VirtualNetwork:
    return VirtualNetwork(
        region="east",
        name=NETWORK,
        resource_group=GROUP,
        address_space=("10.10.0.0/16",),
        subnets=(Subnet(name="front", prefix="10.10.1.0/24"),),
    )


def _account() -> StorageAccount:
    return StorageAccount(region="east", name=ACCOUNT, resource_group=GROUP)


def create_account(rig: Rig) -> Job | None:
    return rig.client.put(_account())


def machine(name: str) -> VirtualMachine:
    return VirtualMachine(
        region="east",
        name=name,
        resource_group=GROUP,
        memory_mib=MEMORY_MIB,
        disks=(Disk(name="system", storage_account=ACCOUNT, size_bytes=16 * MIB),),
        nics=(NetworkInterface(name="front", network=NETWORK, subnet="front"),),
    )


def create(rig: Rig, name: str = WEB) -> Job | None:
    return rig.client.put(machine(name))


def protect(rig: Rig, name: str = WEB, policy: str = "") -> Job | None:
    said = rig.client.protect(
        DEFAULT_VAULT,
        {"source_region": "east", "vm": name, "target_region": "west", "policy": policy},
    )
    return said if isinstance(said, Job) else None


def placed(rig: Rig, *names: str) -> None:
    """VMs of these names run in east."""
    place(rig)
    for name in names:
        do(rig, f"{name} is created", partial(create, name=name))


def protected(rig: Rig, *names: str, policy: str = "") -> None:
    """They run in east and are protected in west."""
    placed(rig, *names)
    for name in names:
        do(rig, f"{name} is protected", partial(protect, name=name, policy=policy))


def gone(rig: Rig) -> None:
    """No item is left, no VM, no resource group, nor what was in one."""
    for item in rig.client.items(DEFAULT_VAULT):
        do(rig, f"{item.name} is unprotected", partial(unprotect, name=item.name))
    for region in ("east", "west"):
        for group in rig.client.list(ResourceGroup, region):
            ask = partial(delete_group, region=region, name=group.name)
            do(rig, f"{group.name} goes", ask)


def delete_group(rig: Rig, region: str = "east", name: str = GROUP) -> Job | None:
    return rig.client.delete_group_with_contents(region, name)


def unprotect(rig: Rig, name: str = WEB, *, delete: bool = True) -> Job | None:
    return rig.client.unprotect(rig.item(name), delete_replica=delete)


def are(rig: Rig, state: ItemState, *names: str) -> bool:
    return all(rig.item(name).state is state for name in names or (WEB,))


def describe_drill(rig: Rig, name: str = WEB) -> None:
    """The item's drill is described: its VM has no guest, so it ends red soon."""
    drill = Drill(name=name, vault=DEFAULT_VAULT, boot_seconds=1)
    rig.wait("the drill is described", lambda: rig.client.drills.put(drill), ASK_SECONDS)


def is_running(rig: Rig) -> bool:
    status = rig.machine("east").status
    return status is not None and status.power is PowerState.RUNNING


def newest_job(rig: Rig, verb: str, since_ns: int) -> Job | None:
    """Return the newest job of that verb, if it was made since."""
    jobs = [job for job in rig.client.jobs(limit=20) if job.verb == verb]
    return next((job for job in jobs if job.created_ns >= since_ns), None)


def _settle_moved(rig: Rig, *names: str) -> None:
    """What has failed over reads its recovery point no more: then it may be unprotected."""

    def are_local() -> bool:
        said = [rig.item(name).health.hydration for name in names]
        return all(each is not None and each.done for each in said)

    rig.wait("disks are local", are_local)


def moved_gone(rig: Rig, *names: str) -> None:
    _settle_moved(rig, *names)
    gone(rig)

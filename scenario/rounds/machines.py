"""Round `machines`: virtual machines and what they lie in."""

from __future__ import annotations

from dataclasses import replace

from leeward.client.views import MachineView
from leeward.core.units import MIB
from leeward.model.recovery import Job
from leeward.model.resources import (
    Disk,
    ResourceGroup,
    StorageAccount,
    VirtualNetwork,
)
from scenario.rig import Rig
from scenario.rounds.act import (
    ACCOUNT,
    AGENT_EAST,
    DB,
    DISK,
    GROUP,
    NETWORK,
    NOWHERE,
    SERVICE,
    WEB,
    Act,
    Round,
)
from scenario.rounds.place import _account, create, delete_group, gone, is_running, network, placed


def _begin_machines(rig: Rig) -> None:
    rig.client.put(ResourceGroup(region="east", name=GROUP))
    rig.client.put(network())


def _disk_bytes(rig: Rig) -> int:
    disks = {disk.name: disk.size_bytes for disk in rig.machine("east").disks}
    return disks.get(DISK, 0)


def _add_disk(rig: Rig) -> Job | None:
    return rig.client.add_disk(
        "east", WEB, Disk(name=DISK, storage_account=ACCOUNT, size_bytes=4 * MIB)
    )


DISK_ACTS = (
    Act(verb="vm.disk-add", ask=_add_disk, holds=lambda rig: _disk_bytes(rig) == 4 * MIB),
    Act(
        verb="vm.disk-grow",
        ask=lambda rig: rig.client.grow_disk("east", WEB, DISK, 8 * MIB),
        holds=lambda rig: _disk_bytes(rig) == 8 * MIB,
    ),
)
REMOVE_DISK = Act(
    verb="vm.disk-remove",
    ask=lambda rig: rig.client.remove_disk("east", WEB, DISK),
    holds=lambda rig: _disk_bytes(rig) == 0,
)


MACHINES = Round(
    name="machines",
    victims=(SERVICE, AGENT_EAST),
    begin=_begin_machines,
    end=gone,
    acts=(
        Act(
            verb="storage-account.create",
            ask=lambda rig: rig.client.put(_account()),
            running=NOWHERE,
        ),
        Act(verb="vm.create", ask=create, holds=is_running),
        Act(
            verb="network.update",
            ask=lambda r: r.client.change(VirtualNetwork, "east", NETWORK, {"routing": "routed"}),
        ),
        *DISK_ACTS,
        Act(
            verb="vm.stop",
            ask=lambda rig: rig.client.stop_machine("east", WEB, force=True),
            running=NOWHERE,
        ),
        replace(REMOVE_DISK, running=NOWHERE),
        Act(
            verb="vm.update",
            ask=lambda rig: rig.client.change(MachineView, "east", WEB, {"memory_mib": 80}),
            holds=lambda rig: rig.machine("east").memory_mib == 80,
            running=NOWHERE,
        ),
        Act(
            verb="vm.start", ask=lambda rig: rig.client.start_machine("east", WEB), holds=is_running
        ),
        Act(
            verb="vm.delete",
            ask=lambda rig: rig.client.delete(MachineView, "east", WEB),
            holds=lambda rig: not rig.client.list(MachineView, "east"),
            running=NOWHERE,
        ),
        Act(
            verb="network.delete",
            ask=lambda rig: rig.client.delete(VirtualNetwork, "east", NETWORK),
            holds=lambda rig: not rig.client.list(VirtualNetwork, "east"),
            running=NOWHERE,
        ),
        Act(
            verb="storage-account.delete",
            ask=lambda rig: rig.client.delete(StorageAccount, "east", ACCOUNT),
            holds=lambda rig: not rig.client.list(StorageAccount, "east"),
            running=NOWHERE,
        ),
        Act(
            verb="resource-group.delete",
            before=lambda rig: placed(rig, WEB, DB),
            ask=delete_group,
            holds=lambda rig: not rig.client.list(ResourceGroup, "east"),
            running=NOWHERE,
        ),
    ),
)

"""An item turned round: what its source and target become."""

from __future__ import annotations

from dataclasses import replace

import pytest

from leeward.core.errors import Conflict
from leeward.failover.reprotect import plan_reprotect
from leeward.model.recovery import DiskMapping, FormerDirection, ItemState, ReplicatedItem
from leeward.model.resources import Disk, NetworkInterface, VirtualMachine

ORIGIN = VirtualMachine(
    region="east",
    name="web-1",
    resource_group="web-rg",
    vcpus=2,
    disks=(
        Disk(name="system", storage_account="sys", size_bytes=1 << 20, image="/images/x.raw"),
        Disk(name="scratch", storage_account="sys", size_bytes=1 << 20),
    ),
    nics=(NetworkInterface(name="n0", network="corp", subnet="a", address="10.0.0.9", mac="52:1"),),
    availability_set="set",
    host="east-1",
)
ITEM = ReplicatedItem(
    id="item-1",
    name="web-1",
    vault="main",
    policy="default",
    state=ItemState.COMMITTED,
    epoch=2,
    source_region="east",
    source_vm="web-1",
    target_region="west",
    target_vm="web-1-dr",
    target_resource_group="web-rg-asr",
    target_network={"corp": "corp-asr"},
    target_availability_set="set-asr",
    cache_account="main-east-cache",
    disks=(DiskMapping(disk="system", source_account="sys", target_account="sysasr"),),
    excluded_disks=("scratch",),
    recovery_point="rp-1",
    drained_point="rp-1",
)


def test_it_fails_back_to_the_very_vm_it_came_from() -> None:
    plan = plan_reprotect(
        ITEM, origin=ORIGIN, current=ORIGIN, worker_id="node-w", cache_region="east"
    )
    assert plan.item == replace(
        ITEM,
        state=ItemState.REPROTECTING,
        epoch=4,
        source_region="west",
        source_vm="web-1-dr",
        target_region="east",
        target_vm="web-1",
        target_resource_group="web-rg",
        target_network={"corp-asr": "corp"},
        target_availability_set="set",
        cache_account="main-west-cache",
        disks=(DiskMapping(disk="system", source_account="sysasr", target_account="sys"),),
        recovery_point="",
        drained_point="",
        former=FormerDirection(
            worker_id="node-w", cache_region="east", cache_account="main-east-cache"
        ),
    )
    assert plan.target_vm == replace(
        ORIGIN, disks=(replace(ORIGIN.disks[0], format="qcow2", image=""),)
    )
    assert (plan.cache_region, plan.seed_epoch) == ("west", 3)


def test_only_after_a_commit() -> None:
    for state, hint in (
        (ItemState.FAILED_OVER, "`leeward commit web-1`"),
        (ItemState.PROTECTED, "`leeward commit web-1` after a failover"),
    ):
        with pytest.raises(Conflict, match="cannot become reprotecting") as refused:
            plan_reprotect(
                replace(ITEM, state=state),
                origin=ORIGIN,
                current=ORIGIN,
                worker_id="",
                cache_region="east",
            )
        assert hint in str(refused.value.hint)

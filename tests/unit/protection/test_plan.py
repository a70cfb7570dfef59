"""Names, defaults and refusals of enabling replication."""

from __future__ import annotations

from dataclasses import replace

import pytest

from leeward.core.errors import Conflict, InvalidRequest, LeewardError, NotFound
from leeward.model.recovery import DiskMapping, ItemState, NetworkMapping, ReplicatedItem
from leeward.model.resources import (
    AvailabilitySet,
    Disk,
    NetworkInterface,
    PowerState,
    ResourceGroup,
    StorageAccount,
    Subnet,
    VirtualMachine,
    VirtualNetwork,
)
from leeward.protection.inventory import Inventory, Protected
from leeward.protection.options import ProtectOptions
from leeward.protection.plan import ProtectionPlan, plan_protection
from leeward.protection.support import SourceCondition

SUBNETS = (Subnet(name="front", prefix="10.1.1.0/24"), Subnet(name="back", prefix="10.1.2.0/24"))
NETWORK = VirtualNetwork(
    region="east",
    name="corp",
    resource_group="rg",
    address_space=("10.1.0.0/16",),
    subnets=SUBNETS,
)
VM = VirtualMachine(
    region="east",
    name="web-1",
    resource_group="rg",
    disks=(
        Disk(name="system", storage_account="sys", size_bytes=1 << 30),
        Disk(name="data", storage_account="bulk", size_bytes=1 << 30),
    ),
    nics=(
        NetworkInterface(
            name="n0", network="corp", subnet="front", address="10.1.1.9", mac="52:54:00:00:00:01"
        ),
        NetworkInterface(
            name="n1", network="corp", subnet="back", address="10.1.2.9", mac="52:54:00:00:00:02"
        ),
    ),
    availability_set="set",
    forwards=(80,),
)
INVENTORY = Inventory(
    regions=frozenset({"east", "west"}),
    resource_groups=(ResourceGroup(region="east", name="rg"),),
    networks=(NETWORK,),
    accounts=tuple(
        StorageAccount(region="east", name=name, resource_group="rg") for name in ("sys", "bulk")
    ),
    availability_sets=(
        AvailabilitySet(region="east", name="set", resource_group="rg", fault_domains=3),
    ),
    vms=(VM,),
    regions_with_agents=frozenset({"east", "west"}),
    regions_with_workers=frozenset({"west"}),
)
HEALTHY = SourceCondition(host="h", is_host_answering=True, power=PowerState.RUNNING)
OPTIONS = ProtectOptions(source_region="east", vm="web-1", target_region="west")


def plan(options: ProtectOptions = OPTIONS, inventory: Inventory = INVENTORY) -> ProtectionPlan:
    return plan_protection("main", inventory, options, lambda vm: HEALTHY)


def after(made: ProtectionPlan, inventory: Inventory = INVENTORY) -> Inventory:
    """Return the inventory once the plan was carried out."""
    item = ReplicatedItem(
        id="item-1",
        name=made.source_vm,
        vault=made.vault,
        policy=made.policy,
        state=ItemState.PROTECTED,
        epoch=1,
        source_region="east",
        source_vm=made.source_vm,
        target_region="west",
        target_resource_group=made.target_vm.resource_group,
        target_vm=made.target_vm.name,
        cache_account=made.cache_account,
        disks=made.disks,
    )
    protected = Protected(item=item, target_vm=made.target_vm, cache_region=made.cache_region)
    return replace(
        inventory,
        resource_groups=inventory.resource_groups + made.new_groups,
        networks=inventory.networks + made.new_networks,
        accounts=inventory.accounts + made.new_accounts,
        availability_sets=inventory.availability_sets + made.new_sets,
        mappings=inventory.mappings + made.mappings,
        protected=(*inventory.protected, protected),
    )


def test_defaults_are_those_of_the_table() -> None:
    made = plan()
    assert made.new_groups == (ResourceGroup(region="west", name="rg-asr"),)
    assert made.new_networks == (
        replace(NETWORK, region="west", name="corp-asr", resource_group="rg-asr"),
    )
    assert {(a.region, a.name, a.resource_group) for a in made.new_accounts} == {
        ("east", "main-east-cache", "rg"),
        ("west", "sysasr", "rg-asr"),
        ("west", "bulkasr", "rg-asr"),
    }
    assert made.new_sets == (
        AvailabilitySet(region="west", name="set-asr", resource_group="rg-asr", fault_domains=3),
    )
    assert made.mappings == (
        NetworkMapping(
            source_region="east",
            source_network="corp",
            target_region="west",
            target_network="corp-asr",
        ),
        NetworkMapping(
            source_region="west",
            source_network="corp-asr",
            target_region="east",
            target_network="corp",
        ),
    )
    assert made.disks == (
        DiskMapping(disk="system", source_account="sys", target_account="sysasr"),
        DiskMapping(disk="data", source_account="bulk", target_account="bulkasr"),
    )
    assert made.policy == "default"
    assert {line.action for line in made.resources} == {"create"}


def test_the_target_vm_is_the_source_in_the_other_region() -> None:
    vm = plan().target_vm
    assert (vm.region, vm.name, vm.resource_group) == ("west", "web-1", "rg-asr")
    assert [(n.network, n.subnet, n.address, n.mac) for n in vm.nics] == [
        ("corp-asr", "front", "10.1.1.9", "52:54:00:00:00:01"),
        ("corp-asr", "back", "10.1.2.9", "52:54:00:00:00:02"),
    ]
    assert [(d.storage_account, d.format) for d in vm.disks] == [
        ("sysasr", "qcow2"),
        ("bulkasr", "qcow2"),
    ]
    assert vm.forwards == (80,)
    assert vm.availability_set == "set-asr"


def test_the_next_vm_reuses_what_the_first_one_made() -> None:
    second = replace(
        VM,
        name="web-2",
        nics=(replace(VM.nics[0], address="10.1.1.10", mac="52:54:00:00:00:03"),),
    )
    inventory = after(plan(), replace(INVENTORY, vms=(VM, second)))
    made = plan(replace(OPTIONS, vm="web-2"), inventory)
    assert {line.action for line in made.resources} == {"reuse"}
    assert not (made.new_groups)
    assert not (made.new_networks)
    assert not (made.new_accounts)
    assert not made.new_sets
    assert made.nics[0].target_address == "10.1.1.10"


def test_an_address_taken_in_the_target_gives_way_to_the_next_free_one() -> None:
    here = replace(VM.nics[0], network="corp-asr", address="10.1.1.9", mac="52:54:00:00:00:04")
    other = replace(VM, region="west", name="other", nics=(here,), host="h")
    inventory = replace(
        INVENTORY,
        vms=(VM, other),
        networks=(NETWORK, replace(NETWORK, region="west", name="corp-asr")),
    )
    assert [nic.target_address for nic in plan(inventory=inventory).nics] == [
        "10.1.1.4",
        "10.1.2.9",
    ]


def test_a_mac_that_a_vm_of_the_target_has_is_refused_on_whichever_host() -> None:
    here = replace(VM.nics[0], network="corp-asr", address="10.1.1.77")
    other = replace(VM, region="west", name="other", nics=(here,), host="h")
    site = replace(
        INVENTORY,
        vms=(VM, other),
        networks=(NETWORK, replace(NETWORK, region="west", name="corp-asr")),
    )
    with pytest.raises(Conflict, match="52:54:00:00:00:01 belongs to other in network") as refused:
        plan(inventory=site)
    assert refused.value.field == "target_networks"


def test_choices_overrule_defaults() -> None:
    dmz = VirtualNetwork(
        region="west",
        name="dmz",
        resource_group="x",
        address_space=("192.168.0.0/16",),
        subnets=(
            Subnet(name="b", prefix="192.168.2.0/24"),
            Subnet(name="a", prefix="192.168.1.0/24"),
            Subnet(name="front", prefix="192.168.3.0/24"),
        ),
    )
    fast = StorageAccount(region="west", name="fast", resource_group="x")
    inventory = replace(INVENTORY, networks=(NETWORK, dmz), accounts=(*INVENTORY.accounts, fast))
    made = plan(
        replace(
            OPTIONS,
            target_resource_group="dr",
            target_networks={"corp": "dmz"},
            target_accounts={"system": "fast"},
            cache_account="fast",
            target_availability_set="none",
            target_vm="web-1-dr",
            vcpus=4,
            memory_mib=512,
            addresses={"n0": "192.168.3.50"},
            exclude_disks=("data",),
            policy="gold",
        ),
        inventory,
    )
    vm = made.target_vm
    assert (vm.name, vm.resource_group, vm.vcpus, vm.memory_mib) == ("web-1-dr", "dr", 4, 512)
    assert (made.cache_region, made.cache_account) == ("west", "fast")
    assert [(n.subnet, n.address) for n in vm.nics] == [
        ("front", "192.168.3.50"),
        ("a", "192.168.1.4"),
    ]
    assert [d.name for d in vm.disks] == ["system"]
    assert not made.new_accounts
    assert vm.availability_set == ""
    assert made.policy == "gold"


TAKEN = replace(VM, region="west", name="web-1", nics=(), host="h")
REFUSALS: dict[str, tuple[ProtectOptions, Inventory, type[LeewardError], str]] = {
    "unknown VM": (replace(OPTIONS, vm="nope"), INVENTORY, NotFound, "vm"),
    "unknown region": (
        replace(OPTIONS, target_region="mars"),
        INVENTORY,
        NotFound,
        "target_region",
    ),
    "same region": (
        replace(OPTIONS, target_region="east"),
        INVENTORY,
        InvalidRequest,
        "target_region",
    ),
    "already protected": (OPTIONS, after(plan()), Conflict, "vm"),
    "no worker in the target": (
        OPTIONS,
        replace(INVENTORY, regions_with_workers=frozenset()),
        Conflict,
        "target_region",
    ),
    "no agent in the target": (
        OPTIONS,
        replace(INVENTORY, regions_with_agents=frozenset({"east"})),
        Conflict,
        "target_region",
    ),
    "unknown disk": (
        replace(OPTIONS, exclude_disks=("x",)),
        INVENTORY,
        InvalidRequest,
        "exclude_disks",
    ),
    "system disk excluded": (
        replace(OPTIONS, exclude_disks=("system",)),
        INVENTORY,
        InvalidRequest,
        "exclude_disks",
    ),
    "disk's account missing": (
        OPTIONS,
        replace(INVENTORY, accounts=INVENTORY.accounts[:1]),
        Conflict,
        "vm",
    ),
    "unknown target network": (
        replace(OPTIONS, target_networks={"corp": "x"}),
        INVENTORY,
        NotFound,
        "target_networks",
    ),
    "unknown target account": (
        replace(OPTIONS, target_accounts={"data": "x"}),
        INVENTORY,
        NotFound,
        "target_accounts",
    ),
    "unknown cache": (replace(OPTIONS, cache_account="x"), INVENTORY, NotFound, "cache_account"),
    "unknown set": (
        replace(OPTIONS, target_availability_set="x"),
        INVENTORY,
        NotFound,
        "target_availability_set",
    ),
    "VM name taken": (OPTIONS, replace(INVENTORY, vms=(VM, TAKEN)), Conflict, "target_vm"),
    "address clash": (
        replace(OPTIONS, addresses={"n0": "10.1.1.7", "n1": "10.1.1.7"}),
        INVENTORY,
        InvalidRequest,
        "addresses",
    ),
    "address outside": (
        replace(OPTIONS, addresses={"n0": "10.9.9.9"}),
        INVENTORY,
        InvalidRequest,
        "addresses",
    ),
    "address of the gateway": (
        replace(OPTIONS, addresses={"n0": "10.1.1.1"}),
        INVENTORY,
        InvalidRequest,
        "addresses",
    ),
    "unknown interface": (
        replace(OPTIONS, addresses={"n9": "10.1.1.7"}),
        INVENTORY,
        InvalidRequest,
        "addresses",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_in_one_sentence_naming_the_field(case: str) -> None:
    options, inventory, kind, field = REFUSALS[case]
    with pytest.raises(kind) as refused:
        plan(options, inventory)
    assert refused.value.field == field
    assert "\n" not in refused.value.message


def test_an_address_of_another_vm_is_a_clash() -> None:
    here = replace(VM.nics[0], network="corp-asr", address="10.1.1.7")
    other = replace(VM, region="west", name="other", nics=(here,), host="h")
    inventory = replace(
        INVENTORY,
        vms=(VM, other),
        networks=(NETWORK, replace(NETWORK, region="west", name="corp-asr")),
    )
    with pytest.raises(Conflict, match=r"10\.1\.1\.7 belongs to other"):
        plan(replace(OPTIONS, addresses={"n0": "10.1.1.7"}), inventory)


def test_the_failed_over_side_cannot_be_protected_meanwhile() -> None:
    failed_over = replace(TAKEN, name="web-1")
    inventory = replace(after(plan()), vms=(VM, failed_over))
    options = ProtectOptions(source_region="west", vm="web-1", target_region="east")
    with pytest.raises(Conflict, match="has failed over to"):
        plan(options, inventory)

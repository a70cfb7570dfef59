"""What may be made on a host, and the field each refusal names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from leeward.core.errors import Conflict, InvalidRequest, LeewardError
from leeward.fabric.admission import check_memory, check_network, check_vm, complete
from leeward.protocol.fabric import DiskSpec, NetworkSpec, NicSpec, SubnetSpec, VmSpec

FRONT = SubnetSpec(name="front", prefix="10.1.0.0/24", gateway="10.1.0.1")
BACK = SubnetSpec(name="back", prefix="10.1.1.0/24", gateway="10.1.1.1")
NETWORK = NetworkSpec(network_id="n1", name="corp", subnets=(FRONT, BACK))


def vm(vm_id: str = "web-1", **changes: Any) -> VmSpec:
    disk = DiskSpec(name="system", directory="/srv/disks", format="raw", size_bytes=1 << 20)
    spec = VmSpec(
        vm_id=vm_id,
        name="web-1",
        vcpus=1,
        memory_mib=256,
        firmware="bios",
        disks=(disk,),
        nics=(nic(),),
        forwards=(8080,),
    )
    return replace(complete(spec), **changes)


def nic(**changes: Any) -> NicSpec:
    plain = NicSpec(
        name="nic0",
        network_id="n1",
        subnet="front",
        address="10.1.0.4",
        prefix_length=24,
        mac="52:54:00:00:00:01",
    )
    return replace(plain, **changes)


def refusal(spec: VmSpec, *others: VmSpec) -> LeewardError:
    with pytest.raises(LeewardError) as caught:
        check_vm(spec, networks={"n1": NETWORK}, others=others)
    return caught.value


def test_a_proper_vm_is_admitted_beside_another() -> None:
    other = vm("db-1", nics=(nic(address="10.1.0.5", mac="52:54:00:00:00:02"),))
    check_vm(vm(), networks={"n1": NETWORK}, others=[other])


def test_an_address_of_another_vm_in_the_same_network_is_a_conflict() -> None:
    error = refusal(vm(), vm("db-1", nics=(nic(mac="52:54:00:00:00:02"),)))
    assert isinstance(error, Conflict)
    assert error.field == "address"
    assert "db-1" in str(error)


def test_the_same_address_in_another_network_is_no_conflict() -> None:
    twin = replace(NETWORK, network_id="n2")
    check_vm(
        vm(),
        networks={"n1": NETWORK, "n2": twin},
        others=[vm("db-1", nics=(nic(network_id="n2"),))],
    )


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"vm_id": "Not an id"}, "vm_id"),
        ({"firmware": "coreboot"}, "firmware"),
        ({"vcpus": 0}, "vcpus"),
        ({"memory_mib": 4}, "memory_mib"),
        ({"disks": ()}, "disks"),
        ({"forwards": (0,)}, "forwards"),
        ({"forwards": (80, 80)}, "forwards"),
        ({"nics": ()}, "forwards"),
        ({"nics": (nic(network_id="n9"),)}, "network"),
        ({"nics": (nic(subnet="middle"),)}, "subnet"),
        ({"nics": (nic(address="10.1.1.4"),)}, "address"),
        ({"nics": (nic(address="10.1.0.255"),)}, "address"),
        ({"nics": (nic(address="10.1.0.1"),)}, "address"),
        ({"nics": (nic(address="here"),)}, "address"),
        ({"nics": (nic(prefix_length=16),)}, "address"),
        ({"nics": (nic(mac="01:00:5e:00:00:01"),)}, "mac"),
        ({"nics": (nic(), nic(name="nic1", address="10.1.0.5"))}, "mac"),
        ({"nics": (nic(), nic(address="10.1.0.5", mac="52:54:00:00:00:02"))}, "nics"),
    ],
)
def test_a_refusal_names_the_field(changed: dict[str, Any], field: str) -> None:
    assert refusal(replace(vm(), **changed)).field == field


@pytest.mark.parametrize("name", ["", "UPPER", "a-name-that-is-too-long-for-a-serial"])
def test_a_disk_name_must_fit_its_serial_number(name: str) -> None:
    disk = DiskSpec(name=name, directory="/srv", format="raw", size_bytes=512)
    assert refusal(vm(disks=(disk,))).field == "disks"


def test_two_disks_of_one_name_are_refused() -> None:
    disk = DiskSpec(name="system", directory="/srv", format="raw", size_bytes=512)
    assert "two disks" in str(refusal(vm(disks=(disk, disk))))


def test_a_mac_is_made_where_none_is_given_and_is_always_the_same() -> None:
    once = complete(vm(nics=(nic(mac=""),))).nics[0].mac
    assert once == complete(vm(nics=(nic(mac=""),))).nics[0].mac
    assert once != complete(vm("db-1", nics=(nic(mac=""),))).nics[0].mac
    assert once.startswith("52:54:00:")


@pytest.mark.parametrize(
    ("subnets", "field"),
    [
        ((FRONT, FRONT), "subnets"),
        ((FRONT, replace(BACK, prefix="10.1.0.128/25", gateway="10.1.0.129")), "subnets"),
        ((replace(FRONT, prefix="10.1.0.0/33"),), "prefix"),
        ((replace(FRONT, prefix="10.1.0.0/30"),), "prefix"),
        ((replace(FRONT, gateway="10.2.0.1"),), "prefix"),
        ((replace(FRONT, name="Not a name"),), "subnets"),
    ],
)
def test_a_network_that_cannot_be_is_refused(subnets: tuple[SubnetSpec, ...], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_network(replace(NETWORK, subnets=subnets))
    assert caught.value.field == field


def test_a_network_id_must_fit_a_namespace() -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_network(replace(NETWORK, network_id="twelve-chars"))
    assert caught.value.field == "network_id"


def test_a_subnet_in_use_stays() -> None:
    without_front = replace(NETWORK, subnets=(BACK,))
    check_network(without_front, known=NETWORK, vms=[])
    with pytest.raises(Conflict, match="used by web-1"):
        check_network(without_front, known=NETWORK, vms=[vm()])


def test_a_vm_needs_memory_that_the_host_has() -> None:
    check_memory(vm(), 1024)
    with pytest.raises(Conflict) as caught:
        check_memory(vm(), 256)
    assert caught.value.field == "memory_mib"

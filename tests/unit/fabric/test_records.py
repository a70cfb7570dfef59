"""Records survive, tell what is there, and go last."""

from __future__ import annotations

from pathlib import Path

import pytest

from leeward.core.errors import InvalidRequest
from leeward.fabric.records import NetworkRecord, Phase, Records, VmRecord
from leeward.protocol.fabric import Forward, NetworkSpec, SubnetSpec, VmSpec

NETWORK = NetworkSpec(
    network_id="n1",
    name="corp",
    subnets=(SubnetSpec(name="front", prefix="10.1.0.0/24", gateway="10.1.0.1"),),
)


def test_a_vm_record_reads_back(tmp_path: Path) -> None:
    record = VmRecord(
        spec=VmSpec(
            vm_id="web-1", name="web", vcpus=1, memory_mib=64, firmware="bios", disks=(), nics=()
        ),
        phase=Phase.STARTING,
        overlays=frozenset({"system"}),
        bases={"system": "/run/base"},
        forwards=(Forward(guest_port=80, host_address="127.0.0.1", host_port=4000),),
    )
    records = Records(tmp_path, VmRecord)
    records.put("web-1", record)
    assert Records(tmp_path, VmRecord).get("web-1") == record
    assert list(records.all()) == [record]


def test_deleting_takes_all_that_belongs_to_it(tmp_path: Path) -> None:
    records = Records(tmp_path, NetworkRecord)
    records.put("n1", NetworkRecord(spec=NETWORK))
    (records.home("n1") / "dhcp-front" / "hosts").mkdir(parents=True)
    records.delete("n1")
    records.delete("n1")
    assert records.get("n1") is None
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_record_hides_no_other(tmp_path: Path) -> None:
    records = Records(tmp_path, NetworkRecord)
    records.put("n1", NetworkRecord(spec=NETWORK))
    records.put("n0", NetworkRecord(spec=NETWORK))
    (tmp_path / "n0" / "record.json").write_text("{")
    assert len(list(records.all())) == 1
    with pytest.raises(InvalidRequest, match="cannot be read"):
        records.get("n0")

"""What people type."""

from __future__ import annotations

import pytest

from leeward.cli import arguments
from leeward.cli.arguments import Reference
from leeward.core.errors import InvalidRequest
from leeward.model.drills import Probe, ProbeKind
from leeward.model.recovery import RetentionTier
from leeward.model.resources import Disk, NetworkInterface, Subnet


def test_reference_takes_its_region_from_either_place() -> None:
    assert arguments.parse_reference("east/web-1", None) == Reference("east", "web-1")
    assert arguments.parse_reference("web-1", "east") == Reference("east", "web-1")
    assert arguments.parse_reference("east/web-1", "east") == Reference("east", "web-1")


@pytest.mark.parametrize(
    ("text", "region"), [("web-1", None), ("east/web-1", "west"), ("a/b/c", None), ("/x", None)]
)
def test_reference_that_is_none(text: str, region: str | None) -> None:
    with pytest.raises(InvalidRequest):
        arguments.parse_reference(text, region)


def test_subnet() -> None:
    assert arguments.parse_subnet("front=10.10.1.0/24") == Subnet(
        name="front", prefix="10.10.1.0/24"
    )
    with pytest.raises(InvalidRequest, match="not NAME=PREFIX"):
        arguments.parse_subnet("10.10.1.0/24")


def test_disk() -> None:
    assert arguments.parse_disk("system=sa1,image=/i.raw") == Disk(
        name="system", storage_account="sa1", image="/i.raw"
    )
    assert arguments.parse_disk("data=sa2,size=64M,format=qcow2") == Disk(
        name="data", storage_account="sa2", size_bytes=64 << 20, format="qcow2"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("data=sa2", "neither a size nor an image"),
        ("data=sa2,size=many", "is not a size"),
        ("data=sa2,size=1G,format=vmdk", "neither raw nor qcow2"),
        ("data=sa2,sise=1G", "known are format=…, image=…, size=…"),
        ("data", "does not begin with NAME="),
        ("Data=sa2,size=1G", "cannot be a name"),
    ],
)
def test_disk_that_is_none(text: str, says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        arguments.parse_disk(text)
    assert says in str(caught.value)


def test_nic() -> None:
    assert arguments.parse_nic("front=corp/back,address=10.0.0.9") == NetworkInterface(
        name="front", network="corp", subnet="back", address="10.0.0.9"
    )
    with pytest.raises(InvalidRequest, match="not NETWORK/SUBNET"):
        arguments.parse_nic("front=corp")


@pytest.mark.parametrize(("text", "mib"), [("256M", 256), ("2G", 2048), ("512", 512)])
def test_memory(text: str, mib: int) -> None:
    assert arguments.parse_memory(text) == mib


@pytest.mark.parametrize("text", ["0", "100K", "lots", "1.5M"])
def test_memory_that_is_none(text: str) -> None:
    with pytest.raises(InvalidRequest, match="--memory"):
        arguments.parse_memory(text)


def test_tiers_and_durations() -> None:
    assert arguments.parse_tier("all:10m") == RetentionTier(every_seconds=0, for_seconds=600)
    assert arguments.parse_tier("1h:1d") == RetentionTier(every_seconds=3600, for_seconds=86400)
    assert arguments.parse_duration("90", field="x") == 90
    for text in ("10x", "", "m", "1.5h"):
        with pytest.raises(InvalidRequest):
            arguments.parse_duration(text, field="x")
    for text, seconds in {"1": 1.0, "0.25": 0.25, "2s": 2.0, "1m": 60.0}.items():
        assert arguments.parse_seconds(text, field="x") == seconds
    for text in ("nan", "-1", "1e3", "0.5m", "inf", ""):
        with pytest.raises(InvalidRequest, match="--rpo-alert"):
            arguments.parse_seconds(text, field="--rpo-alert")


def test_pairs() -> None:
    assert arguments.parse_pairs("--target-network", ["corp=lan"]) == {"corp": "lan"}
    with pytest.raises(InvalidRequest, match="--target-network"):
        arguments.parse_pairs("--target-network", ["corp"])


def test_probe() -> None:
    assert arguments.parse_probe("tcp:5432,timeout=2m") == Probe(
        kind=ProbeKind.TCP, port=5432, timeout_seconds=120
    )
    assert arguments.parse_probe("http:8080/check,status=204,text=ok") == Probe(
        kind=ProbeKind.HTTP, port=8080, path="/check", status=204, text="ok"
    )
    assert arguments.parse_probe("http:80").path == "/"
    for bad in ("8080", "udp:53", "tcp:80/x", "tcp:80,text=x", "http:80,status=ok", "http:x/"):
        with pytest.raises(InvalidRequest, match="--probe"):
            arguments.parse_probe(bad)

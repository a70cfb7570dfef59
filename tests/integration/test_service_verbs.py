"""Every verb against a real service process and nodes that say yes (or, when told, no)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import pytest
from tests.integration.service_rig import (
    FakeNode,
    ServiceProcess,
    World,
    running_service,
    wait_for,
    world,
)

from leeward.core.errors import HypervisorRefused, Unavailable
from leeward.model.recovery import ReplicationState
from leeward.protocol.messages import HydrationStatus, Verb

pytestmark = pytest.mark.integration


KINDS = ("resource-groups", "networks", "storage-accounts", "availability-sets")
_tags = count()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with running_service(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture
def site(service: ServiceProcess) -> Iterator[World]:
    with world(service, tag=f"-{next(_tags)}") as made:
        yield made


def test_protect_fail_over_change_commit_disable(site: World) -> None:
    site.add_vm()
    done = site.operator.done(site.protect())
    assert [step["name"] for step in done["steps"]][-1] == "initial replication"
    item = site.item()
    assert item["state"] == "protected"
    assert item["target_resource_group"] == "web-rg-asr"
    assert item["target_network"] == {"corp": "corp-asr"}
    assert item["health"]["replication"]["state"] == "streaming"
    assert item["health"]["rpo_seconds"] < 120
    assert (item["target"]["region"], item["target"]["name"]) == (site.west, "web-1")

    done = site.operator.done(site.item_verb("failover", recovery_point="latest"))
    item = site.item()
    assert item["state"] == "failed_over"
    assert item["epoch"] == 2
    assert item["recovery_point"] == done["result"]["recovery_point"]
    vm = site.operator.get(f"/regions/{site.west}/virtual-machines/web-1")
    assert vm["resource_group"] == "web-rg-asr"
    assert [(nic["network"], nic["subnet"]) for nic in vm["nics"]] == [
        ("corp-asr", "front"),
        ("corp-asr", "back"),
    ]
    assert vm["status"]["forwards"][0]["guest_port"] == 8080
    wait_for(lambda: Verb.REPLICATION_FENCE in site.source.verbs(), "the fence")

    points = site.operator.get(f"{site.items}/web-1/recovery-points")["items"]
    assert points[0]["time_ns"] >= points[-1]["time_ns"]
    other = points[-1]["id"]
    site.operator.done(site.item_verb("change-recovery-point", recovery_point=other))
    assert site.item()["recovery_point"] == other
    assert site.target.verbs()[-2:] == [Verb.RECOVERY_DISCARD, Verb.RECOVERY_BOOT]

    site.operator.done(site.item_verb("commit"))
    assert site.item()["state"] == "committed"
    for unwise in ("true", "false"):
        refused = site.operator.request("DELETE", f"{site.items}/web-1?delete_replica={unwise}")
        assert refused.status_code == 409
        assert "still reads its recovery point" in refused.json()["detail"]
    site.target.hydrations["web-1"] = HydrationStatus(
        vm_id="web-1", bytes_done=1, bytes_total=1, done=True
    )
    wait_for(
        lambda: any(e["kind"] == "item_hydrated" for e in site.operator.get("/events")["items"]),
        "hydration",
    )
    site.operator.done(site.operator.delete(f"{site.items}/web-1?delete_replica=true"))
    assert site.operator.get(site.items)["items"] == []
    # The target VM goes on in what was made for it; the cache nobody needs is gone.
    west = site.resources(site.west, "storage-accounts")
    assert {account["name"] for account in west} == {"websystemasr", "webdataasr"}
    east = site.resources(site.east, "storage-accounts")
    assert {account["name"] for account in east} == {"websystem", "webdata"}


def test_a_failed_protection_leaves_nothing(site: World) -> None:
    site.add_vm()
    before = [site.resources(site.west, kind) for kind in KINDS]
    for verb in (Verb.PROCESSING_START, Verb.REPLICATION_START):
        node = site.worker if verb is Verb.PROCESSING_START else site.source
        node.refuse[verb] = HypervisorRefused("no room for a tap")
        ended = site.operator.ended(site.protect())
        assert ended["state"] == "failed"
        assert ended["error_code"] == "hypervisor_refused"
        assert "no room for a tap" in ended["error"]
        node.refuse.clear()
        assert site.operator.get(site.items)["items"] == []
        assert [site.resources(site.west, kind) for kind in KINDS] == before
        assert site.worker.processings == {}
        assert site.source.replications == {}
    site.operator.done(site.protect())


def test_a_failed_failover_can_be_tried_again(site: World) -> None:
    site.add_vm()
    site.operator.done(site.protect())
    site.target.refuse[Verb.RECOVERY_BOOT] = HypervisorRefused("no memory left")
    ended = site.operator.ended(site.item_verb("failover"))
    assert ended["state"] == "failed"
    item = site.item()
    assert item["state"] == "degraded"
    assert "no memory left" in item["problem"]
    assert (
        site.operator.request("GET", f"/regions/{site.west}/virtual-machines/web-1").status_code
        == 404
    )
    site.target.refuse.clear()
    site.operator.done(site.item_verb("failover"))
    assert site.item()["state"] == "failed_over"
    assert site.item()["epoch"] == 3
    assert site.item()["problem"] == ""


def test_failover_when_the_source_region_is_gone(site: World) -> None:
    site.add_vm()
    site.operator.done(site.protect())
    site.source.stop()
    point = site.worker.add_point(site.item()["id"])
    site.worker.makes_points = False
    done = site.operator.done(site.item_verb("failover"), seconds=5)
    assert done["result"]["recovery_point"] >= point.id
    # It comes back: first of all it is told to stop.
    token = site.operator.post(f"/regions/{site.east}/enrolment-tokens")["token"]
    again = FakeNode(site.service.url, site.source.role, site.east, "host-1", token)
    again.vms.update(site.source.vms)
    again.replications.update(site.source.replications)
    site.nodes.append(again)
    again.start()
    wait_for(lambda: Verb.REPLICATION_FENCE in again.verbs(), "the fence")
    refused = site.operator.request(
        "POST", f"/regions/{site.east}/virtual-machines/web-1/start", {}
    )
    assert refused.status_code == 409


def test_disabling_removes_what_protection_made(site: World) -> None:
    site.add_vm()
    site.operator.done(site.protect())
    site.operator.done(site.operator.delete(f"{site.items}/web-1?delete_replica=true"))
    assert all(site.resources(site.west, kind) == [] for kind in KINDS)
    assert site.source.replications == {}
    assert site.worker.processings == {}
    site.operator.done(site.protect())


def test_cancelling_a_protection_undoes_it(site: World) -> None:
    site.add_vm()
    site.worker.makes_points = False
    job = site.protect()
    wait_for(lambda: site.item()["state"] == "initial_replication", "initial replication")
    site.operator.post(f"/jobs/{job['id']}/cancel")
    ended = site.operator.ended(job)
    assert ended["state"] == "cancelled"
    assert site.operator.get(site.items)["items"] == []
    assert site.source.replications == {}


def test_a_failed_vm_creation_leaves_nothing(site: World) -> None:
    site.source.refuse[Verb.VM_CREATE] = Unavailable("cannot read /images/system.raw")
    with pytest.raises(AssertionError, match=r"cannot read /images/system\.raw"):
        site.add_vm()
    assert site.operator.get(f"/regions/{site.east}/virtual-machines")["items"] == []
    assert site.source.vms == {}
    site.source.refuse.clear()
    site.add_vm()
    vm = site.operator.get(f"/regions/{site.east}/virtual-machines/web-1")
    assert [disk["size_bytes"] for disk in vm["disks"]] == [1 << 30, 1 << 30]
    assert vm["nics"][0]["address"] == "10.10.1.4"


def test_states_follow_the_nodes(site: World) -> None:
    site.add_vm()
    site.operator.done(site.protect())
    item_id = site.item()["id"]
    status = site.source.replications[item_id]
    site.source.replications[item_id] = replace(
        status, state=ReplicationState.TRACKING, problem="the cache store is full"
    )
    wait_for(lambda: site.item()["state"] == "degraded", "degraded")
    assert "the cache store is full" in site.item()["problem"]
    site.source.replications[item_id] = replace(status, state=ReplicationState.RESYNCING)
    wait_for(lambda: site.item()["state"] == "resyncing", "resyncing")
    site.source.replications[item_id] = status
    wait_for(lambda: site.item()["state"] == "protected", "protected")
    assert site.item()["problem"] == ""

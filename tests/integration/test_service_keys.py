"""Keys by id, a scrub, and a vault made anew, against real service processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.service_rig import (
    Json,
    ServiceProcess,
    World,
    running_service,
    wait_for,
    world,
)

from leeward.core.codec import from_plain
from leeward.protocol.messages import ScrubReport, Verb
from leeward.protocol.rebuild import AboutItem, FoundItem, FoundItems

pytestmark = pytest.mark.integration

OLD, NEW = "0123456789abcdef", "fedcba9876543210"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with running_service(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture
def site(service: ServiceProcess) -> Iterator[World]:
    with world(service, tag="-keys") as made:
        yield made


def give(site: World, *key_ids: str) -> None:
    """Every node says that it has exactly these keys."""
    for node in site.nodes:
        node.key_ids = key_ids
    wait_for(
        lambda: (
            [key["key_id"] for key in keys(site) if len(key["nodes"]) >= len(site.nodes)]
            == sorted(key_ids)
        ),
        "the nodes' word on their keys",
    )


def keys(site: World) -> list[Json]:
    found: list[Json] = site.operator.get(f"/vaults/{site.vault}/keys")["items"]
    return found


def key_ids_told(site: World, verb: Verb) -> list[object]:
    return [
        command.arguments["key_id"]
        for node in site.nodes
        for command in node.log
        if command.verb is verb
    ]


def test_an_item_is_encrypted_with_the_vaults_key_and_goes_on_under_a_new_one(site: World) -> None:
    site.add_vm()
    operator, vault = site.operator, f"/vaults/{site.vault}"
    operator.put(f"{vault}/policies/secret", {"encryption": "aes-256-gcm", "compression": "lz4"})
    wanted = {"source_region": site.east, "vm": "web-1", "target_region": site.west}

    def refusal(path: str, body: dict[str, object]) -> str:
        reply = operator.request("POST", path, body)
        assert reply.status_code in (400, 409), reply.text
        return str(reply.json()["detail"])

    assert "has no key" in refusal(site.items, {**wanted, "policy": "secret"})
    assert "not the id of a key" in refusal(f"{vault}/use-key", {"key_id": "my secret"})
    operator.done(operator.post(f"{vault}/use-key", {"key_id": OLD}))
    assert f"does not have the key {OLD}" in refusal(site.items, {**wanted, "policy": "secret"})
    give(site, OLD)
    operator.done(site.protect(policy="secret"))
    assert key_ids_told(site, Verb.REPLICATION_START) == [OLD]
    assert key_ids_told(site, Verb.PROCESSING_START) == [OLD]
    wait_for(lambda: site.item()["state"] == "protected", "protection")

    assert "does not have the key" in refusal(f"{vault}/use-key", {"key_id": NEW})
    assert operator.get(vault)["key_id"] == OLD
    give(site, OLD, NEW)
    operator.done(operator.post(f"{vault}/use-key", {"key_id": NEW}))
    assert key_ids_told(site, Verb.REPLICATION_START) == [OLD, NEW]
    assert key_ids_told(site, Verb.PROCESSING_START) == [OLD, NEW]
    assert [(key["key_id"], key["is_current"]) for key in keys(site)] == [(OLD, False), (NEW, True)]


def test_nothing_fails_over_to_what_a_scrub_has_quarantined(site: World) -> None:
    site.add_vm("web-3")
    site.operator.done(site.protect("web-3"))
    path = f"{site.items}/web-3/recovery-points"
    points = [point["id"] for point in site.operator.get(path)["items"]]
    report = ScrubReport(
        item_id=site.item("web-3")["id"],
        objects=3,
        damaged=("items/x/disks/system/segments/1: does not match its checksum",),
        quarantined=(points[-1],),
        heals=True,
    )
    site.worker.scrubbed, site.worker.quarantined = report, report.quarantined

    def quarantined() -> list[str]:
        listed = site.operator.get(path)["items"]
        return [point["id"] for point in listed if point["is_quarantined"]]

    wait_for(lambda: quarantined() == [points[-1]], "the worker's word")
    done = site.operator.done(site.item_verb("scrub", "web-3"))
    assert done["result"]["quarantined"] == [points[-1]]
    events = site.operator.get("/events")["items"]
    assert any(
        event["kind"] == "item_damaged" and points[-1] in event["message"] for event in events
    )
    refused = site.operator.request(
        "POST", f"{site.items}/web-3/failover", {"recovery_point": points[-1]}
    )
    assert refused.status_code == 409
    assert "is quarantined" in refused.json()["detail"]
    site.operator.done(site.item_verb("failover", "web-3", recovery_point="latest-processed"))
    assert site.item("web-3")["recovery_point"] != points[-1]


def test_space_is_reclaimed_when_asked(site: World) -> None:
    site.add_vm("web-4")
    site.operator.done(site.protect("web-4"))
    told = site.operator.done(site.item_verb("compact", "web-4", dry_run=True))["result"]
    assert (told["stored_bytes"], told.get("freed_bytes", 0)) == (5, 0)
    done = site.operator.done(site.item_verb("compact", "web-4"))["result"]
    assert done["freed_bytes"] == 3
    refused = site.operator.request("POST", f"{site.items}/web-9/compact", {})
    assert refused.status_code == 404


def test_a_vault_is_made_anew_and_its_item_fails_over(site: World, tmp_path: Path) -> None:
    site.add_vm("web-2")
    site.operator.done(site.protect("web-2"))
    started = next(c for c in site.worker.log if c.verb is Verb.PROCESSING_START)
    about = from_plain(started.arguments["about"], AboutItem)
    item_id = about.item.id
    found = FoundItem(
        item_id=item_id,
        epoch=1,
        about=about,
        urls={"system": "file:///elsewhere/system"},
        point_count=3,
    )
    with running_service(tmp_path / "new") as service, world(service, tag="-keys") as anew:
        anew.worker.found = FoundItems(
            items=(found, FoundItem(item_id="item-broken", problem="its catalog is damaged"))
        )
        job = anew.operator.done(anew.operator.post("/rebuild", {"stores": ["file:///elsewhere"]}))
        assert job["result"]["items"] == ["web-2"]
        assert job["result"]["problems"] == ["item-broken: its catalog is damaged"]
        assert anew.item("web-2")["id"] == item_id
        assert anew.item("web-2")["state"] == "degraded"
        accounts = {
            each["name"]: each["url"] for each in anew.resources(anew.west, "storage-accounts")
        }
        assert accounts["websystemasr"] == "file:///elsewhere/system"
        again = anew.operator.done(
            anew.operator.post("/rebuild", {"stores": ["file:///elsewhere"]})
        )
        assert again["result"] == job["result"], "asked again it changes nothing"
        anew.operator.done(anew.item_verb("failover", "web-2", recovery_point="latest"))
        assert anew.item("web-2")["state"] == "failed_over"
        boot = next(c for c in anew.target.log if c.verb is Verb.RECOVERY_BOOT)
        assert boot.arguments["replicas"][0]["target_url"] == "file:///elsewhere/system"  # type: ignore[index]

"""The whole path through real object store servers, encrypted, the key changed on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.contracts.servers import azure_url, s3_url
from tests.simulation.world import DISKS, EPOCH, ITEM, Source, World, drain

from leeward.core.clock import SystemClock
from leeward.core.codec import to_plain
from leeward.core.errors import KeyMissing
from leeward.mobility.upload import Uploader
from leeward.model.recovery import ItemState, Policy, ReplicatedItem, Vault
from leeward.model.resources import StorageAccount, VirtualMachine
from leeward.object_store.open import open_store
from leeward.processor.found_items import find_items
from leeward.processor.item import ItemProcessor
from leeward.protocol.fabric import ProcessingSpec, ReplicaDisk
from leeward.protocol.rebuild import AboutItem
from leeward.replica.disk import open_point
from leeward.replica.sealing import Key, KeyedStore, Keyring, keyring

pytestmark = pytest.mark.integration

KEYS = [Key(bytes([number]) * 32) for number in (1, 2)]
ABOUT = AboutItem(
    vault=Vault(name="main", key_id=KEYS[0].id),
    policy=Policy(name="secret", encryption="aes-256-gcm", compression="lz4"),
    item=ReplicatedItem(
        id=ITEM,
        name="web-1",
        vault="main",
        policy="secret",
        state=ItemState.PROTECTED,
        epoch=EPOCH,
        source_region="east",
        source_vm="web-1",
        target_region="west",
        target_resource_group="web",
    ),
    target_vm=VirtualMachine(region="west", name="web-1", resource_group="web"),
    cache_region="east",
    cache=StorageAccount(region="east", name="cache", resource_group="web"),
)


def keyed(keys: Keyring) -> Callable[[str], KeyedStore]:
    return lambda url: KeyedStore(open_store(url), keys)


@pytest.mark.parametrize("new_url", [s3_url, azure_url])
def test_cuts_become_points_in_a_cloud_store(new_url: Callable[[], str]) -> None:
    cache, target = new_url(), new_url()
    replicas = tuple(
        ReplicaDisk(disk=disk.name, size_bytes=disk.size_bytes, target_url=target) for disk in DISKS
    )
    spec = replace(
        World().spec(),
        cache_url=cache,
        catalog_url=target,
        replicas=replicas,
        compression="lz4",
        about=to_plain(ABOUT),
    )
    source = Source(1)
    for key in KEYS:
        replicate(spec, keyed(keyring(KEYS, key)), source)
    stores = {disk.name: keyed(keyring(KEYS))(target) for disk in DISKS}
    found = find_items([target], keyed(keyring(KEYS))).items[0]
    assert (found.about, found.problem, found.point_count) == (ABOUT, "", len(source.contents))
    assert found.urls == {disk.name: target for disk in DISKS}
    for time_ns, contents in source.contents.items():
        point = f"rp-0001-{list(source.contents).index(time_ns) + 1:08d}"
        disks = open_point(stores["system"], stores, ITEM, point)
        assert tuple(disks[disk.name].read(0, disk.size_bytes) for disk in DISKS) == contents
        for disk in disks.values():
            disk.close()
    assert KEYS[1].id in find_items([target], keyed(keyring(KEYS[:1]))).items[0].problem
    with pytest.raises(KeyMissing, match=KEYS[0].id):
        open_point(open_store(target), {}, ITEM, "latest")


def replicate(spec: ProcessingSpec, opener: Callable[[str], KeyedStore], source: Source) -> None:
    """Six more cuts have gone through the cache into the target, and out of the cache."""
    uploader = Uploader(opener(spec.cache_url), ITEM, EPOCH, compression="lz4", workers=2)
    processor = ItemProcessor(spec, opener, SystemClock(), copiers=2)
    try:
        for _ in range(6):
            uploader.upload(source.next_cut())
        drain(processor)
    finally:
        uploader.close()
        processor.close()
    assert not [name for name in opener(spec.cache_url).list("items/") if "/cuts/" in name]

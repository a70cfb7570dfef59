"""A replicated item → what its worker and its source's agent are told.

Owns: where an item's cache, catalog and replicas are, its key, and what of it goes into the catalog
so that a vault that is lost can be made anew. Must not know: commands or their order.
"""

from __future__ import annotations

from dataclasses import replace

from leeward.core.codec import to_plain
from leeward.core.errors import Conflict
from leeward.failover.disks import with_all_disks
from leeward.model.recovery import AES_256_GCM, NetworkMapping, Policy, Vault
from leeward.model.resources import (
    AvailabilitySet,
    ResourceGroup,
    StorageAccount,
    VirtualMachine,
    VirtualNetwork,
)
from leeward.protocol.fabric import ProcessingSpec, ReplicationSpec
from leeward.protocol.rebuild import AboutItem
from leeward.vault.items import ItemRecord
from leeward.vault.records import Records
from leeward.workflows.bench import accounts_by_name
from leeward.workflows.consistency import group_of
from leeward.workflows.specs import replica_disks, vm_id


def processing_spec(records: Records, record: ItemRecord) -> ProcessingSpec:
    """Return what a worker is told of the item; the catalog lies with the system disk."""
    item = record.item
    targets = accounts_by_name(records, item.target_region)
    cache = records.resources.get(StorageAccount, record.cache_region, item.cache_account).value
    policy = records.resources.get(Policy, item.vault, item.policy).value
    replicas = replica_disks(*with_all_disks(item, record.target_vm), targets)
    group = group_of(records, item.vault, item.name)
    return ProcessingSpec(
        item_id=item.id,
        epoch=item.epoch,
        cache_url=cache.url,
        catalog_url=replicas[0].target_url,
        replicas=replicas,
        tiers=policy.tiers,
        compression=policy.compression,
        key_id=item_key_id(records, item.vault, item.policy),
        consistency_group=group.id if group else "",
        about=to_plain(about_item(records, record)),
    )


def replication_spec(records: Records, record: ItemRecord) -> ReplicationSpec:
    """Return what the agent of the item's source is told."""
    item = record.item
    vm = records.resources.get(VirtualMachine, item.source_region, item.source_vm).value
    policy = records.resources.get(Policy, item.vault, item.policy).value
    cache = records.resources.get(StorageAccount, record.cache_region, item.cache_account).value
    return ReplicationSpec(
        item_id=item.id,
        epoch=item.epoch,
        vm_id=vm_id(vm.name),
        disks=tuple(mapping.disk for mapping in item.disks),
        cache_url=cache.url,
        cut_interval_seconds=policy.cut_interval_seconds,
        compression=policy.compression,
        key_id=item_key_id(records, item.vault, item.policy),
        vm_config=to_plain(vm),
        bandwidth=policy.bandwidth,
        app_consistent_seconds=policy.app_consistent_seconds,
        is_held=bool(item.next_cache_account),
    )


def item_key_id(records: Records, vault: str, policy: str) -> str:
    """Return the id of the key that an item of that policy is encrypted with, "" if it is not.

    Raises: Conflict when it should be and the vault has no key.
    """
    if records.resources.get(Policy, vault, policy).value.encryption != AES_256_GCM:
        return ""
    key_id: str = records.resources.get(Vault, "", vault).value.key_id
    if not key_id:
        raise Conflict(
            f"policy {policy} encrypts, and vault {vault} has no key",
            field="policy",
            hint="`leeward vault key new FILE` makes one; give the file to every agent and worker, "
            f"then `leeward vault key use {vault} ID`",
        )
    return key_id


def about_item(records: Records, record: ItemRecord) -> AboutItem:
    """Return all that the vault knows of the item and that a failover of it needs."""
    item = record.item
    region, group = item.target_region, item.target_resource_group
    used_accounts = {mapping.target_account for mapping in item.all_disks}
    networks = {
        stored.name: stored.value for stored in records.resources.listed(VirtualNetwork, region)
    }
    groups = records.resources.find(ResourceGroup, region, group)
    sets = records.resources.find(AvailabilitySet, region, item.target_availability_set)
    return AboutItem(
        vault=records.resources.get(Vault, "", item.vault).value,
        policy=records.resources.get(Policy, item.vault, item.policy).value,
        item=replace(item, next_cache_account=""),  # no job goes on with it in another vault
        target_vm=record.target_vm,
        cache_region=record.cache_region,
        cache=records.resources.get(StorageAccount, record.cache_region, item.cache_account).value,
        accounts=tuple(
            account
            for name, account in sorted(accounts_by_name(records, region).items())
            if name in used_accounts
        ),
        groups=(groups.value,) if groups else (),
        networks=tuple(
            networks[name] for name in sorted(set(item.target_network.values()) & set(networks))
        ),
        sets=(sets.value,) if sets else (),
        consistency_group=group_of(records, item.vault, item.name),
        mappings=tuple(
            stored.value
            for stored in records.resources.listed(NetworkMapping)
            if (stored.value.source_region, stored.value.target_region)
            == (item.source_region, item.target_region)
        ),
    )

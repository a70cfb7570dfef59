"""Orders by which an item goes on being processed and replicated, as the vault has it.

Owns: that such an order is never queued behind one that was made from what the vault said later: a
worker that is told to process what another job has just ended would do so for good. Must not know:
why a node is told.
"""

from __future__ import annotations

from collections.abc import Callable

from leeward.core.codec import to_plain
from leeward.model.recovery import Policy, Vault
from leeward.protocol.messages import Verb
from leeward.vault.items import ItemRecord
from leeward.vault.nodes import NodeRecord
from leeward.vault.records import Records
from leeward.workflows.consistency import group_of
from leeward.workflows.dispatch import Order
from leeward.workflows.item_specs import processing_spec, replication_spec


def go_on_processing(records: Records, record: ItemRecord) -> Order:
    """Return what has the item's worker process it as the vault says now."""
    return Order(
        node=records.nodes.get(record.worker_id),
        verb=Verb.PROCESSING_START,
        arguments=to_plain(processing_spec(records, record)),
        key=record.item.id,
        holds=_unchanged(records, record),
    )


def go_on_replicating(records: Records, record: ItemRecord, agent: NodeRecord) -> Order:
    """Return what has the agent of the item's source replicate it as the vault says now."""
    return Order(
        node=agent,
        verb=Verb.REPLICATION_START,
        arguments=to_plain(replication_spec(records, record)),
        key=record.item.id,
        holds=_unchanged(records, record),
    )


def _unchanged(records: Records, record: ItemRecord) -> Callable[[Records], bool]:
    item_id, before = record.item.id, _basis(records, record)

    def holds(records: Records) -> bool:
        now = records.items.find(item_id)
        return now is not None and _basis(records, now) == before

    return holds


def _basis(records: Records, record: ItemRecord) -> tuple[object, ...]:
    """Return what of the vault such orders follow from, as far as jobs of others change it."""
    item = record.item
    policy = records.resources.find(Policy, item.vault, item.policy)
    vault = records.resources.find(Vault, "", item.vault)
    group = group_of(records, item.vault, item.name)
    return (
        (record.is_replicating, record.worker_id, item.epoch),
        (record.cache_region, item.cache_account, item.next_cache_account),
        (item.all_disks, record.target_vm),
        policy.value if policy else None,
        vault.value.key_id if vault else "",
        group.id if group else "",
    )

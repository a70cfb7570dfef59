"""Replicated items and their recovery points.

Owns: their rows, and that an item changes only from the version that was read. Must not know: when
an item may change, that is model.recovery's table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import sqlalchemy as sa

from leeward.core.codec import from_plain, to_plain
from leeward.core.errors import Conflict, NotFound
from leeward.model.recovery import (
    Consistency,
    FrozenTime,
    RecoveryPoint,
    ReplicatedItem,
    SharedMark,
)
from leeward.model.resources import VirtualMachine
from leeward.vault.tables import items, recovery_points

_IDS_MAX = 500
"""In one statement: databases limit its parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemRecord:
    """An item and what the service keeps beside it."""

    item: ReplicatedItem
    target_vm: VirtualMachine
    """What it becomes when it fails over."""
    cache_region: str
    worker_id: str = ""
    """The node that processes it; "" until one was chosen."""
    is_replicating: bool = False
    """Whether its state follows the nodes' reports."""
    is_hydrated: bool = False
    """Whether the failed-over VM needs the replica no more."""
    version: int = 1


class ItemStore:
    """The rows of one transaction."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def insert(self, record: ItemRecord) -> None:
        """The item exists. Raises: Conflict if the vault has one of that name."""
        self._connection.execute(
            items.insert().values(
                id=record.item.id,
                name=record.item.name,
                vault=record.item.vault,
                version=1,
                **_values(record),
            )
        )

    def update(self, record: ItemRecord) -> ItemRecord:
        """Return the record as it is now stored. Raises: Conflict when the row changed since
        `record` was read, or is gone."""
        changed = self._connection.execute(
            items.update()
            .where(items.c.id == record.item.id, items.c.version == record.version)
            .values(version=record.version + 1, **_values(record))
        )
        if changed.rowcount != 1:
            raise Conflict(f"item {record.item.name} has just been changed")
        return self.by_id(record.item.id)

    def delete(self, item_id: str) -> None:
        """The item and its recovery points are gone from the vault. Idempotent."""
        self._connection.execute(items.delete().where(items.c.id == item_id))

    def by_id(self, item_id: str) -> ItemRecord:
        """Return the item. Raises: NotFound."""
        found = self.find(item_id)
        if found is None:
            raise NotFound(f"there is no replicated item {item_id}")
        return found

    def find(self, item_id: str) -> ItemRecord | None:
        """Return the item, or None."""
        row = self._connection.execute(sa.select(items).where(items.c.id == item_id)).one_or_none()
        return None if row is None else _record(row)

    def get(self, vault: str, name: str) -> ItemRecord:
        """Return the vault's item of that name. Raises: NotFound."""
        row = self._connection.execute(
            sa.select(items).where(items.c.vault == vault, items.c.name == name)
        ).one_or_none()
        if row is None:
            raise NotFound(f"there is no replicated item {name} in vault {vault}")
        return _record(row)

    def listed(self, *, vault: str | None = None, region: str | None = None) -> list[ItemRecord]:
        """Return items by vault and name; of one vault, or touching one region, if given."""
        query = sa.select(items).order_by(items.c.vault, items.c.name)
        if vault is not None:
            query = query.where(items.c.vault == vault)
        if region is not None:
            query = query.where(
                sa.or_(items.c.source_region == region, items.c.target_region == region)
            )
        return [_record(row) for row in self._connection.execute(query)]

    def named(self, vault: str, names: Iterable[str]) -> list[ItemRecord]:
        """Return those of a vault's items of these names that exist, by name."""
        query = sa.select(items).where(items.c.vault == vault, items.c.name.in_(list(names)))
        return [_record(row) for row in self._connection.execute(query.order_by(items.c.name))]

    def by_ids(self, ids: Iterable[str]) -> dict[str, ItemRecord]:
        """Return those of the items that exist, by id."""
        rows = self._connection.execute(sa.select(items).where(items.c.id.in_(list(ids))))
        return {row.id: _record(row) for row in rows}

    def with_test_vm(self, region: str) -> list[ItemRecord]:
        """Return the items whose test VM is in the region, by id."""
        where = items.c.body["rehearsal"]["region"].as_string() == region
        rows = self._connection.execute(sa.select(items).where(where).order_by(items.c.id))
        return [_record(row) for row in rows]

    def replicating(self) -> list[ItemRecord]:
        """Return the items whose state follows the nodes' reports."""
        rows = self._connection.execute(sa.select(items).where(items.c.is_replicating))
        return [_record(row) for row in rows]


class PointStore:
    """Recovery points, as workers list them. The rows of one transaction."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def add(self, item_id: str, points: Iterable[RecoveryPoint]) -> int:
        """The points are listed; return how many were not before."""
        fresh = {point.id: point for point in points}
        for some in _batches(list(fresh)):
            known = sa.select(recovery_points.c.id).where(
                recovery_points.c.item_id == item_id, recovery_points.c.id.in_(some)
            )
            for point_id in self._connection.execute(known).scalars().all():
                del fresh[point_id]
        if fresh:
            self._connection.execute(
                recovery_points.insert(),
                [
                    {
                        "item_id": item_id,
                        "id": point.id,
                        "epoch": point.epoch,
                        "sequence": point.sequence,
                        "time_ns": point.time_ns,
                        "consistency": point.consistency.value,
                        "shared_id": point.shared.id if point.shared else "",
                        "shared": to_plain(point.shared) if point.shared else None,
                        "frozen": to_plain(point.frozen) if point.frozen else None,
                    }
                    for point in fresh.values()
                ],
            )
        return len(fresh)

    def remove(self, item_id: str, ids: Iterable[str]) -> None:
        """Those points are not listed. Idempotent."""
        for some in _batches(ids):
            self._connection.execute(
                recovery_points.delete().where(
                    recovery_points.c.item_id == item_id, recovery_points.c.id.in_(some)
                )
            )

    def keep(self, item_id: str, ids: Collection[str]) -> None:
        """No other points than those are listed."""
        listed = sa.select(recovery_points.c.id).where(recovery_points.c.item_id == item_id)
        self.remove(item_id, set(self._connection.execute(listed).scalars()) - set(ids))

    def listed(self, item_id: str, *, limit: int | None = None) -> list[RecoveryPoint]:
        """Return the item's points, newest first; at most `limit`."""
        rows = self._connection.execute(
            sa.select(recovery_points)
            .where(recovery_points.c.item_id == item_id)
            .order_by(recovery_points.c.epoch.desc(), recovery_points.c.sequence.desc())
            .limit(limit)
        )
        return [_point(row) for row in rows]

    def shared(self, item_ids: Iterable[str]) -> dict[str, list[RecoveryPoint]]:
        """Return the items' points that were made together with others', newest first, by item."""
        found: dict[str, list[RecoveryPoint]] = {item_id: [] for item_id in item_ids}
        rows = self._connection.execute(
            sa.select(recovery_points)
            .where(recovery_points.c.item_id.in_(list(found)), recovery_points.c.shared_id != "")
            .order_by(recovery_points.c.epoch.desc(), recovery_points.c.sequence.desc())
        )
        for row in rows:
            found[row.item_id].append(_point(row))
        return found

    def is_shared(self, item_ids: Iterable[str], shared_id: str) -> bool:
        """Say whether every one of the items has its part of that shared point."""
        wanted = set(item_ids)
        rows = self._connection.execute(
            sa.select(recovery_points.c.item_id).where(
                recovery_points.c.item_id.in_(wanted), recovery_points.c.shared_id == shared_id
            )
        )
        return wanted == set(rows.scalars())

    def find(self, item_id: str, point_id: str) -> RecoveryPoint | None:
        """Return the item's point of that id, or None."""
        row = self._connection.execute(
            sa.select(recovery_points).where(
                recovery_points.c.item_id == item_id, recovery_points.c.id == point_id
            )
        ).one_or_none()
        return None if row is None else _point(row)

    def newest(self, item_id: str) -> RecoveryPoint | None:
        """Return the item's newest point, or None."""
        points = self.listed(item_id, limit=1)
        return points[0] if points else None


def _batches(ids: Iterable[str]) -> Iterator[list[str]]:
    """Yield the ids in lists that one statement takes."""
    left = iter(ids)
    while some := list(islice(left, _IDS_MAX)):
        yield some


def _values(record: ItemRecord) -> dict[str, object]:
    return {
        "source_region": record.item.source_region,
        "target_region": record.item.target_region,
        "body": to_plain(record.item),
        "target_vm": to_plain(record.target_vm),
        "cache_region": record.cache_region,
        "worker_id": record.worker_id,
        "is_replicating": record.is_replicating,
        "is_hydrated": record.is_hydrated,
    }


def _record(row: sa.Row[tuple[object, ...]]) -> ItemRecord:
    return ItemRecord(
        item=from_plain(row.body, ReplicatedItem),
        target_vm=from_plain(row.target_vm, VirtualMachine),
        cache_region=row.cache_region,
        worker_id=row.worker_id,
        is_replicating=row.is_replicating,
        is_hydrated=row.is_hydrated,
        version=row.version,
    )


def _point(row: sa.Row[tuple[object, ...]]) -> RecoveryPoint:
    return RecoveryPoint(
        id=row.id,
        epoch=row.epoch,
        sequence=row.sequence,
        time_ns=row.time_ns,
        consistency=Consistency(row.consistency),
        shared=from_plain(row.shared, SharedMark) if row.shared else None,
        frozen=from_plain(row.frozen, FrozenTime) if row.frozen else None,
    )

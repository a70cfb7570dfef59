"""Which shared recovery point several items of a consistency group go to.

Owns: that they all get parts of one, also those whose failover is under way already. Must not know:
what is done with it. The rules are failover.shared's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from leeward.core.codec import from_plain
from leeward.failover.plan import DRAIN_SECONDS
from leeward.failover.shared import LATEST_SHARED, choose_shared
from leeward.model.groups import ConsistencyGroup, SharedPoint
from leeward.model.recovery import ItemState
from leeward.vault.items import ItemRecord
from leeward.vault.jobs import JobRecord
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.conductor import Conductor
from leeward.workflows.consistency import members_of, shared_points
from leeward.workflows.failover_verbs import ChangeArguments, FailoverArguments
from leeward.workflows.monitor import item_key

_LOOK_SECONDS = 0.2
_MOVES = ("item.failover", "item.planned-failover", "item.change-recovery-point")


class SharedChoice:
    """Chooses, for verbs of groups and plans."""

    def __init__(self, bench: Bench, conductor: Callable[[], Conductor]) -> None:
        self._bench = bench
        self._conductor = conductor

    def listed(self, records: Records, group: ConsistencyGroup) -> tuple[SharedPoint, ...]:
        """Return the group's shared points, newest first."""
        return shared_points(self._bench, records, group, members_of(records, group))

    def choose(
        self,
        records: Records,
        group: ConsistencyGroup,
        wanted: str,
        *,
        begun: Mapping[str, str] | None = None,
    ) -> SharedPoint:
        """Return the shared point that `wanted` names now. begun: item's id → the point it has
        begun from already, besides those that have failed over or are about to. Raises: as
        `choose_shared`."""
        members = members_of(records, group)
        bound = {**_under_way(records, members), **(begun or {})}
        shared = shared_points(self._bench, records, group, members)
        items = [record.item for record in members]
        return choose_shared(group, items, shared, wanted, begun=bound)

    def wait_newest(self, group: ConsistencyGroup, wanted: str) -> None:
        """Return when the newest shared point that all members have told of is listed, if the
        latest is wanted; it is waited for as `latest` of one item waits for its cache."""
        clock = self._bench.clock
        newest = self._conductor().newest_whole(group.id)
        deadline = clock.monotonic() + DRAIN_SECONDS
        while newest and wanted == LATEST_SHARED and clock.monotonic() < deadline:
            with self._bench.vault.read() as records:
                members = members_of(records, group)
                listed = shared_points(self._bench, records, group, members)
            if not members or any(point.id == newest for point in listed):
                return
            with self._bench.signals.listen(item_key(members[0].item.id)) as listener:
                listener.wait(_LOOK_SECONDS)


def _under_way(records: Records, members: Sequence[ItemRecord]) -> dict[str, str]:
    """Return the points that members are on their way to by jobs under way, by the item's id; "":
    one that is not listed yet."""
    found = {}
    for record in members:
        if record.item.state is ItemState.FAILING_OVER:
            for job in records.jobs.open_of_item(record.item.id):
                if job.verb in _MOVES:
                    found[record.item.id] = _point_of(job.verb, records.jobs.record(job.id))
    return found


def _point_of(verb: str, job: JobRecord) -> str:
    match verb:
        case "item.failover":
            return from_plain(job.arguments, FailoverArguments).plan.point_id
        case "item.change-recovery-point":
            return from_plain(job.arguments, ChangeArguments).point.id
    return ""

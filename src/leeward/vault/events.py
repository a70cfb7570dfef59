"""Events: what happened, one sentence each, for people who look later.

Owns: their rows. Must not know: who writes or reads them.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from leeward.vault.tables import events


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """target: as in Job.target. sequence grows with time and is never used twice."""

    sequence: int = 0
    time_ns: int
    target: str
    kind: str
    message: str
    job_id: str = ""


class EventStore:
    """The rows of one transaction."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def add(self, event: Event) -> None:
        """The event is recorded; its sequence is assigned."""
        self._connection.execute(
            events.insert().values(
                time_ns=event.time_ns,
                target=event.target,
                kind=event.kind,
                message=event.message,
                job_id=event.job_id,
            )
        )

    def listed(self, *, limit: int, before: int = 0, target: str = "") -> list[Event]:
        """Return events, newest first; with a sequence below `before` if it is not 0, of one target
        if it is given."""
        query = sa.select(events).order_by(events.c.sequence.desc()).limit(limit)
        if before:
            query = query.where(events.c.sequence < before)
        if target:
            query = query.where(events.c.target == target)
        return [
            Event(
                sequence=row.sequence,
                time_ns=row.time_ns,
                target=row.target,
                kind=row.kind,
                message=row.message,
                job_id=row.job_id,
            )
            for row in self._connection.execute(query)
        ]

    def purge(self, *, before_ns: int, count_max: int) -> None:
        """Events older than that are gone, and all but the newest `count_max`."""
        newest = self._connection.execute(sa.select(sa.func.max(events.c.sequence))).scalar() or 0
        self._connection.execute(
            events.delete().where(
                sa.or_(events.c.time_ns < before_ns, events.c.sequence <= newest - count_max)
            )
        )

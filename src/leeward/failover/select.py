"""Which recovery point an operator means.

Owns: the words `latest`, `latest-processed`, `latest-app-consistent`, ids and times. Must not know:
how points are made or opened. Pure; used by plan.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from leeward.core.errors import InvalidRequest, NotFound
from leeward.model.recovery import Consistency, RecoveryPoint

LATEST = "latest"
LATEST_PROCESSED = "latest-processed"
LATEST_APP_CONSISTENT = "latest-app-consistent"


def select_point(points: Sequence[RecoveryPoint], wanted: str, *, item: str) -> RecoveryPoint:
    """Return the point that `wanted` names.

    wanted: `latest` or `latest-processed` (the newest listed: draining and sealing, which tell
    them apart, come before), `latest-app-consistent`, an id, or a time as ISO 8601 (UTC unless it
    says otherwise): the newest point not later than it. item: its name, for what is said.
    Raises: NotFound when no point fits; InvalidRequest when `wanted` is none of these.
    """
    ordered = sorted(points, key=lambda point: (point.epoch, point.sequence))
    if wanted in (LATEST, LATEST_PROCESSED):
        fitting = ordered
    elif wanted == LATEST_APP_CONSISTENT:
        fitting = [point for point in ordered if point.consistency is Consistency.APPLICATION]
    elif wanted.startswith("rp-"):
        fitting = [point for point in ordered if point.id == wanted]
    else:
        time_ns = _parse_time_ns(wanted)
        fitting = [point for point in ordered if point.time_ns <= time_ns]
    if not fitting:
        raise _missing(wanted, item)
    return fitting[-1]


def _missing(wanted: str, item: str) -> NotFound:
    what, hint = (
        f"recovery point {wanted}",
        f"`leeward recovery-point list {item}` shows what it has",
    )
    if wanted == LATEST_APP_CONSISTENT:
        what = "application-consistent recovery point"
        hint = f"`leeward recovery-point create {item}` makes one; {LATEST} needs none"
    return NotFound(f"{item} has no {what}", field="recovery_point", hint=hint)


def _parse_time_ns(text: str) -> int:
    """Return nanoseconds since 1970 of an ISO 8601 time. Raises: InvalidRequest.

    To the millisecond, as times are shown, it means the whole of it: a time that was copied from a
    list finds the point that it was shown of.
    """
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidRequest(
            f"recovery_point: {text!r} is neither an id nor a time",
            field="recovery_point",
            hint=f"use {LATEST}, {LATEST_PROCESSED}, {LATEST_APP_CONSISTENT}, an id or a time like "
            "2026-01-31T12:00:00Z",
        ) from error
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    since = time - datetime(1970, 1, 1, tzinfo=UTC)
    rest = 999_999 if since.microseconds % 1000 == 0 else 0
    return (since.days * 86400 + since.seconds) * 10**9 + since.microseconds * 1000 + rest

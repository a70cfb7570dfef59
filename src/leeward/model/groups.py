"""Consistency groups: items whose recovery points are made together now and then.

Owns: a group's shape and that of a shared point. Must not know: how a shared point comes about.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsistencyGroup:
    """Scope is the vault. Its items go from one region to one other, under one policy, which says
    how often they share a recovery point. id names it in stores for ever."""

    id: str
    name: str
    vault: str
    items: tuple[str, ...]
    """Names, sorted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPoint:
    """A recovery point of every member, all at one moment. points: item's id → its point's id."""

    id: str
    group: str
    time_ns: int
    points: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStanding:
    """How a group does. attempts and voided count since the service was started; problem: why
    there is no newer shared point, "" when all is well."""

    group: ConsistencyGroup
    interval_seconds: float
    points: int = 0
    newest: SharedPoint | None = None
    attempts: int = 0
    voided: int = 0
    problem: str = ""

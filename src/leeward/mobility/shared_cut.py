"""A cut that is one moment of several VMs: what one VM does about it.

Owns: the order of asking, holding, marking and letting go. Must not know: who the other VMs are or
how their hosts are reached; portions.py decides what goes into the cut.

All members are asked to hold; when all do, all are told to go on. A member whose hold began before
it said so and had not ended when it was told to go on was holding at the moment in between, at
which all were: what each has marked at the start of its hold is what it had acknowledged at that
moment. No clock takes part in this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from leeward.mobility.tap_client import Mark
from leeward.mobility.taps import Taps
from leeward.model.recovery import SharedMark


class Gate(Protocol):
    """Where the members of an attempt wait for each other. No call raises; each ends in time."""

    def ready(self, *, is_changed: bool) -> bool:
        """Say that this VM can hold at once; return whether it is to."""

    def held(self) -> bool:
        """Say that it holds; return True as soon as all do, False when that takes too long."""

    def end(self, problem: str) -> None:
        """Say that this VM has its share, or with a `problem` why not."""


@dataclass(frozen=True, slots=True)
class SharedAttempt:
    """One attempt at a shared recovery point. expires_at: monotonic; nobody waits for it then."""

    mark: SharedMark
    gate: Gate
    expires_at: float


@dataclass(frozen=True, slots=True)
class Held:
    """mark: where the VM held. is_common: at a moment at which all members did."""

    mark: Mark
    is_common: bool


def hold_with_others(taps: Taps, gate: Gate, *, is_changed: bool) -> Held | None:
    """Hold the VM's acknowledgements while the others do, and say where; None if it did not come
    to that. Afterwards nothing is held. Raises: Unavailable when the tap does not answer.

    is_changed: content has come since the VM's last shared point.
    """
    if not gate.ready(is_changed=is_changed):
        return None
    mark = taps.hold()
    if mark is None:
        gate.end("its tap could not hold")
        return None
    is_common = False
    try:
        is_common = gate.held()
    finally:
        lasted = taps.end_hold(mark)
    return Held(mark, is_common and lasted)


def why_not(held: Held, *, is_point: bool) -> str:
    """Return why the VM has no share in the point, "" if it has."""
    if not held.is_common:
        return "its hold ended before all members held"
    return "" if is_point else "its stream was interrupted"

"""Meetings: where the members of a consistency group wait for each other to hold.

Owns: who is called, how far each is, when all may go on, how long anybody waits. Must not know:
taps, vaults, which group is due: that is conductor.py's. In memory on purpose: an attempt that is
lost is void, and what counts is what each member's point says of itself.

All are asked to hold once all are ready, and told to go on once all hold. See mobility/shared_cut.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass, field

from leeward.core.clock import Clock
from leeward.core.errors import NotAllowed
from leeward.model.recovery import SharedMark
from leeward.protocol.messages import MeetingCall, MeetingPhase, MeetingWord
from leeward.workflows.signals import Signals

READY_SECONDS = 1.5
"""From the call until all members must be ready: no writes wait meanwhile, only cuts do."""
HELD_SECONDS = 0.3
"""From the first hold until all must hold: taps hold no longer."""
END_SECONDS = 5.0
"""From the call until all must have ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a meeting ended. problem: why it came to no shared point, "" if it did. is_needless: no
    member has anything new."""

    mark: SharedMark
    problem: str = ""
    is_needless: bool = False


@dataclass(slots=True)
class _Meeting:
    mark: SharedMark
    nodes: Mapping[str, str]
    names: Mapping[str, str]
    may_skip: bool
    called_at: float
    held_at: float | None = None
    waiting: set[str] = field(default_factory=set)
    ready: dict[str, bool] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    ended: dict[str, str] = field(default_factory=dict)
    is_needless: bool = False
    problem: str = ""

    @property
    def key(self) -> str:
        return f"meeting:{self.mark.id}"

    def take(self, word: MeetingWord, now: float) -> None:
        """Note what a member says."""
        if word.phase is MeetingPhase.READY:
            self.ready[word.item_id] = word.is_changed
        elif word.phase is MeetingPhase.HELD:
            self.held.add(word.item_id)
            self.held_at = self.held_at or now
        else:
            self.ended[word.item_id] = word.problem
            if word.problem:
                self.fail(f"{self.names[word.item_id]}: {word.problem}")

    def fail(self, problem: str) -> None:
        self.problem = self.problem or problem

    def look(self, now: float) -> None:
        """Note who is late."""
        if len(self.ready) < len(self.nodes):
            if now - self.called_at >= READY_SECONDS:
                self.fail(f"{self._late(self.ready)} was not ready")
        elif len(self.held) < len(self.nodes):
            if self.held_at is not None and now - self.held_at >= HELD_SECONDS:
                self.fail(f"{self._late(self.held)} held too late")
            elif self.held_at is None and now - self.called_at >= 2 * READY_SECONDS:
                self.fail("nobody held")
        if not self.is_over and now - self.called_at >= END_SECONDS:
            self.fail(f"{self._late(self.ended)} did not say how it ended")

    def answer(self, phase: MeetingPhase) -> bool | None:
        """Return whether who is in that phase goes on, None while that is open."""
        if self.problem or self.is_needless or phase is MeetingPhase.ENDED:
            return phase is MeetingPhase.ENDED
        said = self.ready if phase is MeetingPhase.READY else self.held
        if len(said) < len(self.nodes):
            return None
        if phase is MeetingPhase.READY and self.may_skip and not any(self.ready.values()):
            self.is_needless = True
            return False
        return True

    def seconds_left(self, now: float) -> float:
        """Return how long nothing can change by itself."""
        if self.held_at is not None:
            return max(self.held_at + HELD_SECONDS - now, 0.001)
        return max(self.called_at + READY_SECONDS - now, 0.05)

    @property
    def is_over(self) -> bool:
        """True when nothing more is to come that could change the outcome."""
        return bool(self.problem) or self.is_needless or len(self.ended) == len(self.nodes)

    def _late(self, said: Container[str]) -> str:
        return ", ".join(sorted(self.names[i] for i in self.nodes if i not in said))


class Meetings:
    """Thread-safe."""

    def __init__(self, signals: Signals, clock: Clock) -> None:
        self._signals = signals
        self._clock = clock
        self._lock = threading.Lock()
        self._meetings: dict[str, _Meeting] = {}
        self._listening: Counter[str] = Counter()

    # --- for the conductor

    def is_listening(self, node_id: str) -> bool:
        """Say whether the node would hear a call at once."""
        with self._lock:
            return self._listening[node_id] > 0

    def call(
        self,
        mark: SharedMark,
        nodes: Mapping[str, str],
        names: Mapping[str, str],
        *,
        may_skip: bool,
    ) -> None:
        """Call the mark's members to meet. nodes: item's id → its source's agent; names: for what
        is said. may_skip: it is needless if no member has anything new."""
        meeting = _Meeting(
            mark=mark,
            nodes=dict(nodes),
            names=dict(names),
            may_skip=may_skip,
            called_at=self._clock.monotonic(),
            waiting=set(nodes),
        )
        with self._lock:
            self._meetings[mark.id] = meeting
        for node_id in set(nodes.values()):
            self._signals.notify(_node_key(node_id))

    def outcome(self, mark_id: str) -> Outcome | None:
        """Return how the meeting ended, None while it goes on. Asked once: then it is forgotten."""
        now = self._clock.monotonic()
        with self._lock:
            meeting = self._meetings.get(mark_id)
            if meeting is None:
                return None
            meeting.look(now)
            if not meeting.is_over:
                return None
            is_quiet = len(meeting.ended) == len(meeting.nodes) or meeting.is_needless
            if not is_quiet and now - meeting.called_at < END_SECONDS:
                return None  # some still wait to be told to let go
            del self._meetings[mark_id]
        return Outcome(mark=meeting.mark, problem=meeting.problem, is_needless=meeting.is_needless)

    # --- for the node routes

    async def wait_calls(self, node_id: str, seconds: float) -> list[MeetingCall]:
        """Return what the node's items are called to, as soon as there is something."""
        deadline = self._clock.monotonic() + seconds
        with self._signals.listen_async(_node_key(node_id)) as signalled:
            self._count(node_id, 1)
            try:
                while True:
                    signalled.clear()
                    calls = self._calls(node_id)
                    left = deadline - self._clock.monotonic()
                    if calls or left <= 0 or self._signals.is_closed:
                        return calls
                    try:
                        await asyncio.wait_for(signalled.wait(), left)
                    except TimeoutError:
                        continue
            finally:
                self._count(node_id, -1)

    async def take_word(self, node_id: str, word: MeetingWord) -> bool:
        """Return whether the member goes on: at once if that is clear, else when it becomes so.

        Raises: NotAllowed when the item is not the node's.
        """
        with self._signals.listen_async(f"meeting:{word.mark_id}") as signalled:
            is_first = True
            while True:
                signalled.clear()
                now = self._clock.monotonic()
                with self._lock:
                    meeting = self._meetings.get(word.mark_id)
                    if meeting is None or self._signals.is_closed:
                        return False
                    if meeting.nodes.get(word.item_id) != node_id:
                        raise NotAllowed(f"{word.item_id} does not meet anybody from there")
                    if is_first:
                        meeting.take(word, now)
                    meeting.look(now)
                    go, left = meeting.answer(word.phase), meeting.seconds_left(now)
                if is_first or go is not None:
                    self._signals.notify(meeting.key)
                if go is not None:
                    return go
                is_first = False
                try:
                    await asyncio.wait_for(signalled.wait(), left)
                except TimeoutError:
                    continue

    # ---

    def _count(self, node_id: str, change: int) -> None:
        with self._lock:
            self._listening[node_id] += change
            if not self._listening[node_id]:
                del self._listening[node_id]

    def _calls(self, node_id: str) -> list[MeetingCall]:
        with self._lock:
            calls = []
            for meeting in self._meetings.values():
                for item_id in sorted(meeting.waiting):
                    if meeting.nodes[item_id] == node_id:
                        meeting.waiting.discard(item_id)
                        calls.append(MeetingCall(item_id=item_id, mark=meeting.mark))
            return calls


def _node_key(node_id: str) -> str:
    return f"calls:{node_id}"

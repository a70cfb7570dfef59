"""Meetings: nobody holds before all are ready, nobody goes on before all hold or time is up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from tests.unit.workflows.test_dispatch import HandClock

from leeward.core.errors import NotAllowed
from leeward.model.recovery import SharedMark
from leeward.protocol.messages import MeetingPhase, MeetingWord
from leeward.workflows.meetings import END_SECONDS, HELD_SECONDS, READY_SECONDS, Meetings
from leeward.workflows.signals import Signals

MARK = SharedMark(id="sp-1", group="cg-1", members=("a", "b"), time_ns=1)
READY, HELD, ENDED = MeetingPhase


class Room:
    """A meeting of two items on two hosts, and words as tasks of one loop."""

    def __init__(self) -> None:
        self.clock = HandClock()
        self.signals = Signals()
        self.meetings = Meetings(self.signals, self.clock)

    def call(self, *, may_skip: bool = False) -> None:
        nodes = {"a": "n-a", "b": "n-b"}
        names = {"a": "db", "b": "web"}
        self.meetings.call(MARK, nodes, names, may_skip=may_skip)

    def say(
        self, item: str, phase: MeetingPhase, problem: str = "", *, is_changed: bool = True
    ) -> asyncio.Task[bool]:
        word = MeetingWord(
            mark_id=MARK.id, item_id=item, phase=phase, problem=problem, is_changed=is_changed
        )
        return asyncio.create_task(self._word(f"n-{item}", word))

    async def _word(self, node: str, word: MeetingWord) -> bool:
        return await self.meetings.take_word(node, word)

    async def pass_time(self, seconds: float) -> None:
        """Have the time gone by for everybody who waits."""
        await settle()
        self.clock.now += seconds
        self.signals.notify(f"meeting:{MARK.id}")
        await settle()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def in_room(story: Callable[[Room], Awaitable[None]]) -> None:
    async def run() -> None:
        room = Room()
        await asyncio.wait_for(story(room), 10)

    asyncio.run(run())


def test_all_that_hold_together_go_on_together() -> None:
    async def story(room: Room) -> None:
        room.call()
        first = room.say("a", READY)
        await settle()
        assert not first.done()
        assert await room.say("b", READY)
        assert await first
        held = room.say("b", HELD)
        await settle()
        assert not held.done()
        assert await room.say("a", HELD)
        assert await held
        assert room.meetings.outcome(MARK.id) is None
        await room.say("a", ENDED)
        await room.say("b", ENDED)
        outcome = room.meetings.outcome(MARK.id)
        assert outcome is not None
        assert (outcome.problem, outcome.is_needless) == ("", False)
        assert room.meetings.outcome(MARK.id) is None
        assert not await room.say("a", HELD)

    in_room(story)


def test_who_is_late_to_get_ready_is_not_held_for() -> None:
    async def story(room: Room) -> None:
        room.call()
        first = room.say("a", READY)
        await room.pass_time(READY_SECONDS)
        assert not await first
        assert not await room.say("b", READY)
        await room.pass_time(END_SECONDS)
        outcome = room.meetings.outcome(MARK.id)
        assert outcome is not None
        assert outcome.problem == "web was not ready"

    in_room(story)


def test_who_holds_late_voids_the_attempt_for_all() -> None:
    async def story(room: Room) -> None:
        room.call()
        ready = [room.say("a", READY), room.say("b", READY)]
        assert await asyncio.gather(*ready) == [True, True]
        first = room.say("a", HELD)
        await room.pass_time(HELD_SECONDS + 0.01)
        assert not await first
        assert not await room.say("b", HELD)
        await room.say("a", ENDED, "its hold ended before all members held")
        await room.say("b", ENDED)
        outcome = room.meetings.outcome(MARK.id)
        assert outcome is not None
        assert outcome.problem == "web held too late"

    in_room(story)


def test_a_member_that_cannot_says_so_and_nobody_waits() -> None:
    async def story(room: Room) -> None:
        room.call()
        first = room.say("a", READY)
        await room.say("b", ENDED, "its tap could not hold")
        assert not await first
        await room.say("a", ENDED)
        outcome = room.meetings.outcome(MARK.id)
        assert outcome is not None
        assert outcome.problem == "web: its tap could not hold"

    in_room(story)


def test_a_share_lost_after_the_holds_voids_the_attempt() -> None:
    async def story(room: Room) -> None:
        room.call()
        for phase in (READY, HELD):
            await asyncio.gather(room.say("a", phase), room.say("b", phase))
        await room.say("a", ENDED)
        await room.pass_time(END_SECONDS)
        outcome = room.meetings.outcome(MARK.id)
        assert outcome is not None
        assert outcome.problem == "web did not say how it ended"

    in_room(story)


def test_without_news_nobody_holds_if_the_last_point_still_says_all() -> None:
    async def story(room: Room) -> None:
        room.call(may_skip=True)
        words = [room.say(item, READY, is_changed=False) for item in "ab"]
        assert await asyncio.gather(*words) == [False, False]
        outcome = room.meetings.outcome(MARK.id)
        assert outcome is not None
        assert outcome.is_needless
        room.call(may_skip=True)
        words = [room.say("a", READY, is_changed=False), room.say("b", READY)]
        assert await asyncio.gather(*words) == [True, True]

    in_room(story)


def test_calls_reach_the_hosts_that_listen_once() -> None:
    async def story(room: Room) -> None:
        listening = asyncio.create_task(room.meetings.wait_calls("n-a", 30))
        await settle()
        assert room.meetings.is_listening("n-a")
        assert not room.meetings.is_listening("n-b")
        room.call()
        assert [call.item_id for call in await listening] == ["a"]
        assert not room.meetings.is_listening("n-a")
        assert await room.meetings.wait_calls("n-a", 0) == []

    in_room(story)


def test_nobody_speaks_for_another_host() -> None:
    async def story(room: Room) -> None:
        room.call()
        word = MeetingWord(mark_id=MARK.id, item_id="a", phase=READY)
        with pytest.raises(NotAllowed):
            await room.meetings.take_word("n-b", word)

    in_room(story)

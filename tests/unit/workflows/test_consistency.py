"""Consistency groups: kept in the vault, told to workers, called to meet, failed over as one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.workflows.replay_rig import Site, site

from leeward.core.codec import to_plain
from leeward.core.errors import Conflict, InvalidRequest, LeewardError, NotFound, Unavailable
from leeward.model.groups import SharedPoint
from leeward.model.recovery import (
    Consistency,
    ItemState,
    Job,
    JobState,
    Policy,
    RecoveryPoint,
    ReplicatedItem,
    SharedMark,
)
from leeward.model.resources import VirtualMachine
from leeward.protocol.messages import MeetingCall, MeetingPhase, MeetingWord, Verb
from leeward.protocol.rebuild import FoundItem, FoundItems
from leeward.workflows import meetings
from leeward.workflows.conductor import FAILURES_TOLD
from leeward.workflows.item_specs import about_item


class Shop:
    """A site whose db-1 and web-1 are protected, with points they share."""

    def __init__(self, made: Site) -> None:
        self.made = made
        self.service = made.service
        assert made.run(made.protect()).state is JobState.SUCCEEDED
        add_twin(made)
        before = made.engine.before_step

        def carry_children_out(name: str) -> None:
            before(name)
            if name in ("db-1", "web-1"):
                for verb in ("item.failover", "item.change-recovery-point"):
                    with made.vault.read() as records:
                        children = records.jobs.open_ids(verb=verb)
                    for child in children:
                        made.engine.run(child)

        made.engine.before_step = carry_children_out

    def group(self) -> Job:
        return self.made.run(self.service.consistency.put("main", "shop", ("web-1", "db-1")))

    def item(self, name: str) -> ReplicatedItem:
        with self.made.vault.read() as records:
            return records.items.get("main", name).item

    def share(self, number: int, *names: str) -> None:
        """Have the items list a point of one attempt."""
        group = self.service.consistency.standing("main", "shop").group
        members = tuple(sorted(self.item(name).id for name in group.items))
        mark = SharedMark(id=f"sp-{number}", group=group.id, members=members, time_ns=number)
        with self.made.vault.write() as records:
            for name in names or group.items:
                records.points.add(self.item(name).id, [point(number, mark)])

    def fail_over(self, wanted: str = "latest-shared") -> Job:
        return self.service.group_moves.failover("main", "shop", wanted)


def point(number: int, mark: SharedMark | None = None) -> RecoveryPoint:
    return RecoveryPoint(
        id=f"rp-1-{number}",
        epoch=1,
        sequence=number,
        time_ns=number,
        consistency=Consistency.CRASH,
        shared=mark,
    )


def add_twin(made: Site) -> None:
    """db-1 is protected as web-1 is."""
    with made.vault.write() as records:
        first = records.items.get("main", "web-1")
        vm = records.resources.get(VirtualMachine, "east", "web-1").value
        records.resources.insert(replace(vm, name="db-1"), scope="east", name="db-1")
        twin = replace(first.item, id="i-db", name="db-1", source_vm="db-1", target_vm="db-1")
        target = replace(first.target_vm, name="db-1", nics=())
        records.items.insert(replace(first, item=twin, target_vm=target))
    made.items["i-db"] = made.items[first.item.id]
    made.say()


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """Give a shop whose meetings do not end because the tests' machine is slow."""
    for limit in ("READY_SECONDS", "HELD_SECONDS", "END_SECONDS"):
        monkeypatch.setattr(meetings, limit, 100.0)
    with site(tmp_path) as made:
        yield Shop(made)


def test_a_group_is_kept_and_its_workers_told(shop: Shop) -> None:
    assert shop.group().state is JobState.SUCCEEDED
    group = shop.service.consistency.standing("main", "shop").group
    assert group.items == ("db-1", "web-1")
    assert shop.made.last[Verb.PROCESSING_START]["consistency_group"] == group.id
    assert [each.group for each in shop.service.consistency.listed("main")] == [group]
    again = shop.made.run(shop.service.consistency.put("main", "shop", ("db-1", "web-1")))
    assert again.state is JobState.SUCCEEDED
    assert shop.service.consistency.standing("main", "shop").group.id == group.id
    assert shop.made.run(shop.service.consistency.delete("main", "shop")).state
    assert shop.made.last[Verb.PROCESSING_START]["consistency_group"] == ""
    assert shop.service.consistency.listed("main") == []


def test_what_makes_no_sense_changes_nothing(shop: Shop) -> None:
    with pytest.raises(InvalidRequest, match="2 to 32"):
        shop.service.consistency.put("main", "shop", ("web-1",))
    with pytest.raises(InvalidRequest, match="no replicated item queue"):
        shop.service.consistency.put("main", "shop", ("web-1", "queue"))
    with pytest.raises(NotFound):
        shop.service.consistency.put("other", "shop", ("web-1", "db-1"))
    with pytest.raises(NotFound):
        shop.service.consistency.delete("main", "shop")
    assert shop.service.consistency.listed("main") == []


def test_a_member_is_not_disabled_under_its_group(shop: Shop) -> None:
    shop.group()
    with pytest.raises(Conflict, match="in consistency group shop") as caught:
        shop.service.disabling.disable("main", "db-1", delete_replica=False)
    assert "--remove db-1" in (caught.value.hint or "")


def test_points_that_a_member_lacks_are_not_shown_as_shared(shop: Shop) -> None:
    shop.group()
    shop.share(7, "web-1")
    shop.share(8)
    (shared,) = shop.service.consistency.points("main", "shop")
    assert shared.id == "sp-8"
    with shop.made.vault.read() as records:
        record = records.items.get("main", "web-1")
        assert shop.service.consistency.shared_of(records, record) == {"rp-1-8"}


def test_a_group_fails_over_to_one_moment(shop: Shop) -> None:
    shop.group()
    shop.share(7)
    shop.share(8)
    shop.share(9, "web-1")
    ended = shop.made.run(shop.fail_over())
    assert ended.state is JobState.SUCCEEDED, ended.error
    assert ended.result["recovery_point"] == "sp-8"
    for name in ("db-1", "web-1"):
        item = shop.item(name)
        assert (item.state, item.recovery_point) == (ItemState.FAILED_OVER, "rp-1-8")


def test_an_earlier_shared_point_can_be_chosen(shop: Shop) -> None:
    shop.group()
    shop.share(7)
    shop.share(8)
    assert shop.made.run(shop.fail_over("sp-7")).state is JobState.SUCCEEDED
    assert {shop.item(name).recovery_point for name in ("db-1", "web-1")} == {"rp-1-7"}


def test_without_a_shared_point_nothing_happens(shop: Shop) -> None:
    shop.group()
    shop.share(7, "web-1")
    with pytest.raises(NotFound, match="no shared recovery point"):
        shop.fail_over()
    with pytest.raises(InvalidRequest, match="no shared point"):
        shop.fail_over("rp-1-7")
    assert shop.item("web-1").state is ItemState.PROTECTED


def test_a_region_that_cannot_take_them_is_said_before_anything_happens(shop: Shop) -> None:
    shop.group()
    shop.share(7)
    shop.made.silence(shop.made.worker)
    shop.made.silence(shop.made.target)
    with pytest.raises(Unavailable, match="no agent of region west"):
        shop.fail_over()
    assert shop.item("web-1").state is ItemState.PROTECTED


def test_one_that_fails_leaves_the_other_and_follows_it_later(shop: Shop) -> None:
    shop.group()
    shop.share(7)
    refused: list[str] = []

    def refuse_once() -> None:
        shop.made.refuse.pop(Verb.RECOVERY_BOOT, None)
        if not refused:
            shop.made.refuse[Verb.RECOVERY_BOOT] = LeewardError("no memory")
            refused.append("boot")

    shop.made.before_answer[Verb.RECOVERY_BOOT] = refuse_once
    ended = shop.made.run(shop.fail_over())
    assert ended.state is JobState.FAILED
    assert "no memory" in ended.error
    shop.share(8)
    again = shop.made.run(shop.fail_over())
    assert again.state is JobState.SUCCEEDED, again.error
    assert {shop.item(name).recovery_point for name in ("db-1", "web-1")} == {"rp-1-7"}


def test_one_that_went_elsewhere_is_said(shop: Shop) -> None:
    shop.group()
    shop.share(7)
    with shop.made.vault.write() as records:
        records.points.add(shop.item("db-1").id, [point(8)])
    job = shop.service.failovers.failover("main", "db-1", "rp-1-8")
    assert shop.made.run(job).state is JobState.SUCCEEDED
    with pytest.raises(Conflict, match="db-1 of shop has failed over"):
        shop.fail_over()


def test_a_second_failover_at_once_is_refused(shop: Shop) -> None:
    shop.group()
    shop.share(7)
    first = shop.fail_over()
    with pytest.raises(Conflict, match=first.id):
        shop.fail_over()
    with pytest.raises(Conflict, match=first.id):
        shop.service.consistency.delete("main", "shop")


# --- calling meetings


def called(shop: Shop) -> list[MeetingCall]:
    """Return what the host hears that listens while the conductor looks."""

    async def listen() -> list[MeetingCall]:
        listening = asyncio.create_task(shop.service.meetings.wait_calls(shop.made.source.id, 60.0))
        await asyncio.sleep(0.01)
        shop.service.conductor.look_soon()
        await asyncio.to_thread(shop.service.conductor.tick)
        await asyncio.wait([listening], timeout=0.5)  # whom it called is being woken already
        if not listening.done():
            listening.cancel()
            return []
        return await listening

    return asyncio.run(listen())


def meet(shop: Shop, problem: str = "", *, is_changed: bool = True) -> list[MeetingCall]:
    calls = called(shop)

    async def all_say(phase: MeetingPhase, problem: str = "") -> None:
        words = [
            MeetingWord(
                mark_id=call.mark.id,
                item_id=call.item_id,
                phase=phase,
                problem=problem,
                is_changed=is_changed,
            )
            for call in calls
        ]
        node = shop.made.source.id
        await asyncio.gather(*(shop.service.meetings.take_word(node, word) for word in words))

    for phase in (MeetingPhase.READY, MeetingPhase.HELD):
        asyncio.run(all_say(phase))
    asyncio.run(all_say(MeetingPhase.ENDED, problem))
    shop.service.conductor.tick()
    return calls


def test_members_are_called_when_a_shared_point_is_due(shop: Shop) -> None:
    assert called(shop) == []
    shop.group()
    shop.share(5)
    calls = meet(shop)
    assert sorted(call.item_id for call in calls) == sorted(calls[0].mark.members)
    assert calls[0].mark.previous_ns == 5
    standing = shop.service.consistency.standing("main", "shop")
    assert (standing.attempts, standing.voided, standing.problem) == (1, 0, "")
    assert called(shop) == []  # the next is not due
    shop.service.policies.put("main", Policy(name="default", shared_interval_seconds=0))
    again = meet(shop)
    assert again[0].mark.previous_ns == calls[0].mark.time_ns
    assert again[0].mark.id != calls[0].mark.id


def test_a_point_that_still_says_all_is_not_made_again_unless_it_got_lost(shop: Shop) -> None:
    shop.group()
    shop.service.policies.put("main", Policy(name="default", shared_interval_seconds=0))

    def newest_after(*, listed: bool) -> str:
        mark = meet(shop, is_changed=False)[0].mark
        if listed:
            with shop.made.vault.write() as records:
                for item_id in mark.members:
                    records.points.add(item_id, [point(9, mark)])
        return shop.service.conductor.newest_whole(mark.group)

    first = newest_after(listed=False)
    second = newest_after(listed=True)
    assert first != second  # the first never came to be listed
    assert newest_after(listed=False) == second


def test_agents_are_told_that_they_have_members(shop: Shop) -> None:
    def is_member() -> bool:
        shop.service.conductor.look_soon()
        shop.service.conductor.tick()
        status = shop.service.bench.live._status(shop.made.source.id)
        return shop.service.monitor.take_status(shop.made.source, status).is_member

    assert not is_member()
    shop.group()
    assert is_member()


def test_nobody_is_called_in_vain_and_the_reason_is_told(shop: Shop) -> None:
    shop.group()
    shop.service.conductor.look_soon()
    shop.service.conductor.tick()
    assert "does not listen" in shop.service.consistency.standing("main", "shop").problem
    shop.made.items.pop("i-db")
    shop.made.say()
    assert called(shop) == []
    assert "db-1 does not stream" in shop.service.consistency.standing("main", "shop").problem


def test_void_attempts_are_told_once_they_are_many(shop: Shop) -> None:
    shop.group()
    shop.service.policies.put("main", Policy(name="default", shared_interval_seconds=0))
    for _ in range(FAILURES_TOLD):
        assert meet(shop, "its stream was interrupted")
    standing = shop.service.consistency.standing("main", "shop")
    assert standing.voided == FAILURES_TOLD
    assert "its stream was interrupted" in standing.problem
    assert meet(shop)
    with shop.made.vault.read() as records:
        events = records.events.listed(limit=50, target="consistency-group/main/shop")
        kinds = [event.kind for event in events if event.kind.startswith("group")]
    assert sorted(kinds) == ["group_not_shared", "group_shared"]


def test_the_latest_is_waited_for_until_it_is_listed(shop: Shop) -> None:
    shop.group()
    shop.share(5)
    mark = meet(shop)[0].mark
    before = shop.made.engine.before_step

    def list_it(name: str) -> None:
        before(name)
        if name == "choose":
            with shop.made.vault.write() as records:
                for item_id in mark.members:
                    records.points.add(item_id, [point(9, mark)])

    shop.made.engine.before_step = list_it
    ended = shop.made.run(shop.fail_over())
    assert ended.state is JobState.SUCCEEDED, ended.error
    assert ended.result["recovery_point"] == mark.id
    assert isinstance(shop.service.consistency.points("main", "shop")[0], SharedPoint)


def test_a_group_is_made_anew_with_its_items(shop: Shop) -> None:
    shop.group()
    group = shop.service.consistency.standing("main", "shop").group
    with shop.made.vault.read() as records:
        found = [
            FoundItem(item_id=r.item.id, epoch=1, about=about_item(records, r), point_count=1)
            for r in records.items.listed()
        ]
    shop.made.results[Verb.STORES_READ] = to_plain(FoundItems(items=tuple(found)))
    shop.made.run(shop.service.consistency.delete("main", "shop"))
    with shop.made.vault.write() as records:
        for each in found:
            records.items.delete(each.item_id)
    shop.made.before_answer[Verb.PROCESSING_START] = shop.made.say
    rebuilt = shop.made.run(shop.service.rebuilding.rebuild(["file:///x"], region="west"))
    assert rebuilt.state is JobState.SUCCEEDED, rebuilt.error
    assert shop.service.consistency.standing("main", "shop").group == group

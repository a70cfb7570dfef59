"""Consistency groups as a whole: tested, started from another point, and in recovery plans."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.workflows.replay_rig import site
from tests.unit.workflows.test_consistency import Shop, point

from leeward.core.codec import from_plain
from leeward.core.errors import (
    Conflict,
    HypervisorRefused,
    InvalidRequest,
    LeewardError,
    NotFound,
    Unavailable,
)
from leeward.model.plans import PlanGroup, PlanOptions, RecoveryPlan
from leeward.model.recovery import ItemState, Job, JobState, Rehearsal
from leeward.model.resources import NetworkInterface, VirtualMachine
from leeward.protocol.fabric import BootSpec
from leeward.protocol.messages import NodeStatus, Verb
from leeward.workflows.rehearsing import Rehearsing

NAMES = ("db-1", "web-1")
SHARED = PlanOptions(recovery_point="latest-shared")


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    """Give a shop whose group has the shared points sp-7 and sp-8."""
    with site(tmp_path) as made:
        shop = Shop(made)
        nic = NetworkInterface(name="n0", network="corp-asr", subnet="front", address="10.0.1.8")
        with made.vault.write() as records:
            record = records.items.get("main", "db-1")
            records.items.update(replace(record, target_vm=replace(record.target_vm, nics=(nic,))))
        assert shop.group().state is JobState.SUCCEEDED
        shop.share(7)
        shop.share(8)
        yield shop


def points(shop: Shop) -> dict[str, str]:
    return {name: shop.item(name).recovery_point for name in NAMES}


def rehearsals(shop: Shop) -> dict[str, Rehearsal | None]:
    return {name: shop.item(name).rehearsal for name in NAMES}


def moved(shop: Shop, wanted: str = "latest-shared") -> None:
    """All of the group has failed over."""
    ended = shop.made.run(shop.fail_over(wanted))
    assert ended.state is JobState.SUCCEEDED, ended.error


def change(shop: Shop, wanted: str) -> Job:
    return shop.service.group_moves.change("main", "shop", wanted)


def start_test(shop: Shop, wanted: str = "latest-shared") -> Job:
    return shop.service.group_tests.start("main", "shop", wanted)


def clean_up(shop: Shop) -> Job:
    return shop.service.clean_ups.clean_up_group("main", "shop")


def heed_boots(shop: Shop) -> list[BootSpec]:
    """Return the list of what will have been told to boot."""
    told: list[BootSpec] = []
    shop.made.before_answer[Verb.RECOVERY_BOOT] = lambda: told.append(
        from_plain(shop.made.last[Verb.RECOVERY_BOOT], BootSpec)
    )
    return told


# --- another point


def test_a_group_is_started_from_another_point_as_a_whole(shop: Shop) -> None:
    moved(shop)
    ended = shop.made.run(change(shop, "sp-7"))
    assert ended.state is JobState.SUCCEEDED, ended.error
    assert points(shop) == dict.fromkeys(NAMES, "rp-1-7")
    assert ended.result["recovery_point"] == "sp-7"
    assert shop.made.run(change(shop, "latest-shared")).state is JobState.SUCCEEDED
    assert points(shop) == dict.fromkeys(NAMES, "rp-1-8")
    with pytest.raises(Conflict, match="already runs from sp-8"):
        change(shop, "sp-8")


def test_one_that_runs_from_it_already_is_left_alone(shop: Shop) -> None:
    moved(shop)
    alone = shop.service.failovers.change("main", "db-1", "rp-1-7")
    assert shop.made.run(alone).state is JobState.SUCCEEDED
    booted = shop.made.asked[Verb.RECOVERY_BOOT]
    assert shop.made.run(change(shop, "sp-7")).state is JobState.SUCCEEDED
    assert shop.made.asked[Verb.RECOVERY_BOOT] == booted + 1
    assert points(shop) == dict.fromkeys(NAMES, "rp-1-7")


def test_one_that_cannot_follows_when_the_group_fails_over_again(shop: Shop) -> None:
    moved(shop)
    boots: list[BootSpec] = []

    def refuse_the_first() -> None:
        shop.made.refuse.pop(Verb.RECOVERY_BOOT, None)
        if not boots:
            shop.made.refuse[Verb.RECOVERY_BOOT] = LeewardError("no memory")
        boots.append(from_plain(shop.made.last[Verb.RECOVERY_BOOT], BootSpec))

    shop.made.before_answer[Verb.RECOVERY_BOOT] = refuse_the_first
    ended = shop.made.run(change(shop, "sp-7"))
    assert ended.state is JobState.FAILED
    assert "no memory" in ended.error
    assert sorted(points(shop).values()) == ["", "rp-1-7"], "the other has moved"
    with pytest.raises(Conflict, match="is degraded"):
        change(shop, "sp-7")
    moved(shop)
    assert points(shop) == dict.fromkeys(NAMES, "rp-1-7")


def test_it_is_not_changed_where_that_makes_no_sense(shop: Shop) -> None:
    with pytest.raises(Conflict, match="db-1 is protected; web-1 is protected") as refused:
        change(shop, "sp-7")
    assert refused.value.hint
    moved(shop)
    for wanted, error in (("rp-1-7", InvalidRequest), ("sp-9", NotFound)):
        with pytest.raises(error):
            change(shop, wanted)
    shop.made.silence(shop.made.target)
    with pytest.raises(Unavailable, match="may run there"):
        change(shop, "sp-7")
    shop.made.say()
    job = shop.service.failovers.commit("main", "db-1")
    assert shop.made.run(job).state is JobState.SUCCEEDED
    with pytest.raises(Conflict, match="db-1 is committed") as refused:
        change(shop, "sp-7")
    assert "undo-commit db-1" in (refused.value.hint or "")
    assert points(shop) == dict.fromkeys(NAMES, "rp-1-8")


def test_one_move_of_a_group_at_a_time(shop: Shop) -> None:
    moved(shop)
    first = change(shop, "sp-7")
    asks: list[Callable[[], Job]] = [
        lambda: change(shop, "sp-7"),
        shop.fail_over,
        lambda: start_test(shop),
    ]
    for ask in asks:
        with pytest.raises(Conflict, match=first.id):
            ask()


def _latest(shop: Shop) -> Job:
    return shop.service.failovers.failover("main", "db-1", "latest")


def _planned(shop: Shop) -> Job:
    planned = shop.service.planned
    return planned.failover("main", "db-1", "latest", power_off_seconds=1)


@pytest.mark.parametrize("move", [_latest, _planned])
def test_a_group_does_not_follow_one_that_goes_elsewhere(
    shop: Shop, move: Callable[[Shop], Job]
) -> None:
    move(shop)
    with pytest.raises(Conflict, match="db-1 of shop begins from a point that the others"):
        shop.fail_over()
    assert shop.item("web-1").state is ItemState.PROTECTED


def test_a_group_follows_one_that_is_on_its_way_to_a_shared_point(shop: Shop) -> None:
    shop.service.failovers.failover("main", "db-1", "rp-1-7")
    moved(shop)
    assert points(shop) == dict.fromkeys(NAMES, "rp-1-7")


def test_a_group_waits_for_its_own_items_failover_not_for_a_namesakes(shop: Shop) -> None:
    own = shop.service.failovers.failover("main", "db-1", "rp-1-7")
    with shop.made.vault.write() as records:
        records.jobs.create(
            job_id="job-elsewhere",
            verb="item.failover",
            target=own.target,
            arguments={"item_id": "i-elsewhere"},
            now_ns=own.created_ns + 10**12,
        )
    before = shop.made.engine.before_step

    def fail_elsewhere(name: str) -> None:
        if name == "db-1":
            with shop.made.vault.write() as records:
                records.jobs.end("job-elsewhere", JobState.FAILED, now_ns=1, error="elsewhere")
        before(name)

    shop.made.engine.before_step = fail_elsewhere
    moved(shop)
    assert points(shop) == dict.fromkeys(NAMES, "rp-1-7")


# --- test failover


def test_a_group_is_tested_in_networks_that_its_test_vms_share(shop: Shop) -> None:
    told = heed_boots(shop)
    ended = shop.made.run(start_test(shop, "sp-7"))
    assert ended.state is JobState.SUCCEEDED, ended.error
    assert {spec.point_id for spec in told} == {"rp-1-7"}
    (network,) = {spec.networks[0].network_id for spec in told}
    assert {spec.vm.nics[0].network_id for spec in told} == {network}
    assert {spec.vm.nics[0].address for spec in told} == {"10.0.1.8", "10.0.1.9"}
    assert not any(subnet.tunnel_id for spec in told for subnet in spec.networks[0].subnets)
    assert [test.group for test in rehearsals(shop).values() if test] == ["shop", "shop"]
    assert {shop.item(name).state for name in NAMES} == {ItemState.PROTECTED}
    with pytest.raises(Conflict, match=r"db-1 has a test VM already; web-1 has a test VM already"):
        start_test(shop)
    with pytest.raises(Conflict, match="group shop has test VMs"):
        shop.service.consistency.delete("main", "shop")
    discarded: list[object] = []
    shop.made.before_answer[Verb.RECOVERY_DISCARD] = lambda: discarded.append(
        shop.made.last[Verb.RECOVERY_DISCARD]["networks"]
    )
    assert shop.made.run(clean_up(shop)).state is JobState.SUCCEEDED
    assert discarded == [[network], [network]]
    assert rehearsals(shop) == dict.fromkeys(NAMES)
    with pytest.raises(Conflict, match="has no test VMs"):
        clean_up(shop)


def test_if_one_does_not_boot_nothing_is_left(shop: Shop) -> None:
    told = heed_boots(shop)
    remember = shop.made.before_answer[Verb.RECOVERY_BOOT]

    def refuse_the_second() -> None:
        remember()
        if len(told) == 2:
            shop.made.refuse[Verb.RECOVERY_BOOT] = HypervisorRefused("no memory")

    shop.made.before_answer[Verb.RECOVERY_BOOT] = refuse_the_second
    ended = shop.made.run(start_test(shop))
    assert ended.state is JobState.FAILED
    assert "no memory" in ended.error
    assert shop.made.asked[Verb.RECOVERY_DISCARD] == 2
    assert rehearsals(shop) == dict.fromkeys(NAMES)
    shop.made.refuse.clear()
    assert shop.made.run(start_test(shop)).state is JobState.SUCCEEDED


def test_a_group_that_cannot_be_tested_says_why_and_has_no_test_vm(shop: Shop) -> None:
    alone = shop.service.rehearsals.start("main", "web-1")
    assert shop.made.run(alone).state is JobState.SUCCEEDED
    with pytest.raises(Conflict, match="group shop cannot be tested: web-1 has a test VM"):
        start_test(shop)
    assert shop.item("db-1").rehearsal is None
    shop.made.run(shop.service.rehearsals.clean_up("main", "web-1"))
    with pytest.raises(NotFound, match="sp-9"):
        start_test(shop, "sp-9")
    memory = sum(vm.memory_mib for vm in target_vms(shop))
    told = NodeStatus(storage_root="/somewhere", memory_available_mib=memory - 1)
    shop.made.service.monitor.take_status(shop.made.target, told)
    with pytest.raises(Conflict, match="group shop at once"):
        start_test(shop)
    assert rehearsals(shop) == dict.fromkeys(NAMES)


def target_vms(shop: Shop) -> list[VirtualMachine]:
    with shop.made.vault.read() as records:
        return [records.items.get("main", name).target_vm for name in NAMES]


def test_one_test_vm_is_not_taken_away_while_the_others_begin(shop: Shop) -> None:
    job = start_test(shop)
    asks: list[Callable[[], Job]] = [
        lambda: shop.service.rehearsals.clean_up("main", "web-1"),
        lambda: clean_up(shop),
        lambda: shop.service.consistency.put("main", "shop", NAMES),
    ]
    for ask in asks:
        with pytest.raises(Conflict, match=job.id):
            ask()
    assert shop.made.run(job).state is JobState.SUCCEEDED
    alone = shop.service.rehearsals.clean_up("main", "web-1")
    assert shop.made.run(alone).state is JobState.SUCCEEDED
    assert shop.made.run(clean_up(shop)).state is JobState.SUCCEEDED
    assert rehearsals(shop) == dict.fromkeys(NAMES)


def test_a_clean_up_leaves_alone_a_test_that_began_since(shop: Shop) -> None:
    assert shop.made.run(start_test(shop)).state is JobState.SUCCEEDED
    cleaning = clean_up(shop)
    begun: list[Job] = []
    before = shop.made.engine.before_step

    def begin_anew(name: str) -> None:
        before(name)
        if name == "record" and not begun:
            record = shop.item("web-1")
            assert record.rehearsal is not None
            Rehearsing(shop.service.bench).forget(record.id, record.rehearsal, "it is gone")
            begun.append(shop.service.rehearsals.start("main", "web-1"))

    shop.made.engine.before_step = begin_anew
    assert shop.made.run(cleaning).state is JobState.SUCCEEDED
    left = rehearsals(shop)
    assert left["db-1"] is None
    assert left["web-1"] is not None, "the vault forgot a test VM that runs"
    assert left["web-1"].group == ""


# --- in plans


def make_plan(shop: Shop) -> None:
    """A plan's groups have one of the items each."""
    groups = tuple(PlanGroup(name=name[:-2], items=(name,)) for name in NAMES)
    shop.service.plans.put(RecoveryPlan(name="site", vault="main", groups=groups))


def test_a_plan_takes_a_group_to_one_moment_in_whichever_order(shop: Shop) -> None:
    make_plan(shop)
    before = shop.made.engine.before_step

    def share_meanwhile(name: str) -> None:
        before(name)
        if name == "web begin":
            shop.share(9)

    shop.made.engine.before_step = share_meanwhile
    ended = shop.made.run(shop.service.plans.run("main", "site", SHARED))
    assert ended.state is JobState.SUCCEEDED, ended.error
    assert points(shop) == dict.fromkeys(NAMES, "rp-1-8")


def test_a_plan_that_stopped_goes_on_to_the_same_moment(shop: Shop) -> None:
    make_plan(shop)
    booted: list[str] = []

    def refuse_the_second() -> None:
        booted.append("")
        if len(booted) == 2:
            shop.made.refuse[Verb.RECOVERY_BOOT] = HypervisorRefused("no memory")

    shop.made.before_answer[Verb.RECOVERY_BOOT] = refuse_the_second
    stopped = shop.made.run(shop.service.plans.run("main", "site", SHARED))
    assert stopped.state is JobState.FAILED
    assert points(shop) == {"db-1": "rp-1-8", "web-1": ""}
    shop.made.refuse.clear()
    shop.share(9)
    assert shop.made.run(shop.service.plans.resume("main", "site")).state is JobState.SUCCEEDED
    assert points(shop) == dict.fromkeys(NAMES, "rp-1-8")


def test_a_test_of_a_plan_that_stopped_goes_on_to_the_same_moment(shop: Shop) -> None:
    make_plan(shop)
    told = heed_boots(shop)
    job = shop.service.plans.test("main", "site", "latest-shared")
    before = shop.made.engine.before_step

    def carry_out(name: str) -> None:
        before(name)
        if name in NAMES:
            with shop.made.vault.read() as records:
                children = records.jobs.open_ids(verb="item.test-failover")
            for child in children:
                shop.made.engine.run(child)
        if name == "db-1":
            shop.made.service.jobs.cancel(job.id)

    shop.made.engine.before_step = carry_out
    assert shop.made.run(job).state in (JobState.CANCELLED, JobState.FAILED)
    shop.share(9)
    shop.made.engine.before_step = lambda name: carry_out(name) if name != "db-1" else before(name)
    resumed = shop.made.run(shop.service.plans.resume("main", "site"))
    assert resumed.state is JobState.SUCCEEDED, resumed.error
    assert [spec.point_id for spec in told] == ["rp-1-8", "rp-1-8"]


def test_items_of_no_group_go_to_their_newest(shop: Shop) -> None:
    make_plan(shop)
    group = PlanGroup(name="all", items=("web-1",))
    shop.service.plans.put(RecoveryPlan(name="one", vault="main", groups=(group,)))
    gone = shop.service.consistency.delete("main", "shop")
    assert shop.made.run(gone).state is JobState.SUCCEEDED
    with pytest.raises(InvalidRequest, match="no item of plan one is in a consistency group"):
        shop.service.plans.run("main", "one", SHARED)
    with pytest.raises(InvalidRequest, match="no item of plan one is in a consistency group"):
        shop.service.plans.test("main", "one", "latest-shared")


def test_a_group_without_a_point_stops_the_plan_before_it_begins(shop: Shop) -> None:
    make_plan(shop)
    with shop.made.vault.write() as records:
        for name in NAMES:
            item_id = shop.item(name).id
            records.points.remove(item_id, ["rp-1-7", "rp-1-8"])
            records.points.add(item_id, [point(9)])
    with pytest.raises(NotFound, match="group shop has no shared recovery point"):
        shop.service.plans.run("main", "site", SHARED)
    assert {shop.item(name).state for name in NAMES} == {ItemState.PROTECTED}


def test_what_loses_something_is_not_planned(shop: Shop) -> None:
    make_plan(shop)
    with pytest.raises(InvalidRequest, match="a planned failover loses nothing"):
        shop.service.plans.run("main", "site", replace(SHARED, planned=True))

"""Drills of recovery plans: in order, in isolation, the evidence kept, nothing of them left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.workflows.replay_rig import Site, site
from tests.unit.workflows.test_consistency import Shop

from leeward.core.codec import from_plain, to_plain
from leeward.core.errors import (
    Conflict,
    HypervisorRefused,
    InvalidRequest,
    LeewardError,
    NotFound,
    Unavailable,
)
from leeward.model.drills import (
    Drill,
    DrillOutcome,
    DrillResult,
    Finding,
    PlanDrill,
    PlanDrillResult,
    Probe,
    ProbeKind,
    Readiness,
    ReadinessState,
)
from leeward.model.plans import ActionKind, PlanAction, PlanGroup, RecoveryPlan
from leeward.model.recovery import ItemState, Job, JobState
from leeward.protocol.drills import ProbingReport, ProbingSpec
from leeward.protocol.fabric import BootSpec
from leeward.protocol.messages import Verb
from leeward.workflows.drill_records import (
    cut_drills_short,
    drill_memory,
    plan_results_of,
    results_of,
)
from leeward.workflows.drill_schedule import DrillSchedule

NAMES = ("db-1", "web-1")
HTTP = Probe(kind=ProbeKind.HTTP, port=8080)
TELL = PlanAction(name="tell", kind=ActionKind.SCRIPT, script="tell")
ASK = PlanAction(name="sure", kind=ActionKind.APPROVAL)
TARGET = "recovery-plan/main/site"
HOUR = 3600


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    """Give a shop with the plan `site`: db-1 first, then web-1."""
    with site(tmp_path) as made:
        shop = Shop(made)
        groups = (
            PlanGroup(name="db", items=("db-1",), pre=(ASK,)),
            PlanGroup(name="web", items=("web-1",), post=(TELL,)),
        )
        made.service.plans.put(RecoveryPlan(name="site", vault="main", groups=groups))
        made.say()
        yield shop


@pytest.fixture
def made(shop: Shop) -> Site:
    """Give the shop's site."""
    return shop.made


def begin(made: Site, wanted: str = "") -> Job:
    return made.service.plan_drills.begin("main", "site", wanted)


def results(made: Site) -> list[PlanDrillResult]:
    with made.vault.read() as records:
        return plan_results_of(records, TARGET)


def results_of_vm(made: Site, name: str) -> list[DrillResult]:
    with made.vault.read() as records:
        return results_of(records, records.items.get("main", name).item.id)


def ready(made: Site) -> Readiness:
    with made.vault.read() as records:
        plan = records.resources.get(RecoveryPlan, "main", "site").value
        return made.service.plan_drills.standing(records, plan).readiness


def items_ready(made: Site) -> dict[str, DrillOutcome | None]:
    with made.vault.read() as records:
        found = [records.items.get("main", name).item for name in NAMES]
    return {item.name: item.last_drill.outcome if item.last_drill else None for item in found}


def check_clean(made: Site) -> None:
    """Nothing of a test VM is left, and both are protected."""
    with made.vault.read() as records:
        for name in NAMES:
            item = records.items.get("main", name).item
            assert (item.rehearsal, item.state) == (None, ItemState.PROTECTED)
    assert made.asked[Verb.RECOVERY_DISCARD] >= len(NAMES)


def order_of(made: Site, *verbs: Verb) -> list[Verb]:
    """Return the list of what will have been ordered, in order."""
    told: list[Verb] = []
    for verb in verbs:
        made.before_answer[verb] = lambda verb=verb: told.append(verb)  # type: ignore[misc]
    return told


def events(made: Site, kind: str) -> list[str]:
    with made.vault.read() as records:
        return [e.message for e in records.events.listed(limit=50, target=TARGET) if e.kind == kind]


def test_a_drill_that_passes_proves_the_plan_and_its_vms(made: Site) -> None:
    assert ready(made) == Readiness()
    made.service.drills.put(Drill(name="web-1", vault="main", probes=(HTTP,)))
    told = order_of(
        *(made, Verb.RECOVERY_BOOT, Verb.SCRIPT_RUN, Verb.PROBE_RUN, Verb.POINT_READ),
        Verb.RECOVERY_DISCARD,
    )
    job = made.run(begin(made))
    assert job.state is JobState.SUCCEEDED, job.error
    boots = [Verb.RECOVERY_BOOT, Verb.RECOVERY_BOOT]
    looks = [Verb.PROBE_RUN, Verb.POINT_READ] * 2
    ends = [Verb.RECOVERY_DISCARD, Verb.RECOVERY_DISCARD]
    assert told == [*boots, Verb.SCRIPT_RUN, *looks, *ends]
    assert made.last[Verb.SCRIPT_RUN]["context"]["is_test"] is True  # type: ignore[index]
    boot = from_plain(made.last[Verb.RECOVERY_BOOT], BootSpec)
    asked = from_plain(made.last[Verb.PROBE_RUN], ProbingSpec)
    assert not boot.hydrates
    assert (asked.network_id, asked.probes) == (boot.networks[0].network_id, (HTTP,))
    (kept,) = results(made)
    assert kept.verdict.outcome is DrillOutcome.PASSED
    assert [(finding.name, finding.passed) for finding in kept.findings] == [
        ("db pre sure", True),
        ("web post tell", True),
        ("db-1 boot", True),
        ("db-1 read", True),
        ("web-1 boot", True),
        ("web-1 read", True),
    ]
    for name in NAMES:
        (of_vm,) = results_of_vm(made, name)
        assert (of_vm.plan, of_vm.verdict.job_id, of_vm.console) == ("site", job.id, "login:")
    assert ready(made).state is ReadinessState.PROVEN
    assert items_ready(made) == dict.fromkeys(NAMES, DrillOutcome.PASSED)
    check_clean(made)


SILENT = to_plain(ProbingReport(findings=(Finding(name="boot", passed=False, detail="silent"),)))


@pytest.mark.parametrize(
    ("verb", "error", "problem", "vms"),
    [
        (Verb.RECOVERY_BOOT, HypervisorRefused("no memory"), "db-1 boot: ", (False, None)),
        (Verb.SCRIPT_RUN, Unavailable("no route"), "web post tell: ", (True, True)),
        (Verb.POINT_READ, Unavailable("error 5"), "db-1 read: ", (False, False)),
        (None, None, "db-1 boot: silent", (False, False)),
    ],
)
def test_whatever_is_wrong_it_is_red_and_cleaned_up(
    made: Site,
    verb: Verb | None,
    error: LeewardError | None,
    problem: str,
    vms: tuple[bool | None, ...],
) -> None:
    if verb is not None and error is not None:
        made.refuse[verb] = error
    else:
        made.results[Verb.PROBE_RUN] = SILENT
    job = made.run(begin(made))
    assert job.state is JobState.FAILED
    assert job.error.startswith(f"the drill of plan site: {problem}")
    assert ready(made).state is ReadinessState.FAILED
    assert ready(made).problem.startswith(problem)
    outcomes = {None: None, True: DrillOutcome.PASSED, False: DrillOutcome.FAILED}
    assert list(items_ready(made).values()) == [outcomes[each] for each in vms]
    (told,) = events(made, "drill_failed")
    assert told.startswith(f"plan site: its drill failed: {problem}")
    check_clean(made)


def test_what_comes_after_a_vm_that_does_not_boot_is_not_begun(made: Site) -> None:
    made.refuse[Verb.RECOVERY_BOOT] = HypervisorRefused("no memory")
    assert made.run(begin(made)).state is JobState.FAILED
    assert (made.asked[Verb.RECOVERY_BOOT], made.asked[Verb.SCRIPT_RUN]) == (1, 0)


def test_test_vms_that_cannot_be_cleaned_up_stay_in_sight(made: Site) -> None:
    made.refuse[Verb.RECOVERY_DISCARD] = HypervisorRefused("it hangs")
    job = made.run(begin(made))
    assert "clean-up: agent n-1 in west: it hangs" in job.error
    with pytest.raises(Conflict, match="db-1 has a test VM already"):
        begin(made)
    made.refuse.clear()
    cleaned = made.run(made.service.clean_ups.clean_up_plan("main", "site"))
    assert cleaned.state is JobState.SUCCEEDED
    check_clean(made)


def test_a_drill_cut_short_proves_nothing_and_leaves_nothing(made: Site) -> None:
    assert made.run(begin(made)).state is JobState.SUCCEEDED
    job = begin(made)
    made.before_answer[Verb.SCRIPT_RUN] = lambda: made.service.jobs.cancel(job.id)
    assert made.run(job).state is JobState.CANCELLED
    assert [each.verdict.outcome for each in results(made)] == [
        DrillOutcome.CUT_SHORT,
        DrillOutcome.PASSED,
    ]
    assert ready(made).state is ReadinessState.PROVEN
    check_clean(made)


def test_a_failover_cuts_it_short_and_has_its_memory(made: Site) -> None:
    job = begin(made)
    with made.vault.write() as records:
        assert cut_drills_short(records, region="west", host="another") == ()
        assert cut_drills_short(records, region="west", host="n-1") == (job.id,)
        freed = [records.items.get("main", name).target_vm.memory_mib for name in NAMES]
        assert drill_memory(records, "west") == {"n-1": sum(freed)}
    assert made.run(job).state is JobState.CANCELLED
    check_clean(made)


def test_it_is_due_in_its_time_and_one_at_a_time(
    made: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = [1000.0]
    clock = made.service.bench.clock
    monkeypatch.setattr(type(clock), "now_ns", lambda self: int(hours[0] * HOUR * 1e9))
    made.service.plan_drills.put(PlanDrill(name="site", vault="main", every_seconds=HOUR))
    made.service.drills.put(Drill(name="web-1", vault="main", every_seconds=2 * HOUR))
    schedule = DrillSchedule(made.service.bench, made.service.drills, made.service.plan_drills)

    def due() -> list[str]:
        schedule.tick()
        with made.vault.read() as records:
            return [
                job_id
                for verb in ("recovery-plan.drill", "item.drill")
                for job_id in records.jobs.open_ids(verb=verb)
            ]

    assert due() == []
    hours[0] += 2.5
    (job_id,) = due()
    assert due() == [job_id], "the item's is due too, and waits for its turn"
    with made.vault.read() as records:
        job = records.jobs.get(job_id)
    assert job.verb == "recovery-plan.drill"
    assert made.run(job).state is JobState.SUCCEEDED
    assert "1 left out" in events(made, "drill_missed")[0]
    (job_id,) = due()
    with made.vault.read() as records:
        job = records.jobs.get(job_id)
    assert job.verb == "item.drill"
    hours[0] += 1
    assert made.run(job).state is JobState.SUCCEEDED
    assert made.run(made.service.rehearsals.start("main", "db-1")).state is JobState.SUCCEEDED
    assert due() == []
    assert due() == []
    (told,) = events(made, "drill_waits")
    assert "plan site: its drill is due and waits" in told
    assert "db-1 has a test VM already" in told


def test_shared_points_are_drilled_together(shop: Shop) -> None:
    made = shop.made
    with pytest.raises(InvalidRequest, match="no item of plan site is in a consistency group"):
        begin(made, "latest-shared")
    group = made.service.consistency.put("main", "shop", NAMES)
    assert made.run(group).state is JobState.SUCCEEDED
    shop.share(7)
    points: list[str] = []
    made.before_answer[Verb.RECOVERY_BOOT] = lambda: points.append(
        str(made.last[Verb.RECOVERY_BOOT]["point_id"])
    )
    assert made.run(begin(made, "latest-shared")).state is JobState.SUCCEEDED
    assert points == ["rp-1-7", "rp-1-7"]


def test_nothing_else_is_done_with_a_plan_meanwhile(made: Site) -> None:
    job = begin(made)
    with made.vault.read() as records:
        plan = records.resources.get(RecoveryPlan, "main", "site").value
    for ask in (
        lambda: begin(made),
        lambda: made.service.plans.put(plan),
        lambda: made.service.plans.delete("main", "site"),
        lambda: made.service.plans.test("main", "site", "latest"),
        lambda: made.service.clean_ups.clean_up_plan("main", "site"),
        lambda: made.service.rehearsals.clean_up("main", "web-1"),
    ):
        with pytest.raises(Conflict, match=job.id):
            ask()
    assert made.run(job).state is JobState.SUCCEEDED


def test_it_goes_with_its_plan_and_is_no_run_of_it(made: Site) -> None:
    made.service.plan_drills.put(PlanDrill(name="site", vault="main"))
    assert made.run(begin(made)).state is JobState.SUCCEEDED
    with pytest.raises(NotFound, match="has not been run yet"):
        made.service.plans.report("main", "site")
    made.service.plans.delete("main", "site")
    assert results(made) == []
    with made.vault.read() as records:
        assert records.resources.find(PlanDrill, "main", "site") is None
    assert len(results_of_vm(made, "web-1")) == 1


def test_refusals(made: Site) -> None:
    for bad, error in (
        (PlanDrill(name="site", vault="main", every_seconds=5), InvalidRequest),
        (PlanDrill(name="ghost", vault="main"), NotFound),
    ):
        with pytest.raises(error):
            made.service.plan_drills.put(bad)
    with pytest.raises(NotFound):
        made.service.plan_drills.delete("main", "site")
    made.run(made.service.failovers.failover("main", "web-1", "latest"))
    with pytest.raises(Conflict, match="web-1 is failed over"):
        begin(made)

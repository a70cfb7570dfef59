"""Recovery plans run: group after group, stopping at what fails, going on from there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.unit.workflows.replay_rig import Site, site

from leeward.core.errors import Conflict, HypervisorRefused, InvalidRequest, NotFound
from leeward.model.plans import ActionKind, PlanAction, PlanGroup, PlanOptions, RecoveryPlan
from leeward.model.recovery import ItemState, Job, JobState, JobStep, Rehearsal
from leeward.protocol.messages import Verb

NOTIFY = PlanAction(name="notify", kind=ActionKind.SCRIPT, script="notify")
ASK = PlanAction(name="ask", kind=ActionKind.APPROVAL, timeout_seconds=60, message="sure?")
PORT = PlanAction(name="port", kind=ActionKind.WAIT_PORT, item="web-1", port=80)


def plan(**given: tuple[PlanAction, ...]) -> RecoveryPlan:
    web = PlanGroup(name="web", items=("web-1",), **given)  # type: ignore[arg-type]
    return RecoveryPlan(name="site", vault="main", groups=(web,))


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as made:
        assert made.run(made.protect()).state is JobState.SUCCEEDED
        before = made.engine.before_step

        def carry_children_out(name: str) -> None:
            before(name)
            if name == "web-1":  # the engine runs the VM's own job beside the plan's
                for verb in ("item.failover", "item.test-failover"):
                    with made.vault.read() as records:
                        children = records.jobs.open_ids(verb=verb)
                    for child in children:
                        made.engine.run(child)

        made.engine.before_step = carry_children_out
        yield made


def run(made: Site) -> Job:
    return made.service.plans.run("main", "site", PlanOptions())


def cleaned_up(made: Site) -> Job:
    return made.run(made.service.clean_ups.clean_up_plan("main", "site"))


def state(made: Site) -> ItemState:
    with made.vault.read() as records:
        return records.items.get("main", "web-1").item.state


def test_a_plan_runs_and_its_report_tells_every_step(made: Site) -> None:
    made.service.plans.put(plan(pre=(NOTIFY,), post=(PORT,)))
    shown = made.service.plans.dry_run("main", "site")
    assert shown.steps == ("web pre notify", "web vm web-1", "web post port")
    assert (shown.obstacles, shown.target_region) == ((), "west")
    ended = made.run(run(made))
    assert ended.state is JobState.SUCCEEDED, ended.error
    assert state(made) is ItemState.FAILED_OVER
    assert made.last[Verb.SCRIPT_RUN]["script"] == "notify"
    assert made.last[Verb.PORT_WAIT]["address"] == "10.0.1.9"
    report = made.service.plans.report("main", "site")
    assert [each.state for each in report.steps] == ["succeeded"] * 3
    assert report.steps[1].job_id.startswith("job-")
    assert [line.partition(":")[0] for line in report.critical_path] == [
        "web pre notify",
        "web-1",
        "web post port",
    ]
    with pytest.raises(Conflict, match="everything in it has failed over already"):
        run(made)


def test_a_failing_action_stops_exactly_there_and_resume_goes_on(made: Site) -> None:
    second = PlanAction(name="second", kind=ActionKind.SCRIPT, script="second")
    made.service.plans.put(plan(pre=(NOTIFY, second)))
    asked: list[str] = []
    made.before_answer[Verb.SCRIPT_RUN] = lambda: asked.append(
        str(made.last[Verb.SCRIPT_RUN]["script"])
    )
    made.engine.before_step, carry_on = _refuse_at(made, "web pre second"), made.engine.before_step
    stopped = made.run(run(made))
    assert stopped.state is JobState.FAILED
    assert "no route" in stopped.error
    assert state(made) is ItemState.PROTECTED
    made.refuse.clear()
    made.engine.before_step = carry_on
    resumed = made.run(made.service.plans.resume("main", "site"))
    assert resumed.state is JobState.SUCCEEDED, resumed.error
    assert asked == ["notify", "second", "second"]
    report = made.service.plans.report("main", "site")
    assert len(report.jobs) == 2
    assert {each.state for each in report.steps} == {"succeeded"}
    with pytest.raises(Conflict, match="nothing to resume"):
        made.service.plans.resume("main", "site")


def test_a_vm_that_cannot_fail_over_stops_the_plan_before_what_comes_after(made: Site) -> None:
    made.service.plans.put(plan(post=(NOTIFY,)))
    made.refuse[Verb.RECOVERY_BOOT] = HypervisorRefused("no memory left")
    stopped = made.run(run(made))
    assert stopped.state is JobState.FAILED
    assert "web-1: agent n-1 in west: no memory left" in stopped.error
    assert made.asked[Verb.SCRIPT_RUN] == 0
    made.refuse.clear()
    assert made.run(made.service.plans.resume("main", "site")).state is JobState.SUCCEEDED
    assert made.asked[Verb.SCRIPT_RUN] == 1


@pytest.mark.parametrize("after_action", [False, True], ids=["before", "after"])
def test_killed_at_every_step_it_goes_on_and_moves_the_vm_once(
    made: Site, after_action: bool
) -> None:
    made.service.plans.put(plan(pre=(NOTIFY,), post=(PORT,)))
    job = run(made)
    for index in range(4):
        assert not made.engine.run(job.id, kill_at=index, after_action=after_action)
    assert made.run(job).state is JobState.SUCCEEDED
    assert made.asked[Verb.RECOVERY_BOOT] == made.asked[Verb.SCRIPT_RUN] == 1


def test_an_approval_is_waited_for_and_given_once(made: Site) -> None:
    made.service.plans.put(plan(pre=(ASK,)))
    job = run(made)
    with pytest.raises(Conflict, match="waits for no approval"):
        made.service.plans.approve("main", "site", action="ask")
    given: list[str] = []

    def approve(name: str) -> None:
        if name == "web pre ask":
            with made.vault.write() as records:  # as its progress will, a moment later
                step = JobStep(name=name, state=JobState.RUNNING, started_ns=1)
                records.jobs.put_step(job.id, 0, step)
            with pytest.raises(Conflict, match="it waits for web pre ask"):
                made.service.plans.approve("main", "site", action="other")
            given.append(made.service.plans.approve("main", "site", action="ask").step)
        else:
            carry_on(name)

    carry_on, made.engine.before_step = made.engine.before_step, approve
    ended = made.run(job)
    assert ended.state is JobState.SUCCEEDED, ended.error
    assert given == ["web pre ask"]


def test_a_run_can_be_cancelled_and_resumed(made: Site) -> None:
    made.service.plans.put(plan(pre=(NOTIFY,)))
    job = run(made)
    made.service.jobs.cancel(job.id)
    assert made.run(job).state is JobState.CANCELLED
    assert made.asked[Verb.SCRIPT_RUN] == 0
    assert made.run(made.service.plans.resume("main", "site")).state is JobState.SUCCEEDED


def test_who_asks_out_of_turn_is_told(made: Site) -> None:
    with pytest.raises(NotFound, match="recovery plan site"):
        run(made)
    ghost = PlanGroup(name="web", items=("ghost",))
    with pytest.raises(InvalidRequest, match="does not protect ghost"):
        made.service.plans.put(RecoveryPlan(name="site", vault="main", groups=(ghost,)))
    made.service.plans.put(plan())
    with pytest.raises(NotFound, match="has not been run yet"):
        made.service.plans.resume("main", "site")
    job = run(made)
    for out_of_turn in (
        lambda: run(made),
        lambda: made.service.plans.put(plan(pre=(NOTIFY,))),
        lambda: made.service.plans.delete("main", "site"),
        lambda: made.service.plans.resume("main", "site"),
    ):
        with pytest.raises(Conflict, match=f"is being run by {job.id}"):
            out_of_turn()


def _refuse_at(made: Site, step: str) -> Callable[[str], None]:
    carry_on = made.engine.before_step

    def hook(name: str) -> None:
        if name == step:
            made.refuse[Verb.SCRIPT_RUN] = Conflict("no route")
        carry_on(name)

    return hook


def rehearsal(made: Site) -> Rehearsal | None:
    with made.vault.read() as records:
        return records.items.get("main", "web-1").item.rehearsal


def test_a_plan_is_tested_and_cleaned_up(made: Site) -> None:
    made.service.plans.put(plan(pre=(NOTIFY,), post=(PORT,)))
    ended = made.run(made.service.plans.test("main", "site", "latest"))
    assert ended.state is JobState.SUCCEEDED, ended.error
    assert state(made) is ItemState.PROTECTED, "nothing has failed over"
    there = rehearsal(made)
    assert there is not None
    assert there.plan == "site"
    assert made.last[Verb.SCRIPT_RUN]["context"]["is_test"] is True  # type: ignore[index]
    waited = made.last[Verb.PORT_WAIT]
    assert (waited["network_id"], waited["address"]) == (there.networks["corp-asr"], "10.0.1.9")
    report = made.service.plans.report("main", "site")
    assert [each.state for each in report.steps] == ["succeeded"] * 3
    for refused in (
        lambda: made.service.plans.test("main", "site", "latest"),
        lambda: made.service.plans.delete("main", "site"),
    ):
        with pytest.raises(Conflict, match="test-cleanup site"):
            refused()
    assert cleaned_up(made).state is JobState.SUCCEEDED
    assert rehearsal(made) is None
    networks = list(there.networks.values())
    assert made.last[Verb.RECOVERY_DISCARD] == {"vm_id": there.vm_id, "networks": networks}
    with pytest.raises(Conflict, match="has no test VMs"):
        made.service.clean_ups.clean_up_plan("main", "site")
    assert made.run(run(made)).state is JobState.SUCCEEDED
    assert made.last[Verb.SCRIPT_RUN]["context"]["is_test"] is False  # type: ignore[index]


def test_a_test_that_fails_stops_there_and_can_be_resumed_or_cleaned_up(made: Site) -> None:
    made.service.plans.put(plan(post=(NOTIFY,)))
    made.refuse[Verb.SCRIPT_RUN] = Conflict("no route")
    assert made.run(made.service.plans.test("main", "site", "latest")).state is JobState.FAILED
    assert rehearsal(made) is not None
    made.refuse.clear()
    resumed = made.service.plans.resume("main", "site")
    assert resumed.verb == "recovery-plan.test"
    assert made.run(resumed).state is JobState.SUCCEEDED
    assert made.asked[Verb.RECOVERY_BOOT] == 1
    assert cleaned_up(made).state is JobState.SUCCEEDED


def test_a_plan_whose_vms_are_taken_is_not_tested(made: Site) -> None:
    made.service.plans.put(plan())
    made.run(made.service.rehearsals.start("main", "web-1"))
    with pytest.raises(Conflict, match="web-1 has a test VM already"):
        made.service.plans.test("main", "site", "latest")
    with pytest.raises(Conflict, match="has no test VMs"):
        made.service.clean_ups.clean_up_plan("main", "site")
    made.run(made.service.rehearsals.clean_up("main", "web-1"))
    job = made.service.plans.test("main", "site", "latest")
    with pytest.raises(Conflict, match=job.id):
        made.service.clean_ups.clean_up_plan("main", "site")


def test_a_test_vm_is_not_taken_away_twice_at_once(made: Site) -> None:
    made.service.plans.put(plan())
    assert made.run(made.service.plans.test("main", "site", "latest")).state is JobState.SUCCEEDED
    cleaning = made.service.clean_ups.clean_up_plan("main", "site")
    with pytest.raises(Conflict, match=cleaning.id):
        made.service.rehearsals.clean_up("main", "web-1")
    assert made.run(cleaning).state is JobState.SUCCEEDED
    assert rehearsal(made) is None

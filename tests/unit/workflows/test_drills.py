"""Drills: the evidence is kept and nothing of the test VM is left, whatever was seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.workflows.replay_rig import PICTURE, Site, site

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
    DrillScreen,
    Finding,
    Probe,
    ProbeKind,
    Readiness,
    ReadinessState,
    readiness,
)
from leeward.model.recovery import ItemState, Job, JobState, ReplicatedItem
from leeward.protocol.drills import ProbingReport, ProbingSpec
from leeward.protocol.fabric import BootSpec
from leeward.protocol.messages import Verb
from leeward.workflows.drill_records import results_of

HTTP = Probe(kind=ProbeKind.HTTP, port=8080, path="/check", text="ok")


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Site]:
    """Give a site whose web-1 is protected."""
    with site(tmp_path) as made:
        assert made.run(made.protect()).state is JobState.SUCCEEDED
        yield made


def drill(made: Site, wanted: str = "") -> Job:
    made.say()
    return made.run(made.service.drills.begin("main", "web-1", wanted))


def item(made: Site) -> ReplicatedItem:
    with made.vault.read() as records:
        return records.items.get("main", "web-1").item


def results(made: Site) -> list[DrillResult]:
    with made.vault.read() as records:
        return results_of(records, item(made).id)


def ready(made: Site, after_ns: int = 0) -> Readiness:
    found = item(made)
    ended = found.last_drill.ended_ns if found.last_drill else 0
    return readiness(found.last_drill, target_region="west", now_ns=ended + after_ns)


def test_a_drill_that_passes_proves_the_item_and_leaves_its_evidence(made: Site) -> None:
    assert ready(made) == Readiness()
    made.service.drills.put(Drill(name="web-1", vault="main", probes=(HTTP,)))
    job = drill(made)
    assert job.state is JobState.SUCCEEDED, job.error
    boot = from_plain(made.last[Verb.RECOVERY_BOOT], BootSpec)
    assert not boot.hydrates, "nobody keeps its disks"
    asked = from_plain(made.last[Verb.PROBE_RUN], ProbingSpec)
    assert (asked.network_id, asked.address) == (boot.networks[0].network_id, "10.0.1.9")
    assert asked.probes == (HTTP,)
    (kept,) = results(made)
    assert kept.verdict.outcome is DrillOutcome.PASSED
    assert kept.verdict.recovery_point == boot.point_id
    assert (kept.console, kept.disks[0].sha256) == ("login:", "ab")
    assert [finding.name for finding in kept.findings] == ["boot", "read"]
    with made.vault.read() as records:
        shown = records.resources.get(DrillScreen, item(made).id, job.id).value
    assert shown.png == PICTURE
    assert kept.screen_sha256
    assert ready(made, after_ns=60 * 10**9).state is ReadinessState.PROVEN
    assert ready(made, after_ns=60 * 10**9).age_seconds == 60
    check_clean(made, boot)


def check_clean(made: Site, boot: BootSpec) -> None:
    """Nothing of the test VM is left."""
    assert item(made).rehearsal is None
    networks = [network.network_id for network in boot.networks]
    assert made.last[Verb.RECOVERY_DISCARD] == {"vm_id": boot.vm.vm_id, "networks": networks}


SILENT = to_plain(
    ProbingReport(
        findings=(
            Finding(name="boot", passed=True),
            Finding(name="http:8080/check", passed=False, detail="no answer"),
        )
    )
)


@pytest.mark.parametrize(
    ("verb", "error", "problem"),
    [
        (Verb.RECOVERY_BOOT, HypervisorRefused("no memory"), "boot: agent n-1 in west: no memory"),
        (Verb.PROBE_RUN, Unavailable("no network"), "probe: agent n-1 in west: no network"),
        (Verb.POINT_READ, Unavailable("error 5"), "read: agent n-1 in west: error 5"),
        (Verb.CONSOLE_VIEW, Unavailable("hangs"), "console: agent n-1 in west: hangs"),
        (None, None, "http:8080/check: no answer"),
    ],
)
def test_whatever_is_wrong_it_is_red_and_cleaned_up(
    made: Site, verb: Verb | None, error: LeewardError | None, problem: str
) -> None:
    if verb is not None and error is not None:
        made.refuse[verb] = error
    else:
        made.results[Verb.PROBE_RUN] = SILENT
    job = drill(made)
    assert job.state is JobState.FAILED
    assert job.error == f"the drill of web-1: {problem}"
    assert ready(made).state is ReadinessState.FAILED
    assert ready(made).problem == results(made)[0].verdict.problem == problem
    check_clean(made, from_plain(made.last[Verb.RECOVERY_BOOT], BootSpec))
    with made.vault.read() as records:
        assert any(event.kind == "drill_failed" for event in records.events.listed(limit=9))


def test_a_test_vm_that_cannot_be_cleaned_up_stays_in_sight(made: Site) -> None:
    made.refuse[Verb.RECOVERY_DISCARD] = HypervisorRefused("it hangs")
    job = drill(made)
    assert "clean-up: agent n-1 in west: it hangs" in job.error
    assert item(made).rehearsal is not None
    made.refuse.clear()
    assert made.run(made.service.rehearsals.clean_up("main", "web-1")).state is JobState.SUCCEEDED
    assert item(made).rehearsal is None


def test_only_what_is_asked_for_is_read(made: Site) -> None:
    made.service.drills.put(Drill(name="web-1", vault="main", reads_all=False))
    assert drill(made).state is JobState.SUCCEEDED
    assert made.asked[Verb.POINT_READ] == 0


def test_a_drill_cut_short_proves_nothing_and_leaves_nothing(made: Site) -> None:
    assert drill(made).state is JobState.SUCCEEDED
    before = item(made).last_drill
    job = made.service.drills.begin("main", "web-1")
    made.before_answer[Verb.PROBE_RUN] = lambda: made.service.jobs.cancel(job.id)
    assert made.run(job).state is JobState.CANCELLED
    assert item(made).last_drill == before
    assert results(made)[0].verdict.outcome is DrillOutcome.CUT_SHORT
    assert item(made).rehearsal is None


def test_the_other_direction_is_not_proven_by_it(made: Site) -> None:
    drill(made)
    shown = readiness(item(made).last_drill, target_region="east", now_ns=0)
    assert shown.state is ReadinessState.UNPROVEN


def test_so_many_results_are_kept_and_they_go_with_the_item(
    made: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leeward.workflows.drill_records.RESULTS_KEPT", 2)
    item_id = item(made).id
    for _ in range(4):
        newest = drill(made)
    kept = results(made)
    assert len(kept) == 2
    assert kept[0].verdict.job_id == newest.id
    made.service.drills.put(Drill(name="web-1", vault="main"))
    job = made.service.disabling.disable("main", "web-1", delete_replica=False)
    assert made.run(job).state is JobState.SUCCEEDED
    with made.vault.read() as records:
        for kind in (DrillResult, DrillScreen):
            assert records.resources.listed(kind, item_id) == []
        assert records.resources.find(Drill, "main", "web-1") is None


def test_refusals(made: Site) -> None:
    for bad, field in (
        (Drill(name="web-1", vault="main", every_seconds=5), "every_seconds"),
        (Drill(name="web-1", vault="main", boot_seconds=0), "boot_seconds"),
        (Drill(name="web-1", vault="main", probes=(HTTP,) * 40), "probes"),
        (drill_of(Probe(kind=ProbeKind.TCP, port=0)), "probes.tcp:0"),
        (drill_of(Probe(kind=ProbeKind.HTTP, port=80, path="x")), "probes.http:80x"),
        (drill_of(Probe(kind=ProbeKind.HTTP, port=80, status=7)), "probes.http:80/"),
    ):
        with pytest.raises(InvalidRequest) as refusal:
            made.service.drills.put(bad)
        assert refusal.value.field == field
    with pytest.raises(NotFound):
        made.service.drills.put(Drill(name="ghost", vault="main"))
    with pytest.raises(NotFound):
        made.service.drills.begin("main", "web-1", "rp-9-9")
    job = made.service.drills.begin("main", "web-1")
    with pytest.raises(Conflict, match="has a test VM already"):
        made.service.drills.begin("main", "web-1")
    with pytest.raises(Conflict, match=f"belongs to {job.id}"):
        made.service.rehearsals.clean_up("main", "web-1")
    made.run(job)
    made.run(made.service.failovers.failover("main", "web-1", "latest"))
    assert item(made).state is ItemState.FAILED_OVER
    with pytest.raises(Conflict, match="is failed over, not protected"):
        made.service.drills.begin("main", "web-1")


def drill_of(probe: Probe) -> Drill:
    return Drill(name="web-1", vault="main", probes=(probe,))

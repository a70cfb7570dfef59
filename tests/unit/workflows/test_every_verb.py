"""Every verb the service has, killed and cancelled at every step it has.

Verbs come from the service's own table and steps from a whole run, so that a new verb or step is
found by itself. A verb that nobody has told here how to submit fails.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from tests.unit.workflows.replay_rig import GIB, Site, site, state_of
from tests.unit.workflows.test_consistency import Shop
from tests.unit.workflows.test_replay import committed
from tests.unit.workflows.test_replica_verbs import LEFT, leave_behind

from leeward.core.codec import to_plain
from leeward.core.errors import Conflict
from leeward.model.plans import ActionKind, PlanAction, PlanGroup, PlanOptions, RecoveryPlan
from leeward.model.recovery import ItemState, Job, JobState, Policy
from leeward.model.resources import (
    Disk,
    PowerState,
    Routing,
    StorageAccount,
    VirtualMachine,
    VirtualNetwork,
)
from leeward.protection.update import ItemChanges
from leeward.protocol.fabric import VmStatus
from leeward.protocol.messages import NodeStatus, Verb
from leeward.protocol.rebuild import FoundItem, FoundItems
from leeward.vault.resources import ResourceState
from leeward.workflows.change_verbs import MachineSize
from leeward.workflows.item_specs import about_item
from leeward.workflows.jobs import CANCELLABLE


def _verbs() -> list[str]:
    with TemporaryDirectory() as directory, ExitStack() as stack:
        made = Site(Path(directory), stack)
        return sorted(made.service._verbs())


def protected(made: Site) -> None:
    """web-1 is protected."""
    assert made.run(made.protect()).state is JobState.SUCCEEDED


def moved(made: Site) -> None:
    """web-1 has failed over."""
    protected(made)
    job = made.service.failovers.failover("main", "web-1", "latest")
    assert made.run(job).state is JobState.SUCCEEDED
    made.say()


def at_last(made: Site) -> None:
    """web-1 has failed over, for good."""
    protected(made)
    committed(made)


def _job(job: Job | None) -> Job:
    assert job is not None
    return job


def _create_vm(made: Site) -> Job:
    with made.vault.read() as records:
        vm = records.resources.get(VirtualMachine, "east", "web-1").value
    nics = tuple(replace(nic, address="") for nic in vm.nics)
    wanted = replace(vm, name="web-2", nics=nics, host="", availability_set="")
    return _job(made.service.machines.create(wanted))


def _create_account(made: Site) -> Job:
    wanted = StorageAccount(region="east", name="more", resource_group="rg")
    return _job(made.service.resources.create_account(wanted))


def _delete_account(made: Site) -> Job:
    assert made.run(_create_account(made)).state is JobState.SUCCEEDED
    return _job(made.service.resources.delete_real(StorageAccount, "east", "more"))


def _change(made: Site) -> Job:
    moved(made)
    first = made.points[0]
    made.points.append(replace(first, id="rp-1-9", sequence=9))
    made.say()
    return made.service.failovers.change("main", "web-1", "rp-1-9")


def _update(made: Site) -> Job:
    protected(made)
    return made.service.updates.update("main", "web-1", ItemChanges(vcpus=3))


def _change_cache(made: Site) -> Job:
    protected(made)
    assert made.run(_create_account(made)).state is JobState.SUCCEEDED
    return made.service.caches.change("main", "web-1", "more")


def _change_worker(made: Site) -> Job:
    protected(made)
    made.silence(made.worker)
    made.enrol_worker("n-2")
    made.service.workers.tick()
    with made.vault.read() as records:
        (job_id,) = records.jobs.open_ids(verb="item.change-worker")
        return records.jobs.get(job_id)


def _policy(made: Site) -> Job:
    protected(made)
    made.service.policies.put("main", Policy(name="default", compression="lz4"))
    with made.vault.read() as records:
        (job_id,) = records.jobs.open_ids(verb="policy.apply")
        return records.jobs.get(job_id)


def _plan(made: Site) -> Job:
    protected(made)
    script = PlanAction(name="tell", kind=ActionKind.SCRIPT, script="tell")
    group = PlanGroup(name="web", items=("web-1",), pre=(script,), post=(script,))
    group = replace(group, post=(replace(script, name="again"),))
    made.service.plans.put(RecoveryPlan(name="site", vault="main", groups=(group,)))
    before = made.engine.before_step

    def carry_children_out(name: str) -> None:
        before(name)
        if name == "web-1":
            with made.vault.read() as records:
                children = records.jobs.open_ids(verb="item.failover")
            for child in children:
                made.engine.run(child)

    made.engine.before_step = carry_children_out
    return made.service.plans.run("main", "site", PlanOptions())


def _apply_group(made: Site) -> Job:
    return Shop(made).service.consistency.put("main", "shop", ("db-1", "web-1"))


def _fail_group_over(made: Site) -> Job:
    shop = Shop(made)
    assert shop.group().state is JobState.SUCCEEDED
    shop.share(7)
    return shop.fail_over()


def _change_group(made: Site) -> Job:
    shop = Shop(made)
    assert shop.group().state is JobState.SUCCEEDED
    shop.share(6)
    shop.share(7)
    assert made.run(shop.fail_over()).state is JobState.SUCCEEDED
    return shop.service.group_moves.change("main", "shop", "sp-6")


def _test_group(made: Site) -> Job:
    shop = Shop(made)
    assert shop.group().state is JobState.SUCCEEDED
    shop.share(7)
    return shop.service.group_tests.start("main", "shop", "latest-shared")


def _group_tested(made: Site) -> Job:
    assert made.run(_test_group(made)).state is JobState.SUCCEEDED
    return made.service.clean_ups.clean_up_group("main", "shop")


def _plan_test(made: Site) -> Job:
    protected(made)
    script = PlanAction(name="tell", kind=ActionKind.SCRIPT, script="tell")
    group = PlanGroup(name="web", items=("web-1",), pre=(script,))
    made.service.plans.put(RecoveryPlan(name="site", vault="main", groups=(group,)))
    before = made.engine.before_step

    def carry_children_out(name: str) -> None:
        before(name)
        if name == "web-1":
            with made.vault.read() as records:
                children = records.jobs.open_ids(verb="item.test-failover")
            for child in children:
                made.engine.run(child)

    made.engine.before_step = carry_children_out
    return made.service.plans.test("main", "site", "latest")


def _plan_drill(made: Site) -> Job:
    protected(made)
    script = PlanAction(name="tell", kind=ActionKind.SCRIPT, script="tell")
    group = PlanGroup(name="web", items=("web-1",), pre=(script,))
    made.service.plans.put(RecoveryPlan(name="site", vault="main", groups=(group,)))
    return made.service.plan_drills.begin("main", "site")


def _plan_tested(made: Site) -> Job:
    assert made.run(_plan_test(made)).state is JobState.SUCCEEDED
    return made.service.clean_ups.clean_up_plan("main", "site")


def _rehearsed(made: Site) -> Job:
    protected(made)
    assert made.run(made.service.rehearsals.start("main", "web-1")).state is JobState.SUCCEEDED
    return made.service.rehearsals.clean_up("main", "web-1")


def _rebuild(made: Site) -> Job:
    protected(made)
    with made.vault.read() as records:
        (record,) = records.items.listed()
        about = about_item(records, record)
    found = FoundItem(item_id=record.item.id, epoch=1, about=about, point_count=1)
    made.results[Verb.STORES_READ] = to_plain(FoundItems(items=(found,)))
    with made.vault.write() as records:
        records.items.delete(record.item.id)
    made.before_answer[Verb.PROCESSING_START] = made.say
    return made.service.rebuilding.rebuild(["file:///x"], region="west")


def _change_network(made: Site) -> Job:
    with made.vault.read() as records:
        network = records.resources.get(VirtualNetwork, "east", "corp").value
    wanted = replace(network, routing=Routing.ROUTED)
    return _job(made.service.changes.change_network(wanted, None))


def _delete_network(made: Site) -> Job:
    with made.vault.write() as records:
        network = records.resources.get(VirtualNetwork, "east", "corp").value
        records.resources.insert(replace(network, name="spare"), scope="east", name="spare")
    return made.service.resources.delete_real(VirtualNetwork, "east", "spare")


def _change_machine(made: Site) -> Job:
    stopped = VmStatus(vm_id="web-1", power=PowerState.STOPPED)
    status = NodeStatus(storage_root="/somewhere", vms=(stopped,))
    made.service.monitor.take_status(made.source, status)
    made.results[Verb.VM_UPDATE] = to_plain(stopped)
    size = MachineSize(region="east", name="web-1", vcpus=2, memory_mib=512, forwards=())
    return made.service.changes.change_machine(size, None)


def _add_disk(made: Site) -> Job:
    sizes = VmStatus(vm_id="web-1", power=PowerState.RUNNING, disk_sizes={"logs": GIB})
    made.results[Verb.VM_DISK_ADD] = to_plain(sizes)
    disk = Disk(name="logs", storage_account="data", size_bytes=GIB)
    return made.service.disks.add("east", "web-1", disk)


def _remove_disk(made: Site) -> Job:
    protected(made)
    return made.service.disks.remove("east", "web-1", "data")


def _after(state: Callable[[Site], None], ask: Callable[[Site], Job]) -> Callable[[Site], Job]:
    def submit(made: Site) -> Job:
        state(made)
        return ask(made)

    return submit


SUBMIT: dict[str, Callable[[Site], Job]] = {
    "vm.create": _create_vm,
    "vm.delete": lambda made: made.service.machines.delete("east", "web-1"),
    "vm.start": lambda made: made.service.machines.start("east", "web-1"),
    "vm.stop": lambda made: made.service.machines.stop("east", "web-1", force=True),
    "vm.trim": _after(protected, lambda made: made.service.trims.trim("east", "web-1")),
    "vm.disk-add": _after(protected, _add_disk),
    "vm.disk-remove": _remove_disk,
    "vm.disk-grow": _after(
        protected, lambda made: made.service.disks.grow("east", "web-1", "data", 2 * GIB)
    ),
    "item.test-failover": _after(
        protected, lambda made: made.service.rehearsals.start("main", "web-1")
    ),
    "item.test-failover-cleanup": _rehearsed,
    "item.drill": _after(protected, lambda made: made.service.drills.begin("main", "web-1")),
    "vm.update": _change_machine,
    "network.update": _change_network,
    "network.delete": _delete_network,
    "resource-group.delete": lambda made: made.service.groups.delete("east", "rg"),
    "storage-account.create": _create_account,
    "storage-account.delete": _delete_account,
    "item.protect": lambda made: made.protect(),
    "item.disable": _after(
        protected,
        lambda made: made.service.disabling.disable("main", "web-1", delete_replica=True),
    ),
    "item.failover": _after(
        protected, lambda made: made.service.failovers.failover("main", "web-1", "latest")
    ),
    "item.planned-failover": _after(
        protected,
        lambda made: made.service.planned.failover("main", "web-1", "latest", power_off_seconds=1),
    ),
    "item.change-recovery-point": _change,
    "item.commit": _after(moved, lambda made: made.service.failovers.commit("main", "web-1")),
    "item.undo-commit": _after(
        at_last, lambda made: made.service.reprotection.undo_commit("main", "web-1")
    ),
    "item.reprotect": _after(
        at_last, lambda made: made.service.reprotection.reprotect("main", "web-1")
    ),
    "item.update": _update,
    "item.change-cache": _change_cache,
    "item.change-worker": _change_worker,
    "policy.apply": _policy,
    "recovery-plan.run": _plan,
    "recovery-plan.test": _plan_test,
    "recovery-plan.test-cleanup": _plan_tested,
    "recovery-plan.drill": _plan_drill,
    "consistency-group.apply": _apply_group,
    "consistency-group.failover": _fail_group_over,
    "consistency-group.change-recovery-point": _change_group,
    "consistency-group.test-failover": _test_group,
    "consistency-group.test-failover-cleanup": _group_tested,
    "item.compact": _after(
        protected, lambda made: made.service.space.compact("main", "web-1", dry_run=False)
    ),
    "item.scrub": _after(
        protected, lambda made: made.service.scrubbing.scrub("main", "web-1", dry_run=False)
    ),
    "vault.rebuild": _rebuild,
    "storage.replicas": _after(
        leave_behind, lambda made: made.service.replicas.read(region="", account="")
    ),
    "storage.delete-replica": _after(
        leave_behind, lambda made: made.service.replicas.delete(LEFT, even_if_held=False)
    ),
    "item.recovery-point": _after(
        protected, lambda made: made.service.points.create("main", "web-1")
    ),
    "vault.use-key": _after(protected, lambda made: made.service.keys.use("main", "ab" * 8)),
}


@pytest.mark.parametrize("verb", _verbs())
def test_killed_at_every_step_it_ends_as_if_nothing_had_been(tmp_path: Path, verb: str) -> None:
    submit = SUBMIT.get(verb)
    assert submit is not None, f"say in SUBMIT how {verb} is submitted"
    with site(tmp_path / "whole") as made:
        job = submit(made)
        ended = made.run(job)
        assert ended.state is JobState.SUCCEEDED, ended.error
        expected, steps = state_of(made), len(made.engine.records[job.id])
    for after_action in (False, True):
        with site(tmp_path / f"killed-{after_action}") as made:
            job = submit(made)
            for index in range(steps):
                assert not made.engine.run(job.id, kill_at=index, after_action=after_action)
            assert made.run(job).state is JobState.SUCCEEDED
            assert state_of(made) == expected


@pytest.mark.parametrize("verb", [verb for verb in SUBMIT if verb.startswith("item.")])
def test_a_job_about_an_item_is_found_by_it(tmp_path: Path, verb: str) -> None:
    with site(tmp_path) as made:
        job = SUBMIT[verb](made)
        with made.vault.read() as records:
            (record,) = records.items.listed()
            found = records.jobs.open_of_item(record.item.id)
        assert job.id in [each.id for each in found]


@pytest.mark.parametrize("verb", sorted(CANCELLABLE))
def test_cancelled_at_every_step_it_is_undone_or_goes_through(tmp_path: Path, verb: str) -> None:
    submit = SUBMIT[verb]
    with site(tmp_path / "whole") as made:
        job = submit(made)
        made.run(job)
        steps = len(made.engine.records[job.id])
    ends = set()
    for index in range(steps):
        with site(tmp_path / f"cancelled-{index}") as made:
            job = submit(made)
            if index:
                made.engine.run(job.id, kill_at=index, after_action=False)
            made.service.jobs.cancel(job.id)
            ended = made.run(job)
            ends.add(ended.state)
            assert ended.state in (JobState.CANCELLED, JobState.SUCCEEDED), ended.error
            check_whole(made, verb, ended)
            if verb == "item.reprotect" and ended.state is JobState.CANCELLED:
                again = made.service.reprotection.reprotect("main", "web-1")
                assert made.run(again).state is JobState.SUCCEEDED
    assert JobState.CANCELLED in ends


def check_whole(made: Site, verb: str, ended: Job) -> None:
    """Nothing is half-done, and the VM can still be moved."""
    with made.vault.read() as records:
        items = [record.item for record in records.items.listed()]
        half = [
            stored.name
            for kind in (VirtualMachine, StorageAccount, VirtualNetwork)
            for stored in records.resources.listed(kind)
            if stored.state is not ResourceState.READY
        ]
    assert half == []
    if verb == "item.protect" and ended.state is JobState.CANCELLED:
        assert items == []
    for item in items:
        assert item.next_cache_account == ""
        if verb in ("item.drill", "recovery-plan.drill", "consistency-group.test-failover"):
            assert item.rehearsal is None or ended.state is JobState.SUCCEEDED
        assert item.state not in (
            ItemState.FAILING_OVER,
            ItemState.REPROTECTING,
            ItemState.DISABLING,
        )


@pytest.mark.parametrize("verb", sorted(set(SUBMIT) - CANCELLABLE))
def test_what_cannot_be_cut_short_says_so(tmp_path: Path, verb: str) -> None:
    with site(tmp_path) as made:
        job = SUBMIT[verb](made)
        with pytest.raises(Conflict, match="cannot be cancelled"):
            made.service.jobs.cancel(job.id)
        assert made.run(job).state is JobState.SUCCEEDED

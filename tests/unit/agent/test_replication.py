"""Replication verbs: remembered, resumed, fenced for good."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.agent.fakes import FakeDriver, FakeReplicator, replication_spec

from leeward.agent import records, replication
from leeward.agent.meetings import attempt_of
from leeward.agent.replication import Replications
from leeward.core.errors import Conflict, Fenced, NotFound, Unavailable
from leeward.model.recovery import ReplicationState, SharedMark
from leeward.model.resources import PowerState
from leeward.protocol.fabric import DrainResult, DrainSpec, ReplicationSpec
from leeward.protocol.messages import MeetingCall


class Host:
    """A host that can lose its agent and get a new one."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.driver = FakeDriver()
        self.driver.vms["web-1"] = PowerState.RUNNING
        self.calls = self.driver.calls
        self.made: list[FakeReplicator] = []
        self.agents: list[Replications] = []

    def agent(self) -> Replications:
        def make(spec: ReplicationSpec, _on_news: Callable[[], None]) -> FakeReplicator:
            self.made.append(FakeReplicator(spec, self.calls))
            return self.made[-1]

        self.agents.append(Replications(self.driver, self._directory, make))
        return self.agents[-1]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    for agent in host.agents:  # what could not be stopped is tried again until then
        agent.shut_down()


def test_asked_twice_it_starts_once(host: Host) -> None:
    agent = host.agent()
    agent.start(replication_spec())
    agent.start(replication_spec())
    assert host.calls == ["replicate item-1 epoch 1"]
    assert agent.statuses()[0].state is ReplicationState.STREAMING


def test_unknown_vm_is_refused_and_nothing_is_remembered(host: Host) -> None:
    host.driver.vms.clear()
    with pytest.raises(NotFound):
        host.agent().start(replication_spec())
    assert host.agent().statuses() == ()


def test_replication_goes_on_after_a_restart_without_the_service(host: Host) -> None:
    host.agent().start(replication_spec())
    host.calls.clear()
    host.agent().resume()
    assert host.calls == ["replicate item-1 epoch 1"]


def test_shut_down_leaves_the_tap_for_the_next_agent(host: Host) -> None:
    agent = host.agent()
    agent.start(replication_spec())
    agent.shut_down()
    assert host.calls[-1] == "leave item-1"


def test_replicators_that_wait_for_a_store_are_left_side_by_side(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = host.agent()
    all_leave = threading.Barrier(3)
    for number in range(3):
        agent.start(replace(replication_spec(), item_id=f"item-{number}"))
        monkeypatch.setattr(host.made[-1], "stop", lambda *, detach: all_leave.wait(60))
    agent.shut_down()
    assert not all_leave.broken


def test_stopped_item_is_detached_and_forgotten(host: Host) -> None:
    agent = host.agent()
    agent.start(replication_spec())
    agent.stop("item-1")
    agent.stop("item-1")
    assert host.calls[-1] == "detach item-1"
    assert host.agent().statuses() == ()


def test_item_is_detached_although_the_agent_has_not_taken_it_up_yet(host: Host) -> None:
    host.agent().start(replication_spec())
    host.agent().stop("item-1")
    assert host.calls[-1] == "detach item-1"


def test_detaching_that_fails_can_be_asked_for_again(host: Host) -> None:
    agent = host.agent()
    agent.start(replication_spec())
    host.made[0].refuse_stop = Unavailable("QEMU does not answer")
    with pytest.raises(Unavailable):
        agent.stop("item-1")
    host.made[0].refuse_stop = None
    agent.stop("item-1")
    assert agent.statuses() == ()


def test_fence_stops_the_vm_before_the_replication(host: Host) -> None:
    agent = host.agent()
    agent.start(replication_spec())
    agent.fence("item-1", 2, "web-1")
    assert host.calls[-2:] == ["stop web-1 by force", "detach item-1"]


def test_fenced_item_never_starts_again_under_its_old_epoch(host: Host) -> None:
    agent = host.agent()
    agent.start(replication_spec())
    agent.fence("item-1", 2, "web-1")
    restarted = host.agent()
    host.calls.clear()
    restarted.resume()
    with pytest.raises(Fenced):
        restarted.start(replication_spec(epoch=1))
    assert host.calls == []
    status = restarted.statuses()[0]
    assert (status.state, "superseded" in status.problem) == (ReplicationState.STOPPED, True)


def test_fence_is_remembered_even_if_the_agent_dies_while_stopping_the_vm(host: Host) -> None:
    agent = host.agent()
    agent.start(replication_spec())

    def die(vm_id: str, *, force: bool) -> None:
        raise KeyboardInterrupt

    stop_vm = host.driver.stop_vm
    host.driver.stop_vm = die  # type: ignore[assignment, method-assign]
    with pytest.raises(KeyboardInterrupt):
        agent.fence("item-1", 2, "web-1")
    host.driver.stop_vm = stop_vm  # type: ignore[method-assign]
    host.calls.clear()
    host.agent().resume()
    assert host.calls == ["stop web-1 by force", "detach item-1"], "the next agent ends it"
    host.calls.clear()
    host.agent().resume()
    assert host.calls == [], "and does so once: the VM may be wanted again later"


def test_a_full_disk_does_not_keep_a_returned_vm_running(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = host.agent()
    agent.start(replication_spec())

    def refuse(path: Path, data: bytes) -> None:
        raise Unavailable(f"cannot write {path}: No space left on device")

    with monkeypatch.context() as full:
        full.setattr(records, "write_file", refuse)
        with pytest.raises(Unavailable, match="No space"):
            agent.supersede("item-1", 2)
        assert host.calls[-2:] == ["stop web-1 by force", "detach item-1"]
        assert host.driver.vms["web-1"] is PowerState.STOPPED
        with pytest.raises(Fenced):
            agent.check_not_superseded("web-1")
    agent.supersede("item-1", 2)  # the service says so again with the next status
    with pytest.raises(Fenced):
        host.agent().check_not_superseded("web-1")


def test_an_item_asked_for_again_while_it_could_not_be_stopped_is_not_stopped_later(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replication, "STOP_AGAIN_SECONDS", 0.05)
    agent = host.agent()
    agent.start(replication_spec())
    host.made[0].refuse_stop = Unavailable("QEMU does not answer")
    with pytest.raises(Unavailable):
        agent.stop("item-1")
    agent.start(replication_spec())
    assert host.calls[-1] == "replicate item-1 epoch 1"
    time.sleep(0.2)
    assert "detach item-1" not in host.calls
    host.agent().resume()
    assert host.calls[-1] == "replicate item-1 epoch 1", "and it is remembered"


def test_a_start_waits_for_a_late_stop_under_way(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the stop forgets what has been started meanwhile, and no restart takes it up."""
    agent = host.agent()
    agent.start(replication_spec())
    begun, go_on = threading.Event(), threading.Event()
    stop = host.made[0].stop

    def slow(*, detach: bool) -> None:
        begun.set()
        assert go_on.wait(60)
        stop(detach=detach)

    monkeypatch.setattr(host.made[0], "stop", slow)
    stopping = threading.Thread(target=agent.stop, args=("item-1",))
    stopping.start()
    assert begun.wait(60)
    starting = threading.Thread(target=agent.start, args=(replication_spec(),))
    starting.start()
    starting.join(0.1)
    go_on.set()
    for thread in (stopping, starting):
        thread.join(60)
    assert host.calls[-1] == "replicate item-1 epoch 1"
    host.calls.clear()
    host.agent().resume()
    assert host.calls == ["replicate item-1 epoch 1"]


def test_fencing_an_item_this_host_never_had_still_stops_the_vm(host: Host) -> None:
    host.agent().fence("item-9", 2, "web-1")
    assert host.calls == ["stop web-1 by force"]


def test_superseding_stops_only_older_epochs(host: Host) -> None:
    agent = host.agent()
    agent.start(replication_spec(epoch=3))
    agent.supersede("item-1", 3)
    agent.supersede("item-9", 4)
    assert host.driver.vms["web-1"].value == "running"
    agent.supersede("item-1", 4)
    assert host.driver.vms["web-1"].value == "stopped"


def test_newer_epoch_replaces_the_older_one(host: Host) -> None:
    agent = host.agent()
    agent.start(replication_spec(epoch=1))
    agent.start(replication_spec(epoch=2))
    assert host.calls[-2:] == ["detach item-1", "replicate item-1 epoch 2"]
    with pytest.raises(Fenced):
        agent.start(replication_spec(epoch=1))


def test_a_stop_that_failed_is_finished_without_being_asked_again(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replication, "STOP_AGAIN_SECONDS", 0.01)
    agent = host.agent()
    agent.start(replication_spec())
    host.made[0].refuse_stop = Unavailable("QEMU does not answer")
    with pytest.raises(Unavailable):
        agent.stop("item-1")
    host.made[0].refuse_stop = None
    for _ in range(500):
        if agent.statuses() == ():
            break
        time.sleep(0.01)
    assert host.calls[-1] == "detach item-1"
    assert host.agent().statuses() == ()


def test_a_stop_cut_short_is_finished_by_the_next_agent(host: Host) -> None:
    agent = host.agent()
    agent.start(replication_spec())
    host.made[0].refuse_stop = Unavailable("QEMU does not answer")
    with pytest.raises(Unavailable):
        agent.stop("item-1")
    host.calls.clear()
    successor = host.agent()
    successor.resume()
    assert host.calls == ["detach item-1"]
    assert successor.statuses() == ()


DRAIN = DrainSpec(
    item_id="item-1", epoch=1, vm_id="web-1", power_off_seconds=1.0, drain_seconds=1.0
)


def test_draining_halts_then_sends_then_ends_the_vm_and_is_remembered(host: Host) -> None:
    agent = host.agent()
    agent.start(replication_spec())
    host.calls.clear()
    assert agent.drain(DRAIN) == DrainResult(sequence=42, is_guest_off=True)
    assert host.calls == ["halt web-1", "drain item-1", "stop web-1"]
    successor = host.agent()
    successor.resume()
    host.calls.clear()
    assert successor.drain(DRAIN) == DrainResult(sequence=42, is_guest_off=True)
    assert host.calls == ["stop web-1"]  # not asked to write again, and not asked for another cut


def test_a_vm_that_was_started_again_is_drained_anew(host: Host) -> None:
    agent = host.agent()
    agent.start(replication_spec())
    agent.drain(DRAIN)
    agent.note_start("web-1")
    host.driver.vms["web-1"] = PowerState.RUNNING
    host.calls.clear()
    agent.drain(DRAIN)
    assert host.calls == ["halt web-1", "drain item-1", "stop web-1"]


def test_a_vm_started_again_while_it_is_drained_runs_on(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planned failover that is cancelled has the source started while the host still drains."""
    agent = host.agent()
    agent.start(replication_spec())
    drain = FakeReplicator.drain

    def overtaken(replicator: FakeReplicator, *, seconds: float) -> int:
        agent.note_start("web-1")
        host.driver.start_vm("web-1")
        return drain(replicator, seconds=seconds)

    with monkeypatch.context() as patch:
        patch.setattr(FakeReplicator, "drain", overtaken)
        with pytest.raises(Conflict, match="started again"):
            agent.drain(DRAIN)
    assert host.driver.vms["web-1"] is PowerState.RUNNING
    host.calls.clear()
    agent.drain(DRAIN)  # what it has written since is no less to be sent
    assert host.calls == ["halt web-1", "drain item-1", "stop web-1"]


def test_only_the_epoch_that_is_replicated_can_be_drained(host: Host) -> None:
    agent = host.agent()
    agent.start(replication_spec(epoch=2))
    with pytest.raises(NotFound, match="at epoch 1"):
        agent.drain(DRAIN)
    assert host.driver.vms["web-1"] is PowerState.RUNNING


def test_only_what_is_replicated_here_takes_part_in_a_shared_point(host: Host) -> None:
    agent = host.agent()
    agent.start(replication_spec())
    mark = SharedMark(id="sp-1", group="cg-1", members=("item-1", "item-2"), time_ns=1)
    for item_id in mark.members:
        call = MeetingCall(item_id=item_id, mark=mark)
        agent.share(item_id, attempt_of(call, lambda word, seconds: True))
    assert host.calls[1:] == ["share sp-1 of item-1"]

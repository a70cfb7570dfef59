"""Recovery verbs: boot over an export, found again after a restart, nothing left of a failure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.agent.fakes import FakeDriver, FakeExport, FakeExports, FakeHydrator, boot_spec

from leeward.agent import recovery
from leeward.agent.recovery import ExportPort, Recoveries
from leeward.core.errors import Conflict, HypervisorRefused, NotFound, Unavailable
from leeward.model.resources import PowerState
from leeward.protocol.fabric import BootSpec, VmSpec, VmStatus
from leeward.protocol.messages import HydrationStatus


class Host:
    """A host that can lose its agent and get a new one."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.driver = FakeDriver()
        self.calls = self.driver.calls
        self.exports = FakeExports(self.calls)
        self.hydrators: list[FakeHydrator] = []
        self.agents: list[Recoveries] = []

    def agent(self) -> Recoveries:
        def make(boot: BootSpec, export: ExportPort) -> FakeHydrator:
            self.hydrators.append(FakeHydrator(boot.vm.vm_id, self.calls))
            return self.hydrators[-1]

        self.agents.append(Recoveries(self.driver, self._directory, self.exports, make))
        return self.agents[-1]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    for agent in host.agents:
        agent.shut_down()


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_boot_opens_the_point_while_the_rest_gets_ready(host: Host) -> None:
    host.agent().boot(boot_spec())
    assert host.calls == [
        "export web-1 at rp-1-5",
        "network n1",
        "create web-1 over ['d']",
        "hydrate web-1",
    ]


def test_boot_asked_again_hydrates_once(host: Host) -> None:
    agent = host.agent()
    agent.boot(boot_spec())
    agent.boot(boot_spec())
    assert host.calls.count("hydrate web-1") == 1


def test_failed_boot_leaves_nothing_behind(host: Host) -> None:
    host.driver.refuse_create = Unavailable("no memory")
    agent = host.agent()
    with pytest.raises(Unavailable):
        agent.boot(boot_spec())
    assert (host.exports.open, agent.statuses()) == ({}, ())
    assert host.calls[-2:] == ["delete web-1", "end export web-1"]


def test_a_point_that_does_not_open_is_the_reason_and_leaves_nothing_behind(host: Host) -> None:
    host.exports.refuse_open = NotFound("there is no recovery point rp-1-5")
    for refusal in (None, HypervisorRefused("QEMU would not start: no base")):
        host.driver.refuse_create = refusal
        agent = host.agent()
        with pytest.raises(NotFound, match="rp-1-5"):
            agent.boot(boot_spec())
        assert (host.driver.vms, host.exports.open, agent.statuses()) == ({}, {}, ())


def test_export_that_dies_before_the_vm_is_there_costs_another_try(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, deaths = host.exports.start, [Unavailable("connection lost"), Unavailable("again")]

    def start_unless_killed(export_id: str, boot: BootSpec) -> ExportPort:
        if deaths:
            raise deaths.pop()
        return start(export_id, boot)

    monkeypatch.setattr(host.exports, "start", start_unless_killed)
    host.agent().boot(boot_spec())
    assert host.calls[-1] == "hydrate web-1"


def test_another_point_needs_a_discard_first(host: Host) -> None:
    agent = host.agent()
    agent.boot(boot_spec("rp-1-5"))
    with pytest.raises(Conflict):
        agent.boot(boot_spec("rp-1-4"))
    agent.discard("web-1")
    agent.boot(boot_spec("rp-1-4"))
    assert "export web-1 at rp-1-4" in host.calls


def test_a_boot_cut_short_that_nobody_asks_for_again_is_in_no_later_ones_way(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(spec: VmSpec, **_: object) -> VmStatus:
        raise Killed

    with monkeypatch.context() as killed:
        killed.setattr(host.driver, "create_vm", kill)
        with pytest.raises(Killed):
            host.agent().boot(boot_spec())
    agent = host.agent()
    agent.resume()
    agent.boot(boot_spec("rp-1-4"))
    assert host.calls[-1] == "hydrate web-1"
    assert "export web-1 at rp-1-4" in host.calls
    assert host.driver.vms == {"web-1": PowerState.RUNNING}


def test_a_store_that_is_away_keeps_no_agent_from_starting(host: Host) -> None:
    host.agent().boot(boot_spec())
    host.exports.open.clear()
    host.exports.refuse_open = Unavailable("the store does not answer")
    host.calls.clear()
    host.agent().resume()
    assert host.calls == ["export web-1 at rp-1-5", "hydrate web-1"], "hydration waits for it"


def test_what_could_not_be_taken_up_is_taken_up_later(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its guest would wait for its disks until the next restart of the agent."""
    monkeypatch.setattr(recovery, "TEND_SECONDS", 0.01)
    host.agent().boot(boot_spec())
    host.exports.open.clear()
    host.calls.clear()
    start, refusals = host.exports.start, 2

    def refuse(export_id: str, boot: BootSpec) -> FakeExport:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise Unavailable("cannot write supervisor.pid: No space left on device")
        return start(export_id, boot)

    monkeypatch.setattr(host.exports, "start", refuse)
    host.agent().resume()
    wait_for(lambda: "hydrate web-1" in host.calls)
    assert refusals == 0


def test_the_export_of_a_vm_that_reads_from_it_all_its_life_is_seen_after(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "TEND_SECONDS", 0.01)
    agent = host.agent()
    agent.resume()
    agent.boot(replace(boot_spec(), hydrates=False))
    host.exports.open["web-1"].is_running = False
    wait_for(lambda: host.exports.open["web-1"].is_running)


def test_a_vm_discarded_just_when_it_has_become_local_is_not_remembered(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = host.agent()
    agent.boot(boot_spec())
    hydrator = host.hydrators[0]
    hydrator.finish()
    done = hydrator.state

    def overtaken() -> HydrationStatus:
        agent.discard("web-1")
        return done

    monkeypatch.setattr(hydrator, "status", overtaken)
    agent.statuses()
    assert (agent.statuses(), host.agent().statuses()) == ((), ())


def test_restarted_agent_goes_on_hydrating(host: Host) -> None:
    host.agent().boot(boot_spec())
    host.exports.open["web-1"].is_running = False
    host.calls.clear()
    host.agent().resume()
    assert host.calls == ["hydrate web-1"]
    assert host.exports.open["web-1"].is_running


def test_hydrated_vm_is_remembered_and_needs_no_export_after_a_restart(host: Host) -> None:
    agent = host.agent()
    agent.boot(boot_spec())
    assert not agent.statuses()[0].done
    host.driver.forget_bases("web-1")
    host.hydrators[0].finish()
    assert agent.statuses()[0].done
    host.calls.clear()
    restarted = host.agent()
    restarted.resume()
    status = restarted.statuses()[0]
    assert (status.done, status.bytes_total, status.first_read_ns) == (True, 10, 7)
    assert not any(call.startswith(("hydrate", "export")) for call in host.calls)


def test_an_agent_killed_before_it_noted_the_end_of_hydration_leaves_no_vm_half_local(
    host: Host,
) -> None:
    host.agent().boot(boot_spec())
    host.driver.forget_bases("web-1")
    host.exports.open["web-1"].stop()  # the hydrator's last act; its agent is killed here
    restarted = host.agent()
    restarted.resume()
    status = restarted.statuses()[0]
    assert (status.done, status.problem) == (True, "")
    again = host.agent()
    assert again.statuses()[0].done, "it is remembered"


def test_an_agent_killed_before_qemu_let_the_bases_go_leaves_qemu_its_export(host: Host) -> None:
    """What a disk has not of its own, its holes, QEMU still asks the base for."""
    host.agent().boot(boot_spec())
    host.driver.forget_bases("web-1")  # the agent is killed here
    host.exports.open["web-1"].is_running = False
    host.calls.clear()
    restarted = host.agent()
    restarted.resume()
    assert host.calls == ["hydrate web-1"]
    assert host.exports.open["web-1"].is_running
    host.hydrators[-1].finish()
    assert restarted.statuses()[0].done


def test_a_vm_that_died_after_its_bases_were_forgotten_needs_no_export(host: Host) -> None:
    host.agent().boot(boot_spec())
    host.driver.forget_bases("web-1")
    host.driver.vms["web-1"] = PowerState.STOPPED
    restarted = host.agent()
    restarted.resume()
    assert (restarted.statuses()[0].done, host.exports.open) == (True, {})


def test_stopped_vm_that_still_reads_from_its_export_gets_it_before_it_starts(host: Host) -> None:
    host.agent().boot(boot_spec())
    restarted = host.agent()
    host.exports.open.clear()
    host.calls.clear()
    restarted.ensure_export("web-1")
    assert host.calls == ["export web-1 at rp-1-5", "hydrate web-1"]


def test_discard_is_idempotent(host: Host) -> None:
    agent = host.agent()
    agent.boot(boot_spec())
    agent.discard("web-1")
    agent.discard("web-1")
    assert (host.driver.vms, host.exports.open, host.agent().statuses()) == ({}, {}, ())


def test_a_vm_that_is_not_to_hydrate_reads_on_also_after_a_restart(host: Host) -> None:
    host.agent().boot(replace(boot_spec(), hydrates=False))
    restarted = host.agent()
    host.exports.open.clear()
    restarted.resume()
    assert not any(call.startswith("hydrate") for call in host.calls)
    assert restarted.statuses()[0].problem == ""
    assert restarted.source_of("web-1") == (Path("/run/web-1.sock"), ("d",))
    assert list(host.exports.open) == ["web-1"]


def test_discard_takes_networks_that_nobody_else_is_in(host: Host) -> None:
    agent = host.agent()
    agent.boot(boot_spec())
    agent.discard("web-1", networks=("t1", "t2"))
    assert host.calls[-2:] == ["no network t1", "no network t2"]
    host.driver.refuse_delete_network = Conflict("network t1 is used by db-1")
    agent.discard("web-1", networks=("t1",))
    with pytest.raises(NotFound, match="no recovery point"):
        agent.source_of("web-1")

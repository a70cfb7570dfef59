"""Commands: delivered when new, again when due, and waited for no longer than sensible."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from leeward.core.errors import HypervisorRefused, Unavailable
from leeward.protocol.messages import CommandResult, EnrolmentRequest, NodeStatus, Role, Verb
from leeward.vault.database import sqlite_url
from leeward.vault.nodes import NodeRecord
from leeward.vault.records import VaultStore
from leeward.workflows.dispatch import (
    NODE_SILENT_SECONDS,
    REDELIVER_SECONDS,
    Dispatch,
    Order,
)
from leeward.workflows.live import PROCESS_SECONDS, LiveState
from leeward.workflows.signals import ServiceStopping, Signals


class HandClock:
    """Time that moves when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def now_ns(self) -> int:
        return int(self.now * 1e9)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Rig:
    """A dispatch with one node."""

    def __init__(self, directory: Path) -> None:
        self.clock = HandClock()
        self.vault = VaultStore.open(sqlite_url(directory / "vault.sqlite"))
        self.signals = Signals()
        self.live = LiveState(self.clock)
        self.dispatch = Dispatch(self.vault, self.signals, self.live, self.clock)
        request = EnrolmentRequest(token="t", role=Role.AGENT, region="east", name="h", key="k")
        with self.vault.write() as records:
            records.nodes.add_token("t", region="east", expires_ns=1 << 62)
            self.node: NodeRecord = records.nodes.enrol(request, now_ns=1)
        self.live.put(self.node.id, NodeStatus())

    def send(self) -> str:
        order = Order(node=self.node, verb=Verb.VM_START, arguments={"vm_id": "v"})
        (command_id,) = self.dispatch.send([order], job_id="job-1", step="start")
        return command_id

    def wait(self, command_id: str, seconds: float = 5.0) -> dict[str, object]:
        def check() -> None:
            self.clock.now += 1
            self.signals.notify(f"command:{command_id}")  # no real waiting

        return self.dispatch.wait_answer(
            command_id, self.node, timeout_seconds=seconds, check=check
        )

    def poll(self, seconds: float = 0.0) -> list[str]:
        commands = asyncio.run(self.dispatch.wait_commands(self.node.id, seconds))
        return [command.id for command in commands]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.vault.close()


def test_sent_twice_it_is_one_command(rig: Rig) -> None:
    command_id = rig.send()
    assert rig.send() == command_id
    assert rig.poll() == [command_id]


def test_a_poll_returns_at_once_when_a_command_comes(rig: Rig) -> None:
    async def both() -> list[str]:
        poll = asyncio.create_task(rig.dispatch.wait_commands(rig.node.id, 30))
        await asyncio.sleep(0)
        await asyncio.to_thread(rig.send)
        return [command.id for command in await asyncio.wait_for(poll, 10)]

    assert len(asyncio.run(both())) == 1


def test_it_is_delivered_again_only_when_due(rig: Rig) -> None:
    command_id = rig.send()
    assert rig.poll(30) == [command_id]

    async def impatient() -> None:
        await asyncio.wait_for(rig.dispatch.wait_commands(rig.node.id, 30), 0.05)

    with pytest.raises(TimeoutError):
        asyncio.run(impatient())
    rig.clock.now += REDELIVER_SECONDS
    assert rig.poll(30) == [command_id]


def test_the_answer_is_the_result(rig: Rig) -> None:
    command_id = rig.send()
    rig.dispatch.answer(rig.node.id, CommandResult(command_id=command_id, ok=True, result={"x": 1}))
    assert rig.wait(command_id) == {"x": 1}
    assert rig.poll() == []


def test_a_refusal_is_the_nodes_error(rig: Rig) -> None:
    command_id = rig.send()
    refusal = CommandResult(
        command_id=command_id, ok=False, error_code="hypervisor_refused", error="no"
    )
    rig.dispatch.answer(rig.node.id, refusal)
    with pytest.raises(HypervisorRefused, match="agent h in east: no"):
        rig.wait(command_id)


def test_a_silent_node_is_given_up_and_its_command_withdrawn(rig: Rig) -> None:
    command_id = rig.send()
    with pytest.raises(Unavailable, match="does not answer"):
        rig.wait(command_id, seconds=10 * NODE_SILENT_SECONDS)
    assert rig.clock.now <= 1000 + NODE_SILENT_SECONDS + 2
    assert rig.poll() == []


def test_a_node_that_takes_too_long_is_given_up(rig: Rig) -> None:
    with pytest.raises(Unavailable, match="took too long"):
        rig.wait(rig.send(), seconds=5)


def test_a_stopping_service_waits_for_nothing(rig: Rig) -> None:
    command_id = rig.send()
    rig.signals.close()
    with pytest.raises(ServiceStopping):
        rig.wait(command_id)
    assert rig.poll(30) == [command_id]


def test_a_process_that_has_ended_is_in_no_others_way() -> None:
    clock = HandClock()
    live = LiveState(clock)
    late, early = f"8.{1:016x}", f"7.{2:016x}"
    assert live.admit("agent-1", late)
    assert not live.admit("agent-1", early)
    assert live.admit("agent-2", early)
    assert live.admit("agent-1", "")  # of an earlier version, which does not say
    clock.sleep(PROCESS_SECONDS + 1)
    assert live.admit("agent-1", early)  # the directory was put back from a copy
    assert live.admit("agent-1", late)
    assert not live.admit("agent-1", early)

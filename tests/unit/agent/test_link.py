"""The link: every command carried out once, every answer told, whatever gets lost on the way."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from leeward.agent.answers import AnswerJournal
from leeward.agent.lanes import Lanes
from leeward.agent.link import LinkOptions, Meet, NodeLink
from leeward.agent.meetings import attempt_of
from leeward.core.errors import Conflict, InvalidRequest, NotFound, Unavailable
from leeward.model.recovery import SharedMark
from leeward.protocol.messages import (
    Announced,
    Command,
    CommandResult,
    MeetingCall,
    MeetingPhase,
    MeetingWord,
    NodeStatus,
    StatusReply,
    Superseded,
    Verb,
)

OPTIONS = LinkOptions(
    wait_seconds=0.05, status_seconds=0.02, pause_seconds=0.01, pause_seconds_max=0.05
)


class FakeService:
    """Delivers what is not answered, again and again; loses what it is told to lose."""

    def __init__(self) -> None:
        self.open: dict[str, Command] = {}
        self.results: list[CommandResult] = []
        self.statuses: list[NodeStatus] = []
        self.supersede: tuple[Superseded, ...] = ()
        self.lose_results = 0
        self.is_away = False
        self.is_member = False
        self.calls: list[MeetingCall] = []
        self.listens = 0
        self.words: list[MeetingWord] = []
        self.go: dict[MeetingPhase, bool] = {}
        self.forgotten: set[str] = set()
        self.too_large: set[str] = set()
        self.heard = threading.Condition()

    def commands(self, *, wait_seconds: float) -> list[Command | CommandResult]:
        self._check()
        with self.heard:
            if not self.open:
                self.heard.wait(wait_seconds)
            return list(self.open.values())

    def post_result(self, result: CommandResult) -> None:
        self._check()
        with self.heard:
            if result.command_id in self.forgotten:
                raise NotFound("no such command")
            if result.command_id in self.too_large and result.ok:
                raise InvalidRequest("the body is larger than 16777216 bytes")
            if self.lose_results:
                self.lose_results -= 1
                raise Unavailable("the reply was lost")
            self.open.pop(result.command_id, None)
            self.results.append(result)
            self.heard.notify_all()

    def post_status(self, status: NodeStatus) -> StatusReply:
        self._check()
        with self.heard:
            self.statuses.append(status)
            self.heard.notify_all()
        return StatusReply(supersede=self.supersede, is_member=self.is_member)

    def meeting_calls(self, *, wait_seconds: float) -> tuple[MeetingCall, ...]:
        self._check()
        with self.heard:
            self.listens += 1
            if not self.calls:
                self.heard.wait(wait_seconds)
            calls, self.calls = tuple(self.calls), []
            return calls

    def meet(self, word: MeetingWord, *, seconds: float) -> bool:
        self._check()
        with self.heard:
            self.words.append(word)
            self.heard.notify_all()
            return self.go.get(word.phase, True)

    def close(self) -> None:
        pass

    def deliver(self, *commands: Command) -> None:
        with self.heard:
            self.open.update({command.id: command for command in commands})
            self.heard.notify_all()

    def wait(self, holds: Callable[[], bool]) -> None:
        with self.heard:
            assert self.heard.wait_for(holds, timeout=60)

    def _check(self) -> None:
        if self.is_away:
            raise Unavailable("away")


class FakeNode:
    """Counts what it carries out."""

    def __init__(self) -> None:
        self.carried_out: list[str] = []
        self.news: tuple[Announced, ...] = ()
        self.superseded: queue.Queue[tuple[str, int]] = queue.Queue()
        self.act: Callable[[Command], dict[str, object]] = lambda command: {"did": command.id}

    def lane_of(self, command: Command) -> str:
        return str(command.arguments.get("vm_id", "x"))

    def carry_out(self, command: Command) -> dict[str, object]:
        self.carried_out.append(command.id)
        return self.act(command)

    def status(self) -> NodeStatus:
        return NodeStatus(storage_root="/storage")

    def status_taken(self, status: NodeStatus) -> None:
        pass

    def supersede(self, item_id: str, epoch: int) -> None:
        self.superseded.put((item_id, epoch))

    def announce(self, news: tuple[Announced, ...]) -> None:
        self.news = news

    def join(self, call: MeetingCall, meet: Meet) -> None:
        gate = attempt_of(call, meet).gate
        if gate.ready(is_changed=True) and gate.held():
            gate.end("")


def command(name: str, vm_id: str = "vm") -> Command:
    return Command(id=name, verb=Verb.VM_START, arguments={"vm_id": vm_id})


Linked = tuple[FakeService, FakeNode, Callable[[], NodeLink]]


@pytest.fixture
def linked(tmp_path: Path) -> Iterator[Linked]:
    service, node = FakeService(), FakeNode()
    made: list[tuple[NodeLink, AnswerJournal]] = []

    def start() -> NodeLink:
        while made:
            stop()
        journal = AnswerJournal(tmp_path / "answers")
        link = NodeLink(service, node, journal, OPTIONS)
        made.append((link, journal))
        link.start()
        return link

    def stop() -> None:
        link, journal = made.pop()
        link.stop()
        journal.close()

    yield service, node, start
    while made:
        stop()


def test_command_is_carried_out_and_answered(linked: Linked) -> None:
    service, _node, start = linked
    start()
    service.deliver(command("c1"))
    service.wait(lambda: len(service.results) == 1)
    assert service.results[0] == CommandResult(command_id="c1", ok=True, result={"did": "c1"})


def test_lost_results_are_told_again_and_the_command_is_carried_out_once(linked: Linked) -> None:
    service, node, start = linked
    service.lose_results = 3
    start()
    service.deliver(command("c1"))
    service.wait(lambda: bool(service.results))
    assert node.carried_out == ["c1"]


def test_restart_between_carrying_out_and_telling_tells_without_carrying_out_again(
    linked: Linked,
) -> None:
    service, node, start = linked
    service.lose_results = 10**9
    start()
    service.deliver(command("c1"))
    service.wait(lambda: service.lose_results < 10**9)
    start()  # a new link over the same journal, as after kill -9
    with service.heard:
        service.lose_results = 0
    service.wait(lambda: bool(service.results))
    assert node.carried_out == ["c1"]


def test_what_was_refused_for_want_of_room_is_not_overtaken(
    linked: Linked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be carried out when it is delivered again: a start after its stop."""
    service, node, start = linked
    submit, refused = Lanes.submit, threading.Event()

    def submit_later(self: Lanes, key: str, task: Callable[[], None]) -> bool:
        if not refused.is_set():
            refused.set()
            return False
        return submit(self, key, task)

    monkeypatch.setattr(Lanes, "submit", submit_later)
    start()
    service.deliver(command("start"), command("stop"))
    service.wait(lambda: len(service.results) == 2)
    assert node.carried_out == ["start", "stop"]


def test_commands_of_different_targets_run_side_by_side(linked: Linked) -> None:
    service, node, start = linked
    gate = threading.Event()

    def act(given: Command) -> dict[str, object]:
        if given.id == "slow":
            assert gate.wait(60)
        return {}

    node.act = act
    start()
    service.deliver(command("slow", "a"), command("quick", "b"))
    service.wait(lambda: [r.command_id for r in service.results] == ["quick"])
    gate.set()
    service.wait(lambda: len(service.results) == 2)
    assert sorted(node.carried_out) == ["quick", "slow"], "redelivered while under way, done once"


def test_refusals_and_surprises_become_answers(linked: Linked) -> None:
    service, node, start = linked

    def act(given: Command) -> dict[str, object]:
        if given.id == "refused":
            raise Conflict("it is in use", hint="stop it first")
        raise ZeroDivisionError("oops")

    node.act = act
    start()
    service.deliver(command("refused"), command("broken"))
    # the same answer may come twice: a command is delivered again until its answer has arrived
    service.wait(lambda: len({result.command_id for result in service.results}) == 2)
    answers = {result.command_id: result for result in service.results}
    assert answers["refused"].error_code == "conflict"
    assert (answers["refused"].error, answers["refused"].error_hint) == (
        "it is in use",
        "stop it first",
    )
    assert answers["broken"].error_code == "internal"
    assert "ZeroDivisionError" in answers["broken"].error


def test_absent_service_is_waited_for(linked: Linked) -> None:
    service, _node, start = linked
    service.is_away = True
    start()
    service.deliver(command("c1"))
    with service.heard:
        service.heard.wait(0.1)
        assert not service.results
        service.is_away = False
    service.wait(lambda: bool(service.results and service.statuses))


def test_answer_nobody_wants_is_given_up(linked: Linked) -> None:
    service, node, start = linked
    service.forgotten = {"old"}
    start()
    service.deliver(command("old"))
    service.wait(lambda: "old" not in service.open or bool(node.carried_out))
    with service.heard:
        del service.open["old"]
    service.deliver(command("new"))
    service.wait(lambda: [r.command_id for r in service.results] == ["new"])


def test_a_result_that_the_service_cannot_take_becomes_a_refusal(linked: Linked) -> None:
    """It would be asked for, and told, four times a second for ever."""
    service, node, start = linked
    service.too_large = {"c1"}
    start()
    service.deliver(command("c1"))
    service.wait(lambda: bool(service.results))
    assert (service.results[0].ok, service.results[0].error_code) == (False, "invalid_request")
    assert "larger than" in service.results[0].error
    assert node.carried_out == ["c1"]


CALL = MeetingCall(
    item_id="item-1",
    mark=SharedMark(id="sp-1", group="cg-1", members=("item-1", "item-2"), time_ns=1),
)


def test_calls_are_listened_for_only_by_hosts_of_members(linked: Linked) -> None:
    service, _, start = linked
    start()
    service.wait(lambda: len(service.statuses) > 5)
    assert service.listens == 0
    with service.heard:
        service.is_member = True
        service.calls.append(CALL)
    service.wait(lambda: len(service.words) == 3)
    assert [word.phase for word in service.words] == list(MeetingPhase)
    assert {(word.mark_id, word.item_id, word.problem) for word in service.words} == {
        ("sp-1", "item-1", "")
    }


def test_a_service_that_is_away_in_a_meeting_means_no(linked: Linked) -> None:
    service, _, _ = linked
    gate = attempt_of(CALL, service.meet).gate
    service.go[MeetingPhase.HELD] = False
    assert gate.ready(is_changed=True)
    assert not gate.held()
    service.is_away = True
    assert not gate.ready(is_changed=True)


def test_superseded_items_reach_the_node(linked: Linked) -> None:
    service, node, start = linked
    service.supersede = (Superseded(item_id="item-1", epoch=2),)
    start()
    assert node.superseded.get(timeout=60) == ("item-1", 2)


def test_a_superseded_item_makes_the_node_post_no_faster_than_ever(tmp_path: Path) -> None:
    service, node = FakeService(), FakeNode()
    service.supersede = (Superseded(item_id="item-1", epoch=2),)
    journal = AnswerJournal(tmp_path / "answers")
    link = NodeLink(service, node, journal, replace(OPTIONS, status_seconds=3600.0))
    link.start()
    link.report_soon()
    try:
        assert node.superseded.get(timeout=60) == ("item-1", 2)
        with pytest.raises(queue.Empty):  # it would go round at once, for ever
            node.superseded.get(timeout=0.5)
    finally:
        link.stop()
        journal.close()


def test_service_that_asks_again_is_told_again_and_nothing_is_done_twice(linked: Linked) -> None:
    service, node, start = linked
    start()
    service.deliver(command("c1"))
    service.wait(lambda: len(service.results) == 1)
    service.deliver(command("c1"))  # restored from a backup, say
    service.wait(lambda: len(service.results) == 2)
    assert service.results[0] == service.results[1]
    assert node.carried_out == ["c1"]

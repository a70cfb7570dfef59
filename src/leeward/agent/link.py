"""The link between a node (agent or worker) and the service: outbound requests only.

Owns: receiving commands, carrying each out once, telling results until the service has them,
posting status. Must not know: what a command does, that is the node's. Between HTTP and the verbs.

Nothing here stops the node's own work: while the service is away the link backs off and the
replication the node was asked for goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from leeward.agent.answers import AnswerJournal
from leeward.agent.lanes import Lanes
from leeward.core.errors import InvalidRequest, LeewardError, NotFound
from leeward.observability.log import get_logger
from leeward.protocol.messages import (
    Announced,
    Command,
    CommandResult,
    MeetingCall,
    MeetingWord,
    NodeStatus,
    StatusReply,
    Superseded,
)

log = get_logger()


JOIN_SECONDS = 0.5
"""A thread in the middle of a request is not worth more waiting: it changes nothing any more."""


class _Full(Exception):
    """So many commands wait that no further one is taken; it will be delivered again."""


class Node(Protocol):
    """What the link drives. Its methods are called from several threads at once."""

    def lane_of(self, command: Command) -> str:
        """Return the key of what the command acts on: commands of one key run in order."""

    def carry_out(self, command: Command) -> dict[str, object]:
        """The command is carried out; returns its result. Raises: LeewardError to refuse it."""

    def status(self) -> NodeStatus:
        """Return how things stand on this node."""

    def status_taken(self, status: NodeStatus) -> None:
        """The service has that status."""

    def supersede(self, item_id: str, epoch: int) -> None:
        """What this node replicates of the item under an epoch older than `epoch` is stopped."""

    def announce(self, news: tuple[Announced, ...]) -> None:
        """What the sources of the items it processes have in the cache is known."""

    def join(self, call: MeetingCall, meet: Meet) -> None:
        """The item takes part in the meeting, soon and in a thread of its own."""


class Meet(Protocol):
    """Tells how far a member is, and returns whether it goes on. Raises: LeewardError."""

    def __call__(self, word: MeetingWord, *, seconds: float) -> bool: ...


class ServicePort(Protocol):
    """The requests of agent.service that the link makes."""

    def commands(self, *, wait_seconds: float) -> list[Command | CommandResult]: ...
    def post_result(self, result: CommandResult) -> None: ...
    def post_status(self, status: NodeStatus) -> StatusReply: ...
    def meeting_calls(self, *, wait_seconds: float) -> tuple[MeetingCall, ...]: ...
    def meet(self, word: MeetingWord, *, seconds: float) -> bool: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkOptions:
    """How often and how long."""

    wait_seconds: float = 20.0
    """Length of one long poll."""
    status_seconds: float = 1.0
    pause_seconds: float = 0.25
    """Before the next poll when this one brought nothing new, and first step of the back-off."""
    pause_seconds_max: float = 5.0
    workers: int = 8
    """Commands that begin at once; those that take long do not count."""
    queued_max: int = 256


class NodeLink:
    """One node's link: four threads and the lanes that carry commands out."""

    def __init__(
        self,
        service: ServicePort,
        node: Node,
        answers: AnswerJournal,
        options: LinkOptions | None = None,
        *,
        key_ids: Callable[[], tuple[str, ...]] = tuple,
    ) -> None:
        """key_ids: of the encryption keys of this host, told with every status."""
        self._key_ids = key_ids
        self._service = service
        self._node = node
        self._answers = answers
        self._options = options or LinkOptions()
        self._lanes = Lanes(
            workers=self._options.workers, queued_max=self._options.queued_max, name="command"
        )
        self._lock = threading.Lock()
        self._running: set[str] = set()
        self._stopping = threading.Event()
        self._results_due = threading.Event()
        self._status_due = threading.Event()
        self._is_member = threading.Event()
        self._threads = [
            threading.Thread(target=self._loop, args=(turn,), name=name, daemon=True)
            for name, turn in (
                ("link-commands", self._receive),
                ("link-results", self._tell),
                ("link-status", self._report),
                ("link-meetings", self._listen),
            )
        ]

    def start(self) -> None:
        """The link is up; what was answered and not told before a restart is told first."""
        self._results_due.set()
        for thread in self._threads:
            thread.start()

    def stop(self, *, grace_seconds: float = 3.0) -> None:
        """Nothing more is received. Commands under way have `grace_seconds` to end; one that does
        not is unanswered and will be delivered again. A long poll under way is left behind."""
        self._stopping.set()
        self._results_due.set()
        self._status_due.set()
        self._is_member.set()
        self._lanes.close(grace_seconds=grace_seconds)
        self._service.close()
        for thread in self._threads:
            thread.join(timeout=JOIN_SECONDS)

    def report_soon(self) -> None:
        """Something changed: the status is posted at once."""
        self._status_due.set()

    # --- one turn of each thread; each raises LeewardError to back off

    def _receive(self) -> None:
        fresh = 0
        for command in self._service.commands(wait_seconds=self._options.wait_seconds):
            try:
                fresh += self._accept(command)
            except _Full:  # what comes after it must not come before it
                break
        if not fresh:
            self._stopping.wait(self._options.pause_seconds)

    def _tell(self) -> None:
        self._results_due.wait()
        self._results_due.clear()
        try:
            for result in self._answers.untold():
                self._tell_one(result)
        except LeewardError:
            self._results_due.set()
            raise

    def _tell_one(self, result: CommandResult) -> None:
        try:
            self._service.post_result(result)
        except InvalidRequest as error:
            log.warning("result_not_taken", command=result.command_id, error=str(error))
            if result.ok:  # too large, say; without any answer whoever asked would wait for ever
                self._answers.record(_refusal(result.command_id, error.code, error.message, ""))
                self._results_due.set()
                return
        except NotFound as error:
            # The service no longer knows the command; repeating the answer would never end.
            log.warning("result_not_wanted", command=result.command_id, error=str(error))
        self._answers.told(result.command_id)

    def _report(self) -> None:
        self._status_due.wait(self._options.status_seconds)
        if self._stopping.is_set():
            return
        self._status_due.clear()
        status = replace(self._node.status(), key_ids=self._key_ids())
        said = self._service.post_status(status)
        self._node.status_taken(status)
        self._node.announce(said.announced)
        if said.is_member:
            self._is_member.set()
        else:
            self._is_member.clear()
        for item in said.supersede:
            with suppress(_Full):  # the next status tells of it again
                self._start(
                    f"item:{item.item_id}", f"supersede:{item.item_id}", self._superseding(item)
                )

    def _listen(self) -> None:
        self._is_member.wait()
        if self._stopping.is_set():
            return
        for call in self._service.meeting_calls(wait_seconds=self._options.wait_seconds):
            self._node.join(call, self._service.meet)

    # --- carrying out

    def _accept(self, command: Command | CommandResult) -> bool:
        """Queue a command unless it is known; say whether it was new. Raises: _Full."""
        if isinstance(command, CommandResult):
            if self._answers.answer_to(command.command_id) is None:
                self._answers.record(command)
            self._retell(command.command_id)
            return False
        if self._answers.answer_to(command.id) is not None:
            self._retell(command.id)
            return False
        return self._start(self._node.lane_of(command), command.id, lambda: self._answer(command))

    def _start(self, lane: str, task_id: str, task: Callable[[], None]) -> bool:
        with self._lock:
            if task_id in self._running:
                return False
            self._running.add(task_id)

        def run() -> None:
            try:
                task()
            finally:
                with self._lock:
                    self._running.discard(task_id)

        if self._lanes.submit(lane, run):
            return True
        with self._lock:
            self._running.discard(task_id)
        raise _Full

    def _answer(self, command: Command) -> None:
        if self._stopping.is_set() or self._answers.answer_to(command.id) is not None:
            return
        bound = log.bind(command=command.id, verb=command.verb.value)
        bound.info("command_started")
        try:
            result = CommandResult(
                command_id=command.id, ok=True, result=self._node.carry_out(command)
            )
            bound.info("command_done")
        except LeewardError as error:
            bound.warning("command_refused", code=error.code, error=str(error))
            result = _refusal(command.id, error.code, error.message, error.hint or "")
        except Exception as error:
            bound.exception("command_failed")
            result = _refusal(command.id, LeewardError.code, f"{type(error).__name__}: {error}", "")
        try:
            self._answers.record(result)
        except LeewardError as error:
            bound.warning("answer_not_durable", error=str(error))
        self._results_due.set()
        self._status_due.set()

    def _retell(self, command_id: str) -> None:
        self._answers.ask_again(command_id)
        self._results_due.set()

    def _superseding(self, item: Superseded) -> Callable[[], None]:
        # The next status tells of it, a second later: every one that still names the item has it
        # superseded again, and one posted at once would go round without a pause.
        return lambda: self._node.supersede(item.item_id, item.epoch)

    # --- threads

    def _loop(self, turn: Callable[[], None]) -> None:
        stopping = self._stopping
        pause = self._options.pause_seconds
        while not stopping.is_set():
            try:
                turn()
            except LeewardError as error:
                if pause == self._options.pause_seconds and not stopping.is_set():
                    log.warning("service_link_failed", turn=turn.__name__, error=str(error))
                stopping.wait(pause)
                pause = min(pause * 2, self._options.pause_seconds_max)
            except Exception:
                if stopping.is_set():
                    return  # the connection was closed under the request
                log.exception("service_link_broken", turn=turn.__name__)
                stopping.wait(self._options.pause_seconds_max)
            else:
                pause = self._options.pause_seconds


def _refusal(command_id: str, code: str, error: str, hint: str) -> CommandResult:
    return CommandResult(
        command_id=command_id, ok=False, error_code=code, error=error, error_hint=hint
    )

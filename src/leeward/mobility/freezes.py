"""Application-consistent points of one VM: when the guest is frozen next, and what came of it.

Owns: attempts, one at a time, each ended by a recovery point, if only a crash-consistent one; what
is remembered of the newest. Must not know: how a guest is frozen (thaw_guard.py), how cuts are made
(portions.py). Stepped by stream.py.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from leeward.core.clock import Clock
from leeward.core.codec import from_json, to_json
from leeward.core.errors import HypervisorRefused, InvalidRequest, LeewardError
from leeward.mobility.thaw_client import ThawGuard, Verdict
from leeward.model.recovery import Consistency, FreezeReport
from leeward.observability.log import get_logger
from leeward.qemu.machine import AGENT_CHARDEV
from leeward.qemu.session import QmpSession

_NO_CHANNEL = "the VM was started without a channel to its guest agent: stop and start it once"
_NO_AGENT = "no guest agent runs in the VM: install qemu-guest-agent in it"
_STILL_FROZEN = "the guest may be frozen: its agent has not answered that it thawed"
_AGENT_RESTARTED = "this host's agent was restarted while the guest was being frozen"


@dataclass(slots=True)
class _Attempt:
    """serves: the newest demand when it began. verdict: None while it is not known."""

    number: int
    time_ns: int
    serves: int
    verdict: Verdict | None = None
    is_restarted: bool = False


class Freezes:
    """Used by the replicator's thread; `ask`, `answered`, `report`, `problem` from any."""

    def __init__(
        self,
        guard: ThawGuard,
        path: Path,
        epoch: int,
        *,
        every_seconds: int,
        agent_socket: Callable[[], Path] | None,
        clock: Clock,
    ) -> None:
        """path: where the newest attempt is remembered. every_seconds: 0 for never, but when asked.
        agent_socket: where the VM's guest agent is reached; None where there is no such channel."""
        self._guard = guard
        self._path = path
        self._epoch = epoch
        self._every_seconds = every_seconds
        self._agent_socket = agent_socket
        self._clock = clock
        self._log = get_logger()
        self.report: FreezeReport | None = _read(path)
        self.problem = ""
        """One sentence while the guest may be frozen for longer than it should, else ""."""
        self.asked = 0
        """Number of the newest demand for an application-consistent point; only upwards."""
        self.answered = 0
        """Number of the newest demand that `report` is an answer to."""
        self._attempt: _Attempt | None = None
        self._is_noted = False
        if guard.is_busy:
            self._begin(is_restarted=True)

    @property
    def is_under_way(self) -> bool:
        """True from the beginning of an attempt until the recovery point that ends it."""
        return self._attempt is not None

    @property
    def number(self) -> int:
        """Number of the attempt under way."""
        return self._attempt.number if self._attempt is not None else 0

    @property
    def verdict(self) -> Verdict | None:
        """What the freeze under way came to, None while that is not known."""
        return self._attempt.verdict if self._attempt is not None else None

    @property
    def is_due(self) -> bool:
        """True when an attempt should begin as soon as the stream is whole."""
        if self.is_under_way or self._guard.is_busy:
            return False
        if self.asked > self.answered:
            return True
        if not self._every_seconds:
            return False
        age_ns = self._clock.now_ns() - self.report.time_ns if self.report is not None else -1
        return not 0 <= age_ns < self._every_seconds * 1_000_000_000

    def begin(self, session: QmpSession, tap: Path) -> None:
        """An attempt is under way. tap: its control socket."""
        attempt = self._begin(is_restarted=False)
        try:
            problem = _NO_CHANNEL if self._agent_socket is None else _agent_problem(session)
            if not problem and self._agent_socket is not None:
                self._guard.start(self._agent_socket(), tap)
        except LeewardError as error:
            problem = str(error)
        if problem:
            attempt.verdict = Verdict(problem=problem)

    def look(self) -> bool:
        """See after the guard; say whether the attempt's verdict has become known by this."""
        attempt = self._attempt
        if not self._guard.is_busy:
            return self._note_verdict(attempt)
        try:
            verdict, is_over = self._guard.look()
        except LeewardError as error:
            self.problem = f"{_STILL_FROZEN}, and nobody can be sent to thaw it: {error}"
            return False
        self.problem = _STILL_FROZEN if verdict is not None and not is_over else ""
        if attempt is not None and attempt.is_restarted and (verdict is not None or is_over):
            verdict = Verdict(problem=_AGENT_RESTARTED)
        if attempt is not None and attempt.verdict is None:
            attempt.verdict = verdict
        return self._note_verdict(attempt)

    def end(self, number: int, *, sequence: int, consistency: Consistency) -> None:
        """The attempt has ended with a recovery point: that cut."""
        attempt = self._attempt
        if attempt is None or attempt.number != number or attempt.verdict is None:
            return
        is_application = consistency is Consistency.APPLICATION
        problem = attempt.verdict.problem or "replication was interrupted meanwhile"
        self.report = FreezeReport(
            number=number,
            epoch=self._epoch,
            time_ns=attempt.time_ns,
            sequence=sequence,
            consistency=consistency,
            frozen_ms=round(attempt.verdict.frozen_ns / 1e6, 3),
            ours_ms=round(attempt.verdict.ours_ns / 1e6, 3),
            problem="" if is_application else problem,
        )
        self.answered, self._attempt = attempt.serves, None
        _write(self._path, self.report)
        self._log.info(
            "freeze_ended",
            sequence=sequence,
            consistency=consistency.value,
            frozen_ms=self.report.frozen_ms,
            ours_ms=self.report.ours_ms,
            problem=self.report.problem,
        )

    def delete(self) -> None:
        """Nothing is remembered. A guest that is frozen now is thawed all the same."""
        self._guard.leave()
        self._path.unlink(missing_ok=True)

    def _begin(self, *, is_restarted: bool) -> _Attempt:
        number = self.report.number + 1 if self.report is not None else 1
        self._is_noted = False
        self._attempt = _Attempt(
            number, self._clock.now_ns(), self.asked, is_restarted=is_restarted
        )
        return self._attempt

    def _note_verdict(self, attempt: _Attempt | None) -> bool:
        is_new = attempt is not None and attempt.verdict is not None and not self._is_noted
        self._is_noted = self._is_noted or is_new
        return is_new


def _agent_problem(session: QmpSession) -> str:
    """Return why the guest's agent cannot be spoken to, "" if it has opened its channel."""
    try:
        devices = session.execute("query-chardev")
    except HypervisorRefused:
        return _NO_CHANNEL
    channel = next((device for device in devices if device["label"] == AGENT_CHARDEV), None)
    if channel is None:
        return _NO_CHANNEL
    return "" if channel["frontend-open"] else _NO_AGENT


def _read(path: Path) -> FreezeReport | None:
    try:
        return from_json(path.read_bytes(), FreezeReport)
    except (OSError, InvalidRequest):
        return None


def _write(path: Path, report: FreezeReport) -> None:
    """Not synced, and not at all on a full disk: then an attempt is made once more."""
    new = path.with_name(path.name + ".new")
    with suppress(OSError):
        new.write_bytes(to_json(report))
        new.replace(path)

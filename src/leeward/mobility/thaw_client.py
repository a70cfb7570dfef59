"""The agent's hand on thaw guards: start one, learn what came of it, stand in for one that died.

Owns: a guard's directory, pid file and time limit. Must not know: the guest agent's protocol, cuts.
Beside tap_client.py; the process is thaw_guard.py.
"""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leeward.core.clock import Clock
from leeward.core.errors import LeewardError, Unavailable
from leeward.fabric.processes import end, find, spawn
from leeward.observability.log import get_logger

log = get_logger()

FREEZE_SECONDS = 10.0
"""How long a guest may take to freeze, hook scripts included."""
THAW_SECONDS = 10.0
"""How long a guest may take to thaw before its point counts as no more than crash-consistent."""
GUARD_SECONDS = FREEZE_SECONDS + THAW_SECONDS + 10.0
"""A guard that has said nothing for longer is stopped, hung or gone."""
_PLACE = "freeze"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came of a freeze. problem: why nothing is known to be application-consistent, "" if the
    mark at `position` of the tap `instance` is. frozen_ns: from asking for the freeze to the answer
    to the thaw, an upper bound; ours_ns: of that, from the answer that it is frozen until the guest
    was asked to thaw."""

    problem: str = ""
    instance: int = 0
    position: int = -1
    frozen_ns: int = 0
    ours_ns: int = 0


def guard_of(run_dir: Path, data_dir: Path, item_id: str, clock: Clock) -> ThawGuard:
    """Return the hand on the guard of the item's VM."""
    log_file = data_dir / "logs" / f"freeze-{item_id}.log"
    return ThawGuard(run_dir / _PLACE / item_id, log_file, clock)


def thaw_left_guests(run_dir: Path, data_dir: Path, clock: Clock) -> None:
    """Every guest of this host that was left frozen, an earlier agent and its guards having died
    together, is being thawed. Nothing is waited for, and nothing else is needed."""
    for config in sorted((run_dir / _PLACE).glob("*/config.json")):
        guard_of(run_dir, data_dir, config.parent.name, clock).replace_dead()


class ThawGuard:
    """At most one guard of one VM. Used by one thread; a guard outlives its agent and is found
    again by the next."""

    def __init__(self, directory: Path, log_file: Path, clock: Clock) -> None:
        self._directory = directory
        self._log_file = log_file
        self._clock = clock
        self._since = clock.monotonic()
        self._heard: dict[str, Any] | None = None

    @property
    def is_busy(self) -> bool:
        """True from `start` until `look` has found the guest thawed, also by an earlier agent's."""
        return self._config.exists()

    def start(self, agent: Path, tap: Path) -> None:
        """Have the guest frozen, marked at the tap's control socket and thawed. Nothing is waited
        for. Raises: Unavailable."""
        self._result.unlink(missing_ok=True)
        config = {
            "agent": str(agent),
            "tap": str(tap),
            "result": str(self._result),
            "freeze_seconds": FREEZE_SECONDS,
            "thaw_seconds": THAW_SECONDS,
            "silent_seconds": GUARD_SECONDS,
            "only_thaw": "",
        }
        self._spawn(config)

    def look(self) -> tuple[Verdict | None, bool]:
        """Return what is known of the freeze, and whether it is over: the guest thawed, or gone.

        A guard that died or hangs is replaced by one that only thaws. Raises: Unavailable.
        """
        process, result = find(self._pid_file), _read(self._result)  # it writes, then it ends
        if result is not None and result["is_over"]:
            self.forget()
            return _verdict(result), True
        if result != self._heard:
            self._heard, self._since = result, self._clock.monotonic()
        if process is None:
            self._stand_in("the thaw guard died")
        elif self._clock.monotonic() - self._since > GUARD_SECONDS:
            end(process, grace_seconds=0)
            self._stand_in("the thaw guard hung")
        return (None if result is None else _verdict(result)), False

    def forget(self) -> None:
        """Nothing of the guard is kept. The guest must be known to be thawed."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def leave(self) -> None:
        """Nobody looks any more. Where the guest may still be frozen, what tells the next agent so
        is kept."""
        if self.is_busy and not self._is_over:
            self.replace_dead()
        else:
            self.forget()

    def replace_dead(self) -> None:
        """A guest that may be frozen has a guard: in place of one that died one that thaws."""
        if self.is_busy and find(self._pid_file) is None and not self._is_over:
            try:
                self._stand_in("the thaw guard died")
            except (LeewardError, OSError, ValueError) as error:
                log.warning("guest_may_be_frozen", guard=self._directory.name, error=str(error))

    @property
    def _is_over(self) -> bool:
        result = _read(self._result)
        return result is not None and bool(result["is_over"])

    def _stand_in(self, problem: str) -> None:
        config = json.loads(self._config.read_text())
        self._spawn({**config, "only_thaw": problem})

    def _spawn(self, config: dict[str, object]) -> None:
        new = self._config.with_suffix(".new")
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            new.write_text(json.dumps(config))
            new.replace(self._config)
            self._since = self._clock.monotonic()
            spawn(
                [sys.executable, "-m", "leeward.mobility.thaw_guard", str(self._config)],
                pid_file=self._pid_file,
                log_file=self._log_file,
            )
        except OSError as error:
            raise Unavailable(f"no thaw guard can be started: {error.strerror}") from error

    @property
    def _config(self) -> Path:
        return self._directory / "config.json"

    @property
    def _result(self) -> Path:
        return self._directory / "result.json"

    @property
    def _pid_file(self) -> Path:
        return self._directory / "guard.pid"


def _read(path: Path) -> dict[str, Any] | None:
    with suppress(FileNotFoundError, ValueError):
        return dict(json.loads(path.read_text()))
    return None


def _verdict(result: dict[str, Any]) -> Verdict:
    return Verdict(
        problem=str(result.get("problem", "")),
        instance=int(result.get("instance", 0)),
        position=int(result.get("position", -1)),
        frozen_ns=int(result.get("frozen_ns", 0)),
        ours_ns=int(result.get("ours_ns", 0)),
    )

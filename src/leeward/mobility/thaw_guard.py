"""The thaw guard: freezes one guest once, has the tap set a mark, and thaws it whatever happens.

Owns: that a guest which may be frozen is thawed, with nobody's help and in bounded time. Must not
know: cuts, QEMU's monitor, who asked. Standard library only. Run for each application-consistent
point as `python -m leeward.mobility.thaw_guard CONFIG.json`; its agent may be stopped or killed,
and so may the guard: it is two processes, the second of which thaws when the first does not.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from leeward.mobility import link
from leeward.mobility.events import log
from leeward.mobility.guest_agent import AgentError, AgentGone, AgentRefused, GuestAgent
from leeward.mobility.standby import Standby, start_standby

SYNC_SECONDS = 3.0
MARK_SECONDS = 1.0
"""The longest that we keep a frozen guest waiting for a mark; a tap needs a millisecond."""
INSIST_SECONDS = 5.0
"""How long each further attempt to thaw waits for its answer."""
SILENT_SECONDS = 30.0
"""A guard that has said nothing for longer hangs, unless its configuration gives another limit."""

Result = dict[str, Any]


class Guard:
    """One freeze. The result file says what came of it; its `is_over` is True once the guest is
    known not to be frozen any more, or not to run."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._agent = GuestAgent(Path(config["agent"]))
        self._tap = Path(config["tap"])
        self._result = Path(config["result"])
        self._freeze_seconds = float(config["freeze_seconds"])
        self._thaw_seconds = float(config["thaw_seconds"])
        self._silent_seconds = float(config.get("silent_seconds", SILENT_SECONDS))
        self._standby: Standby | None = None

    def stand_by(self) -> str:
        """A second process thaws the guest when this one dies or hangs; return why there is none,
        else ""."""
        try:
            self._standby = start_standby(self._take_over, silent_seconds=self._silent_seconds)
        except OSError as error:
            return f"no second thaw guard could be started: {error.strerror}"
        return ""

    def give_up(self, problem: str) -> None:
        """The guest is not touched, and the result says why."""
        self._report({"problem": problem}, is_over=True)

    def _take_over(self, problem: str) -> None:
        self._standby = None
        log("guard_replaced", problem=problem)
        self.thaw({"problem": problem})

    def freeze(self) -> None:
        """The guest was frozen, marked and thawed, or is not frozen and the result says why."""
        try:
            with link.connect(self._tap, timeout_seconds=MARK_SECONDS) as tap:
                self._freeze(tap)
        except OSError:
            self._report({"problem": "the VM's tap does not answer"}, is_over=True)
        self._agent.close()

    def _freeze(self, tap: socket.socket) -> None:
        try:
            self._agent.sync(seconds=SYNC_SECONDS)
        except AgentError as error:
            self._report({"problem": str(error)}, is_over=True)
            return
        began = time.monotonic_ns()
        result: Result = {}
        held = 0
        try:
            held = self._agent.execute("guest-fsfreeze-freeze", seconds=self._freeze_seconds)
        except AgentRefused as error:
            result = {"problem": f"the guest agent cannot freeze: {error}"}
        except AgentError:
            waited = f"{self._freeze_seconds:g} s"
            result = {"problem": f"the guest did not freeze within {waited}: freezing was given up"}
        frozen = time.monotonic_ns()
        if not result:
            result = _set_mark(tap) if held else {"problem": "nothing in the guest can be frozen"}
        asked = time.monotonic_ns()
        try:
            thawed = self._agent.execute("guest-fsfreeze-thaw", seconds=self._thaw_seconds)
        except AgentError as error:
            problem = result.get("problem") or f"the guest did not thaw at once: {error}"
            self.thaw({**result, "problem": problem})
            return
        ended = time.monotonic_ns()
        if "problem" not in result and thawed < held:
            result["problem"] = "somebody else thawed the guest before the mark counted"
        times = {"frozen_ns": ended - began, "ours_ns": asked - frozen}
        self._report({**result, **times}, is_over=True)

    def thaw(self, result: Result) -> None:
        """The guest is not frozen, however long its agent takes to say so, or is gone. result: what
        came of the freeze, its problem among it."""
        for attempt in count(1):
            self._report({**result, "thaws": attempt}, is_over=False)  # and alive
            self._agent.close()
            try:
                self._agent.sync(seconds=INSIST_SECONDS)
                self._agent.execute("guest-fsfreeze-thaw", seconds=INSIST_SECONDS)
            except AgentGone:
                if not self._is_there():
                    break
                time.sleep(MARK_SECONDS)
            except AgentRefused as error:
                log("thaw_refused", problem=str(error))
                time.sleep(MARK_SECONDS)
            except AgentError as error:
                log("thaw_unanswered", problem=str(error))
            else:
                break
        self._report(result, is_over=True)
        self._agent.close()

    def _is_there(self) -> bool:
        """Say whether a QEMU still has the other end."""
        probe = GuestAgent(self._agent.path)
        with suppress(AgentGone):
            probe.connect(seconds=MARK_SECONDS)
            probe.close()
            return True
        return False

    def _report(self, result: Result, *, is_over: bool) -> None:
        """Write the result down, whole or not at all, if that can be done; nobody may want it any
        more, and a guest is thawed without it.

        The second process hears first that the guest is thawed: it must not thaw into the next
        freeze, which can begin as soon as the result is there.
        """
        if self._standby is not None and is_over:
            self._standby.end()
            self._standby = None
        elif self._standby is not None:
            self._standby.beat()
        new = self._result.with_suffix(".new")
        with suppress(OSError):
            new.write_text(json.dumps({**result, "is_over": is_over}))
            new.replace(self._result)
        log("freeze_result", is_over=is_over, **result)


def _set_mark(tap: socket.socket) -> Result:
    """Return where the tap set its mark, or what kept it from that."""
    try:
        link.send(tap, {"op": "mark", "is_frozen": True})
        answer, _ = link.receive(tap)
    except (OSError, link.LinkClosed):
        return {"problem": "the VM's tap set no mark"}
    if answer is None or "position" not in answer:
        return {"problem": "the VM's tap has no room for a mark"}
    return {"instance": answer["instance"], "position": answer["position"]}


def main() -> None:
    """Run the guard that the configuration file named on the command line describes."""
    link.raise_priority()
    config = json.loads(Path(sys.argv[1]).read_text())
    os.chdir("/")
    guard = Guard(config)
    problem = guard.stand_by()
    if config["only_thaw"]:
        guard.thaw({"problem": str(config["only_thaw"])})
    elif problem:
        guard.give_up(problem)
    else:
        guard.freeze()


if __name__ == "__main__":
    main()

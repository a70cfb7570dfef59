"""A member's line to the meeting it was called to.

Owns: how long the host waits for the others' word, and that no failure of the service is more than
an attempt that came to nothing. Must not know: what holding is. Between the link and mobility.
"""

from __future__ import annotations

import threading
import time

from leeward.agent.link import Meet
from leeward.core.errors import LeewardError
from leeward.mobility.shared_cut import SharedAttempt
from leeward.observability.log import get_logger
from leeward.protocol.messages import MeetingCall, MeetingPhase, MeetingWord

READY_SECONDS = 2.5
HELD_SECONDS = 0.35
"""A little longer than the tap holds by itself."""
END_SECONDS = 3.0
CALL_SECONDS = 1.5
"""A call not heeded for so long is not worth heeding: the others have given up."""


def attempt_of(call: MeetingCall, meet: Meet) -> SharedAttempt:
    """Return what the item's replicator takes part in."""
    return SharedAttempt(call.mark, _Gate(call, meet), time.monotonic() + CALL_SECONDS)


class _Gate:
    """mobility.shared_cut.Gate over the link to the service."""

    def __init__(self, call: MeetingCall, meet: Meet) -> None:
        self._call = call
        self._meet = meet

    def ready(self, *, is_changed: bool) -> bool:
        return self._say(MeetingPhase.READY, READY_SECONDS, is_changed=is_changed)

    def held(self) -> bool:
        return self._say(MeetingPhase.HELD, HELD_SECONDS)

    def end(self, problem: str) -> None:
        # Nothing depends on the reply, and replication is not to wait for it.
        threading.Thread(
            target=lambda: self._say(MeetingPhase.ENDED, END_SECONDS, problem=problem),
            name="meeting-end",
            daemon=True,
        ).start()

    def _say(
        self, phase: MeetingPhase, seconds: float, *, is_changed: bool = True, problem: str = ""
    ) -> bool:
        word = MeetingWord(
            mark_id=self._call.mark.id,
            item_id=self._call.item_id,
            phase=phase,
            is_changed=is_changed,
            problem=problem,
        )
        try:
            return self._meet(word, seconds=seconds)
        except LeewardError as error:
            get_logger().info(
                "meeting_missed", item=word.item_id, phase=phase.value, problem=str(error)
            )
            return False

"""An outside witness: what the guest acknowledged, and when.

Owns: one thread asking the guest's counter over HTTP and its log of readings. Must not know:
Leeward. Its readings are the only truth the demo's checks compare against.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reading:
    """One answer: `acknowledged` was the guest's counter at some moment in [asked, answered].

    asked, answered: seconds since 1970.
    """

    asked: float
    answered: float
    acknowledged: int


def ask(address: str, path: str, *, timeout_seconds: float = 2.0) -> dict[str, object] | None:
    """Return the guest's JSON answer to GET `path`, or None if it gives none."""
    connection = http.client.HTTPConnection(address, timeout=timeout_seconds)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        body = reply.read()
        if reply.status != 200:
            return None
        answer = json.loads(body)
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return answer if isinstance(answer, dict) else None


class Poller:
    """Asks the guest at `address` for its counter every `interval_seconds` until stopped."""

    def __init__(self, address: str, *, interval_seconds: float = 0.1) -> None:
        self.address = address
        self._interval_seconds = interval_seconds
        self._readings: list[Reading] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin asking."""
        self._thread.start()

    def stop(self) -> None:
        """Ask no more. What was read stays."""
        self._stop.set()
        self._thread.join(timeout=10)

    @property
    def readings(self) -> list[Reading]:
        """Return every reading so far, oldest first."""
        return list(self._readings)

    def _run(self) -> None:
        while not self._stop.wait(self._interval_seconds):
            asked = time.time()
            answer = ask(self.address, "/counter")
            answered = time.time()
            if answer is not None and isinstance(answer.get("acknowledged"), int):
                self._readings.append(Reading(asked, answered, int(str(answer["acknowledged"]))))


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many records a disk image of one moment may hold: [at_least, at_most]."""

    at_least: int
    at_most: int


def bounds_at(readings: list[Reading], moment: float) -> Bounds | None:
    """Return what an image of `moment` (seconds since 1970) must and may hold.

    Everything acknowledged before it must be there; of what was acknowledged after it, only what
    the next reading shows may be, and the one record then in flight. None where the log has no
    reading on both sides.
    """
    before = [reading for reading in readings if reading.answered < moment]
    after = [reading for reading in readings if reading.asked > moment]
    if not before or not after:
        return None
    return Bounds(before[-1].acknowledged, after[0].acknowledged + 1)


def lost_seconds(readings: list[Reading], *, surviving: int, end: float) -> float:
    """Return the recovery point objective reached, in seconds.

    How long before `end` (the kill) the guest had acknowledged nothing beyond `surviving`; 0.0 when
    nothing acknowledged before `end` is missing.
    """
    acknowledged = [reading for reading in readings if reading.answered <= end]
    lost = [reading for reading in acknowledged if reading.acknowledged > surviving]
    if not lost:
        return 0.0
    kept = [reading for reading in acknowledged if reading.acknowledged <= surviving]
    return end - (kept[-1].asked if kept else acknowledged[0].asked)

"""Holds: a recovery point that something was booted from stays listed until that is let go.

Owns: hold objects, renewing them, telling which points are held. Must not know: tiers, exports.
Unlike a pin, which keeps the data of a reader that runs, a hold outlives its holder's process: who
starts again finds its point. The worker reads holds before it drops points. FORMAT.md 9.
"""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

from leeward.core.errors import LeewardError
from leeward.object_store.store import ObjectStore
from leeward.observability.log import get_logger
from leeward.replica.envelope import KIND_HOLD, seal_envelope
from leeward.replica.layout import hold_name, holds_prefix, parse_hold
from leeward.replica.sealing import keys_of

RENEW_SECONDS = 3600.0
AGAIN_SECONDS = 30.0
"""How soon a store that took nothing is tried again."""
EXPIRY_SECONDS = 7 * 24 * 3600.0
"""A hold that a worker has not seen renewed for so long, by its own clock, is of a holder that
will not come back: it costs no more than one recovery point until then."""

log = get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class _HoldBody:
    holder: str
    host: str


class Hold:
    """A holder's word that it needs a point, renewed until the process ends. What `release_holds`
    does not take back stays: a later process of the same holder goes on with it."""

    def __init__(self, store: ObjectStore, item_id: str, point_id: str, holder: str) -> None:
        """The hold is there when this returns, unless the store takes nothing: it is tried again.

        holder: whoever holds, the same after a restart. Raises: nothing.
        """
        self._store = store
        self._item_id = item_id
        self._point_id = point_id
        self._holder = holder
        self._is_failing = False
        self._ended = threading.Event()
        self._is_kept = self.renew()
        threading.Thread(target=self._keep, name="hold", daemon=True).start()

    def stop(self) -> None:
        """Renew no more; what is stored stays. Idempotent."""
        self._ended.set()

    def renew(self) -> bool:
        """Whoever watches the hold sees that somebody is there; False if the store takes nothing.
        Called by the thread."""
        nonce = holder_nonce(self._holder)
        try:
            before = _holds_of(self._store, self._item_id, nonce)
            renewal = max((renewal for _, _, renewal in before), default=-1) + 1
            name = hold_name(self._item_id, self._point_id, nonce, renewal)
            body = _HoldBody(holder=self._holder, host=socket.gethostname())
            key = keys_of(self._store).writing
            self._store.create(name, seal_envelope(KIND_HOLD, 0, body, key))
            for old, point, number in before:
                if point != self._point_id or number < renewal - 1:
                    self._store.delete(old)  # who lists them just now still sees the one before
        except LeewardError as error:
            if not self._is_failing:
                log.warning(
                    "point_not_held",
                    item=self._item_id,
                    point=self._point_id,
                    problem=str(error),
                )
            self._is_failing = True
            return False
        self._is_failing = False
        return True

    def _keep(self) -> None:
        while not self._ended.wait(RENEW_SECONDS if self._is_kept else AGAIN_SECONDS):
            self._is_kept = self.renew()


def release_holds(store: ObjectStore, item_id: str, holder: str) -> None:
    """That holder holds no point of the item any more. Idempotent. Raises: Unavailable."""
    for name, _, _ in _holds_of(store, item_id, holder_nonce(holder)):
        store.delete(name)


def holder_nonce(holder: str) -> str:
    """Return what stands for the holder in the names of its holds."""
    return hashlib.sha256(holder.encode()).hexdigest()[:16]


def _holds_of(store: ObjectStore, item_id: str, nonce: str) -> list[tuple[str, str, int]]:
    """Return (name, point, renewal) of what that holder holds of the item."""
    parsed = [(name, parse_hold(name)) for name in store.list(holds_prefix(item_id))]
    return [(name, each[0], each[2]) for name, each in parsed if each and each[1] == nonce]


class HoldWatch:
    """Which of an item's points are held, as one worker sees it. One thread at a time."""

    def __init__(self, store: ObjectStore, item_id: str, monotonic: Callable[[], float]) -> None:
        self._store = store
        self._item_id = item_id
        self._monotonic = monotonic
        self._since: dict[str, float] = {}

    def points(self) -> frozenset[str]:
        """Return the ids of the points that are held; holds that expired are removed.
        Raises: Unavailable.

        A worker that has just started knows of no renewal: every hold lasts for EXPIRY_SECONDS.
        """
        now = self._monotonic()
        found = {
            name: parsed[0]
            for name in self._store.list(holds_prefix(self._item_id))
            if (parsed := parse_hold(name)) is not None
        }
        self._since = {name: self._since.get(name, now) for name in found}
        expired = {name for name, since in self._since.items() if now - since >= EXPIRY_SECONDS}
        for name in expired:
            self._store.delete(name)
            log.warning("hold_expired", item=self._item_id, point=found[name])
        return frozenset(point for name, point in found.items() if name not in expired)

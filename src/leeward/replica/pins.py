"""Readers' pins: what a reader of a catalog version needs is not deleted while it reads, and the
recovery point that it reads stays in the list.

Owns: pin objects, renewing them, and telling which are still renewed. Must not know: what is
deleted, disks. A reader pins the version it has read and then reads the catalog once more: what a
version after the pin names is safe from then on. The collector looks for pins last. FORMAT.md 9.
"""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

from leeward.core.errors import LeewardError, NotFound, SegmentCorrupt, Unavailable
from leeward.object_store.store import ObjectStore
from leeward.observability.log import get_logger
from leeward.replica.envelope import (
    KIND_PIN,
    parse_envelope,
    read_small_object,
    seal_envelope,
)
from leeward.replica.layout import parse_pin, pin_name, pins_prefix
from leeward.replica.sealing import keys_of

RENEW_SECONDS = 60.0
RENEWALS_KEPT = 2
"""A collector that lists pins just when one is renewed still sees the one before."""
EXPIRY_SECONDS = 600.0
"""A pin that a collector has not seen renewed for so long, by its own clock, is nobody's."""

log = get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class _PinBody:
    """point: id of the recovery point that is read; "" in pins of earlier versions."""

    reader: str
    point: str = ""


class Pin:
    """A reader's word that it reads a recovery point as of a catalog version, renewed by a thread
    of its own until released. A reader that dies leaves it to expire: whoever takes its place until
    then finds the point in the list."""

    def __init__(self, store: ObjectStore, item_id: str, version: int, point_id: str) -> None:
        """The pin is there when this returns, unless the store takes nothing: then the reader has
        the grace until a later try succeeds."""
        self._store = store
        self._item_id = item_id
        self._version = version
        self._point_id = point_id
        self._nonce = secrets.token_hex(8)
        self._renewal = 0
        self._is_failing = False
        self._stored: list[int] = []
        self._released = threading.Event()
        self._create()
        self._thread = threading.Thread(target=self._keep, name="pin", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Nothing is held any more. Idempotent; what cannot be deleted expires."""
        if self._released.is_set():
            return
        self._released.set()
        self._thread.join()
        self._delete_all_but(0)

    def renew(self) -> None:
        """Whoever watches the pin sees that somebody is there. Called by the thread."""
        self._renewal += 1
        self._create()

    def _keep(self) -> None:
        while not self._released.wait(RENEW_SECONDS):
            self.renew()

    def _create(self) -> None:
        name = pin_name(self._item_id, self._version, self._nonce, self._renewal)
        body = _PinBody(reader=socket.gethostname(), point=self._point_id)
        try:
            self._store.create(name, seal_envelope(KIND_PIN, 0, body, keys_of(self._store).writing))
        except LeewardError as error:
            if not self._is_failing:
                log.warning(
                    "item_not_pinned",
                    item=self._item_id,
                    version=self._version,
                    problem=str(error),
                )
            self._is_failing = True
            return
        self._is_failing = False
        self._stored.append(self._renewal)
        self._delete_all_but(RENEWALS_KEPT)

    def _delete_all_but(self, count: int) -> None:
        try:
            while len(self._stored) > count:
                name = pin_name(self._item_id, self._version, self._nonce, self._stored[0])
                self._store.delete(name)
                del self._stored[0]
        except LeewardError as error:
            log.warning("pin_not_deleted", item=self._item_id, problem=str(error))


class PinWatch:
    """Which of an item's pins are renewed, as one collector sees them. One thread at a time."""

    def __init__(self, store: ObjectStore, item_id: str, monotonic: Callable[[], float]) -> None:
        self._store = store
        self._item_id = item_id
        self._monotonic = monotonic
        self._seen: dict[str, tuple[int, float]] = {}

    def versions(self) -> list[int]:
        """Return the version that each reader has pinned; pins that expired are removed.
        Raises: Unavailable."""
        return [version for version, _ in self._living().values()]

    def points(self) -> frozenset[str]:
        """Return the ids of the points that are being read. Raises: KeyMissing; Unavailable, also
        for a pin that is damaged: what it holds is not known until it is renewed, or expires."""
        return frozenset(self._point_of(name) for _, name in self._living().values())

    def _point_of(self, name: str) -> str:
        try:
            data = read_small_object(self._store, name)
            return parse_envelope(data, KIND_PIN, _PinBody, keys_of(self._store))[1].point
        except NotFound as error:
            raise Unavailable(f"{name} was renewed while it was read") from error
        except SegmentCorrupt as error:
            raise Unavailable(f"{name} is damaged: {error.message}") from error

    def _living(self) -> dict[str, tuple[int, str]]:
        """Return each reader's version and newest pin, by nonce; pins that expired are removed.

        A collector that has just started knows of no renewal: every pin holds for EXPIRY_SECONDS.
        """
        names = self._store.list(pins_prefix(self._item_id))
        now = self._monotonic()
        found = [(name, *parsed) for name in names if (parsed := parse_pin(name))]
        newest: dict[str, tuple[int, float]] = {}
        for _, _, nonce, renewal in found:
            known, since = self._seen.get(nonce, (-1, now))
            newest[nonce] = max(
                newest.get(nonce, (known, since)),
                (renewal, now) if renewal > known else (known, since),
            )
        self._seen = newest
        expired = {nonce for nonce, (_, since) in newest.items() if now - since >= EXPIRY_SECONDS}
        living: dict[str, tuple[int, str]] = {}
        for name, version, nonce, _ in sorted(found, key=lambda pin: pin[3]):
            if nonce in expired:
                self._store.delete(name)
            else:
                living[nonce] = version, name
        return living

"""A recovery point's disks by name, opened when the first reader comes.

Owns: opening with patience, stacking read-ahead, cache and patience on a disk. Must not know: NBD,
processes. Between the export's NBD server and the replica log.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import TYPE_CHECKING, Protocol

from leeward.core.errors import NotFound
from leeward.core.units import MIB
from leeward.export.config import ExportConfig
from leeward.export.patience import Patience, PatientDevice
from leeward.export.read_ahead import ReadAhead
from leeward.export.reopening import OpenedDisk, OpenPoint, PointDevice
from leeward.nbd.handshake import ReadDevice

if TYPE_CHECKING:
    from leeward.export.block_cache import BlockCache

BULK_CACHE_BYTES = 8 * MIB
_NEAR = ("file:", "memory:")
"""Stores that are nearer than a cache on disk would be."""


Opener = Callable[[ExportConfig], Mapping[str, OpenedDisk]]


class Watcher(Protocol):
    """Who is told what is read: export.boots.Boot."""

    def begin(self, disks: Mapping[str, ReadDevice]) -> None:
        """The point has been opened."""

    def note_read(self, disk: str, offset: int, length: int) -> None: ...

    def note_announced(self, disk: str, offset: int, length: int) -> None: ...


class Nobody:
    """A watcher that does nothing."""

    def begin(self, disks: Mapping[str, ReadDevice]) -> None: ...

    def note_read(self, disk: str, offset: int, length: int) -> None: ...

    def note_announced(self, disk: str, offset: int, length: int) -> None: ...


class PointExports(Mapping[str, ReadDevice]):
    """Export name → disk of the recovery point. Thread-safe.

    Looking up a name opens the point, once, and waits for its stores as long as it takes.
    """

    def __init__(
        self,
        config: ExportConfig,
        opener: Opener,
        *,
        patience: Patience,
        executor: Executor,
        watcher: Watcher,
    ) -> None:
        self._config = config
        self._opener = opener
        self._patience = patience
        self._executor = executor
        self._watcher = watcher
        self._lock = threading.Lock()
        self._point: OpenPoint | None = None
        self._devices: dict[str, ReadDevice] = {}

    def __getitem__(self, name: str) -> ReadDevice:
        """Return the disk. Raises: KeyError; NotFound for a point that is not listed (any more);
        DataIntegrity for one that cannot be opened."""
        if all(replica.disk != name for replica in self._config.replicas):
            raise KeyError(name)
        with self._lock:
            if not self._devices:
                point = self._patience.wait_for(
                    lambda: OpenPoint(lambda: self._opener(self._config))
                )
                devices = {n: PointDevice(point, n, lambda disk: disk.device) for n in point.names}
                self._watcher.begin(devices)
                self._devices = {n: self._stack(n, point, each) for n, each in devices.items()}
                self._point = point
        if name not in self._devices:
            raise NotFound(f"recovery point {self._config.point_id} has no disk {name!r}")
        return self._devices[name]

    def __iter__(self) -> Iterator[str]:
        return iter([replica.disk for replica in self._config.replicas])

    def __len__(self) -> int:
        return len(self._config.replicas)

    def close(self) -> None:
        """Let the point go; reads fail from now on. Idempotent."""
        with self._lock:
            if self._point is not None:
                self._point.close()

    def _stack(self, name: str, point: OpenPoint, device: ReadDevice) -> ReadDevice:
        bulk = PointDevice(point, name, lambda disk: disk.bulk)
        return PatientDevice(
            ReadAhead(device, self._executor, bulk=bulk),
            self._patience,
            on_read=partial(self._watcher.note_read, name),
            on_expect=partial(self._watcher.note_announced, name),
        )


def open_devices(
    config: ExportConfig, cache: Callable[[], BlockCache | None] = lambda: None
) -> Mapping[str, OpenedDisk]:
    """Return the recovery point's disks by name. Raises: as replica.disk.open_point.

    cache: returns where what is read from a store that is far is kept, or None.
    """
    # Imported here: whoever only wants to know the names need not wait for numpy.
    from leeward.export.cached_store import CachedStore
    from leeward.object_store.open import open_store
    from leeward.replica.disk import open_point
    from leeward.replica.host_keys import keyed, open_keyed

    kept = cache()
    stores, bulks = {}, {}
    for replica in config.replicas:
        store = open_store(replica.target_url)
        if kept is None or store.url.startswith(_NEAR):
            stores[replica.disk] = bulks[replica.disk] = keyed(store)
        else:
            stores[replica.disk] = keyed(CachedStore(store, kept))
            bulks[replica.disk] = keyed(CachedStore(store, kept, is_keeping=False))
    catalog_store = open_keyed(config.catalog_url)
    disks = open_point(catalog_store, stores, config.item_id, config.point_id, holder=config.holder)
    return {
        name: OpenedDisk(
            disk, disk.beside(bulks[name], cache_bytes=BULK_CACHE_BYTES), close=disk.close
        )
        for name, disk in disks.items()
    }

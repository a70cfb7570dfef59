"""What an export does for the boot of the guest behind it: the trace of earlier ones is fetched
ahead, this one is recorded.

Owns: the order of reading, replaying, recording and storing a trace. Must not know: NBD, devices'
insides. Between the export's server and the target store; nothing here may hold up or fail a read.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from leeward.core.errors import LeewardError
from leeward.export.config import ExportConfig
from leeward.export.prefetch import Prefetch
from leeward.export.recording import RECORD_SECONDS, BootRecorder, TraceKeeper
from leeward.nbd.handshake import ReadDevice
from leeward.observability.log import get_logger

if TYPE_CHECKING:
    from leeward.replica.boot_trace import BootTrace

PREFETCH_THREADS = 12


class FirstRead:
    """Notes in a file when a read was first answered, by this server or one before it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self.time_ns = self._noted()
        """0 before."""

    def note(self) -> None:
        """Make the file exist, with the present time if it did not. Cheap from then on."""
        if self.time_ns:
            return
        now_ns = time.time_ns()
        with self._lock:
            if self.time_ns:
                return
            self.time_ns = now_ns
            temporary = self._path.with_name(self._path.name + ".new")
            with suppress(OSError):  # a full disk must not cost the guest its read
                temporary.write_text(json.dumps({"first_read_ns": now_ns}))
                temporary.replace(self._path)

    def _noted(self) -> int:
        try:
            return int(json.loads(self._path.read_text())["first_read_ns"])
        except FileNotFoundError:
            return 0
        except (ValueError, KeyError, TypeError):  # a machine lost its power
            return 1


class Boot:
    """One export's watch over its guest's first minute. Thread-safe."""

    def __init__(self, config: ExportConfig, first_read: FirstRead) -> None:
        self._config = config
        self._first_read = first_read
        self._executor = ThreadPoolExecutor(PREFETCH_THREADS, thread_name_prefix="prefetch")
        self._recorder = BootRecorder()
        self._keeper = TraceKeeper(self._recorder, self._store)
        self._prefetches: list[Prefetch] = []
        self._elapsed = 0.0
        if first_read.time_ns:
            self._elapsed = max(0.0, (time.time_ns() - first_read.time_ns) / 1e9)
            self._recorder.begin(self._elapsed)

    def begin(self, disks: Mapping[str, ReadDevice]) -> None:
        """Have what earlier boots read fetched through `disks`, in the background."""
        if self._elapsed < RECORD_SECONDS:
            thread = threading.Thread(target=self._replay, args=(disks,), name="replay-trace")
            thread.daemon = True
            thread.start()

    def note_read(self, disk: str, offset: int, length: int) -> None:
        """A read has been answered."""
        self._first_read.note()
        self._recorder.note(disk, offset, length)
        if not self._recorder.is_over:
            self._keeper.begin(self._elapsed)

    def note_announced(self, disk: str, offset: int, length: int) -> None:
        """The range will be read, but not for the guest."""
        self._recorder.announce(disk, offset, length)

    def end(self) -> None:
        """Fetch nothing more, and have the trace stored as far as it goes."""
        for prefetch in self._prefetches:
            prefetch.stop()
        self._keeper.flush()

    def _replay(self, disks: Mapping[str, ReadDevice]) -> None:
        from leeward.replica.boot_trace import chunks_of

        trace = self._known()
        for disk, device in disks.items():
            prefetch = Prefetch(device, chunks_of(trace.disks.get(disk, ())), self._executor)
            self._prefetches.append(prefetch)
            prefetch.start()

    def _known(self) -> BootTrace:
        from leeward.replica.boot_trace import NO_TRACE, read_trace
        from leeward.replica.host_keys import open_keyed

        try:
            return read_trace(open_keyed(self._config.catalog_url), self._config.item_id)
        except LeewardError as error:
            get_logger().warning("boot_trace_not_read", reason=error.message)
            return NO_TRACE

    def _store(self, chunks: Mapping[str, Sequence[int]]) -> None:
        from leeward.replica.boot_trace import merge_boot, sealing_of, write_trace
        from leeward.replica.host_keys import open_keyed

        url, item_id = self._config.catalog_url, self._config.item_id
        boot = f"{self._config.export_id}@{self._first_read.time_ns}"
        trace = merge_boot(self._known(), boot, chunks)
        epoch, key_id = sealing_of(open_keyed(url), item_id)
        write_trace(open_keyed(url, key_id), item_id, epoch, trace)
        count = sum(map(len, chunks.values()))
        get_logger().info("boot_trace_stored", item=item_id, chunks=count)

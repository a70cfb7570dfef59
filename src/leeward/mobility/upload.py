"""A cut's changes on their way into the cache: segments in parallel, manifests last and in order.

Owns: what makes a cut visible, and where a stream goes on after a restart. Must not know: QEMU,
journals, the processor. Sits between cut.py and the cache store.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field

from leeward.core.errors import (
    ChainBroken,
    Conflict,
    Fenced,
    InvalidRequest,
    NotFound,
    ObjectExists,
    SegmentCorrupt,
    Unavailable,
)
from leeward.mobility.chain import ChainEnd, ChainNote
from leeward.mobility.cut import DiskChanges, SegmentContent
from leeward.mobility.pacing import AT_ONCE_MAX, Concurrency, Throttle
from leeward.model.recovery import Consistency, FrozenTime, SharedMark
from leeward.object_store.store import ObjectStore
from leeward.observability.log import get_logger
from leeward.replica.manifest import (
    CutManifest,
    DigestRequest,
    DiskCut,
    SegmentRef,
    applied_name,
    applied_prefix,
    cache_segment_name,
    cache_segments_prefix,
    cut_name,
    cuts_prefix,
    decode_applied,
    decode_refused,
    encode_manifest,
    manifest_sha256,
    parse_segment_sequence,
    refused_name,
    refused_prefix,
    with_sequences,
)
from leeward.replica.sealing import keys_of
from leeward.replica.segment import Compression, SegmentHeader, encode_segment

RUN_AHEAD_MAX = 4
"""Cuts begun and not yet committed."""
SEGMENTS_SECONDS = 120.0
"""How long a commit waits for the next of its segments before it is to be asked again."""
ENCODERS = 2
"""Segments encoded at once: processor time that the VMs of the host do not get."""
_RESUME_TRIES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """All that a cut says. time_ns: the source host's clock at its mark."""

    disks: tuple[DiskChanges, ...]
    time_ns: int
    consistency: Consistency
    vm_config: dict[str, object]
    digests: tuple[DigestRequest, ...] = ()
    shared: SharedMark | None = None
    frozen: FrozenTime | None = None

    @property
    def bytes_written(self) -> int:
        return sum(disk.bytes_written for disk in self.disks)


@dataclass(frozen=True, slots=True)
class UploadedCut:
    sequence: int
    manifest_sha256: str
    bytes_shipped: int


@dataclass(slots=True)
class _Segment:
    """One segment on its way. `sent` is kept from the first try that succeeded."""

    disk: str
    name: str
    header: SegmentHeader
    content: SegmentContent
    future: Future[SegmentRef]
    sent: SegmentRef | None = None


@dataclass(slots=True)
class PendingCut:
    """A cut begun: segments on their way, nothing visible yet.

    `manifest` keeps the very bytes of the first try to publish it, so that a reply that was lost
    can be recognized at the next.
    """

    cut: Cut
    sequence: int
    segments: list[_Segment] = field(default_factory=list)
    manifest: bytes = b""
    bytes_shipped: int = 0
    is_late: bool = False
    """A commit of it has been tried before: what failed then is sent again."""

    @property
    def is_stored(self) -> bool:
        """True when no segment is on its way any more, stored or failed."""
        return all(segment.future.done() for segment in self.segments)

    def when_stored(self, callback: Callable[[], None]) -> None:
        """Have `callback` called, in any thread, whenever a segment has ended on its way."""
        for segment in self.segments:
            segment.future.add_done_callback(lambda _: callback())


class Uploader:
    """The stream of cuts of one item and epoch into its cache. Used by one thread at a time.

    Each method raises Unavailable when the cache cannot take or give something; then nothing half
    made is visible, and the same call may be made again with the same cut.
    """

    def __init__(
        self,
        store: ObjectStore,
        item_id: str,
        epoch: int,
        *,
        compression: Compression = "zstd",
        workers: int = int(AT_ONCE_MAX),
        throttle: Throttle | None = None,
        note: ChainNote | None = None,
        nonce: Callable[[], str] = lambda: secrets.token_hex(6),
    ) -> None:
        self._store = store
        self._keys = keys_of(store)
        self._item_id = item_id
        self._epoch = epoch
        self._compression = compression
        self._nonce = nonce
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix=f"upload-{item_id}")
        self._throttle = throttle or Throttle()
        self._encoders = threading.Semaphore(ENCODERS)
        self.concurrency = Concurrency()
        self._pending: list[PendingCut] = []
        self._next: int | None = None
        self._parent = ""
        self._note = note or ChainNote(None, epoch)
        self._restarts = False
        self._broken_after: ChainEnd | None = None
        self._log = get_logger(item=item_id, epoch=epoch)
        self.bytes_written = 0
        """By the guest, in cuts committed by this object."""
        self.bytes_shipped = 0
        """Stored in the cache for those cuts: segments and manifests, as encoded."""

    def close(self) -> None:
        """End the threads; what was begun and not committed stays invisible."""
        self._throttle.end()
        self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def committed_sequence(self) -> int:
        """The sequence of the newest cut known to be visible; 0 before the first."""
        return (self._next or 1) - 1

    # -------------------------------------------------------------------------- a cut

    def upload(self, cut: Cut) -> UploadedCut:
        """Make the cut visible: `begin` and `commit`. Asked again with the same `Cut` object after
        Unavailable, it goes on where it stopped."""
        return self.commit(self.begun(cut) or self.begin(cut))

    def begun(self, cut: Cut) -> PendingCut | None:
        """Return how this `Cut` object is on its way; None if it was not begun, or abandoned."""
        return next((pending for pending in self._pending if pending.cut is cut), None)

    def begin(self, cut: Cut) -> PendingCut:
        """Send the cut's segments in the background; nothing becomes visible.

        Cuts must be committed in the order in which they were begun.
        Raises: Fenced, ChainBroken, Unavailable (where to go on is not known yet), InvalidRequest
        when RUN_AHEAD_MAX cuts already wait for their commit.
        """
        self._check_whole()
        if len(self._pending) >= RUN_AHEAD_MAX:
            raise InvalidRequest(f"{RUN_AHEAD_MAX} cuts already wait for their commit")
        if self._next is None:
            self.resume()
        assert self._next is not None
        pending = PendingCut(cut=cut, sequence=self._next + len(self._pending))
        nonce = self._nonce()
        for disk in cut.disks:
            for index, content in enumerate(disk.segments):
                pending.segments.append(
                    self._start(pending.sequence, disk.disk, index, nonce, content)
                )
        self._pending.append(pending)
        return pending

    def commit(self, pending: PendingCut) -> UploadedCut:
        """Make a begun cut visible, after all its segments and every earlier cut.

        Raises: Unavailable (commit again), Conflict (another uploader holds that sequence:
        `resume`), InvalidRequest (not the oldest begun cut).
        """
        if not self._pending or self._pending[0] is not pending:
            raise InvalidRequest("cuts are committed in the order in which they were begun")
        self._check_whole()
        self._finish_segments(pending)
        self._note.save(max(self._note.sequence, pending.sequence - 1))
        if not pending.manifest:
            pending.manifest = self._encode_manifest(pending)
        self._publish(pending)
        self._pending.pop(0)
        self._restarts = False
        self._next = pending.sequence + 1
        with suppress(Unavailable):  # the next commit will not go on without
            self._note.save(pending.sequence)
        self._parent = manifest_sha256(pending.manifest)
        shipped = pending.bytes_shipped + len(pending.manifest)
        self.bytes_written += pending.cut.bytes_written
        self.bytes_shipped += shipped
        return UploadedCut(pending.sequence, self._parent, shipped)

    def abandon(self) -> None:
        """Forget every cut begun and not committed; the next `begin` looks where to go on.

        One of them may become visible nevertheless, if its manifest's reply was lost.
        """
        for pending in self._pending:
            for segment in pending.segments:
                segment.future.cancel()
        self._pending.clear()
        self._next = None

    # -------------------------------------------------------------------------- where to go on

    def resume(self) -> int:
        """Return the next sequence, read from the cache's cuts and applied markers.

        Forgets uncommitted cuts. Raises: ChainBroken if cuts that were committed are neither there
        nor applied; Fenced if the cache holds a newer epoch; Unavailable.
        """
        self._check_whole()
        self.abandon()
        for _ in range(_RESUME_TRIES):
            cut = self._newest(cuts_prefix(self._item_id))
            applied = self._newest(applied_prefix(self._item_id))
            newest = max(cut, applied)
            try:
                if not newest:
                    self._parent = ""
                elif applied == newest:
                    self._parent = self._applied_sha256(newest)
                else:
                    name = cut_name(self._item_id, self._epoch, newest)
                    self._parent = manifest_sha256(self._store.get(name))
            except NotFound:
                continue  # applied and removed since it was listed
            if newest < self._note.sequence:
                self._broken_after = ChainEnd(newest, self._parent)
                self._check_whole()
            self._next, self._restarts = newest + 1, False
            self._log.info("upload_resumed", next_sequence=self._next)
            return self._next
        raise Unavailable("the cache's list of cuts changes faster than it can be read")

    # -------------------------------------------------------------------------- a broken chain

    @property
    def broken_after(self) -> ChainEnd | None:
        """Where the chain is broken: nothing is sent until `restart`. None normally."""
        return self._broken_after

    def _check_whole(self) -> None:
        if self._broken_after is not None:
            raise ChainBroken(
                f"cuts after {self._broken_after.sequence} of item {self._item_id} were lost",
                hint="a new sweep makes up for them",
            )

    def check_refused(self, applied: int) -> None:
        """Return if the target, having applied up to there, takes what was sent.

        Raises: ChainBroken, Fenced, Unavailable.
        """
        sequence = self._newest(refused_prefix(self._item_id), none=-1)
        if sequence < applied:
            return  # none, or a cut has followed since
        name = refused_name(self._item_id, self._epoch, sequence)
        try:
            _, refusal = decode_refused(self._store.get(name), self._keys)
        except NotFound:
            return
        except SegmentCorrupt as error:
            self._store.delete(name)  # the worker says it again
            raise Unavailable(f"{name} in the cache is damaged: {error.message}") from error
        self._broken_after = ChainEnd(refusal.sequence, refusal.manifest_sha256, refusal.is_damaged)
        self._check_whole()

    def restart(self) -> None:
        """Have the next cut follow the place where the chain is broken. All later cuts are removed:
        they are void. Nothing may count as a recovery point before a new sweep has ended, and that
        must be written down already.

        The next sequence is one that was never used, a cut whose reply was lost included.
        Raises: Fenced, Unavailable: call it again.
        """
        end = self._broken_after
        if end is None:
            return
        self.abandon()
        newest = max(self._newest(cuts_prefix(self._item_id)), self._note.sequence, end.sequence)
        for prefix in (cuts_prefix(self._item_id), cache_segments_prefix(self._item_id)):
            self._remove_after(end.sequence, prefix)
        self._remove_after(-1, refused_prefix(self._item_id))
        self._log.warning("chain_restarted", after=end.sequence, next_sequence=newest + 2)
        self._parent, self._restarts, self._next = end.manifest_sha256, True, newest + 2
        self._broken_after = None

    def _remove_after(self, sequence: int, prefix: str) -> None:
        names = self._store.list(prefix)
        found = {name: (epoch, number) for name, epoch, number in with_sequences(names)}
        if prefix == cache_segments_prefix(self._item_id):
            found = {name: at for name in names if (at := parse_segment_sequence(name))}
        for name, (epoch, number) in found.items():
            if epoch == self._epoch and number > sequence:
                self._store.delete(name)

    def applied_sequence(self) -> int:
        """Return the newest sequence of this epoch that the target has durably applied, or 0."""
        return self._newest(applied_prefix(self._item_id))

    def _newest(self, prefix: str, *, none: int = 0) -> int:
        """Return the highest sequence of this epoch under `prefix`, or `none`. Raises: Fenced."""
        newest = none
        for _, epoch, sequence in with_sequences(self._store.list(prefix)):
            if epoch > self._epoch:
                raise Fenced(
                    f"item {self._item_id} is replicated at epoch {epoch}, newer than {self._epoch}"
                )
            if epoch == self._epoch:
                newest = max(newest, sequence)
        return newest

    def _applied_sha256(self, sequence: int) -> str:
        """Return the manifest hash in an applied marker.

        Raises: NotFound; Unavailable for a damaged one: nothing is wrong with the cut at hand, and
        the worker writes the marker anew.
        """
        name = applied_name(self._item_id, self._epoch, sequence)
        try:
            _, marker = decode_applied(self._store.get(name), self._keys)
        except SegmentCorrupt as error:
            raise Unavailable(f"{name} in the cache is damaged: {error.message}") from error
        return marker.manifest_sha256

    # -------------------------------------------------------------------------- segments

    def _start(
        self, sequence: int, disk: str, index: int, nonce: str, content: SegmentContent
    ) -> _Segment:
        header = SegmentHeader(
            item_id=self._item_id,
            disk=disk,
            epoch=self._epoch,
            sequence=sequence,
            unit=content.unit,
        )
        name = cache_segment_name(self._item_id, self._epoch, sequence, disk, index, nonce)
        future = self._pool.submit(self._send, name, header, content)
        return _Segment(disk, name, header, content, future)

    def _send(self, name: str, header: SegmentHeader, content: SegmentContent) -> SegmentRef:
        """Store one segment and return its reference. Runs in the pool."""
        with self.concurrency.slot():  # before it is encoded: encoded segments take memory
            with self._encoders:
                encoded = encode_segment(
                    header,
                    content.extents,
                    content.data,
                    compression=self._compression,
                    key=self._keys.writing,
                )
            self._throttle.take(encoded.bytes)
            # The name is ours alone and encoding is exact: if it exists, an earlier try arrived.
            with suppress(ObjectExists), self.concurrency.timed(encoded.bytes):
                self._store.create(name, encoded.parts)
        return SegmentRef(name=name, bytes=encoded.bytes, sha256=encoded.sha256, unit=content.unit)

    def _finish_segments(self, pending: PendingCut) -> None:
        """Return when every segment of the cut is stored; start those again that failed before.

        Raises: what the first failed segment raised, after all have ended.
        """
        missing = [segment for segment in pending.segments if segment.sent is None]
        for segment in missing:
            is_done = pending.is_late and segment.future.done()
            if is_done and segment.future.exception() is not None:
                segment.future = self._pool.submit(
                    self._send, segment.name, segment.header, segment.content
                )
        pending.is_late = True
        late = self._late([segment.future for segment in missing])
        if late:
            raise Unavailable(f"the cache takes too long to store {len(late)} segments")
        failed = None
        for segment in missing:
            failure = segment.future.exception()
            if failure is None:
                segment.sent = segment.future.result()
                pending.bytes_shipped += segment.sent.bytes
            failed = failed or failure
        if failed is not None:
            raise failed

    def _late(self, sending: list[Future[SegmentRef]]) -> set[Future[SegmentRef]]:
        """Return which are not stored although SEGMENTS_SECONDS have passed without one of them
        being: slow progress is progress, where the bandwidth is limited above all."""
        late = set(sending)
        while late:
            before, late = late, wait(late, SEGMENTS_SECONDS, FIRST_COMPLETED).not_done
            if late == before and not self._throttle.rate():
                return late
        return late

    # -------------------------------------------------------------------------- the manifest

    def _encode_manifest(self, pending: PendingCut) -> bytes:
        sent: dict[str, list[SegmentRef]] = {disk.disk: [] for disk in pending.cut.disks}
        for segment in pending.segments:
            assert segment.sent is not None
            sent[segment.disk].append(segment.sent)
        return encode_manifest(
            CutManifest(
                item_id=self._item_id,
                epoch=self._epoch,
                sequence=pending.sequence,
                parent_sha256=self._parent,
                consistency=pending.cut.consistency,
                time_ns=pending.cut.time_ns,
                disks=tuple(
                    DiskCut(
                        disk=disk.disk,
                        size_bytes=disk.size_bytes,
                        segments=tuple(sent[disk.disk]),
                    )
                    for disk in pending.cut.disks
                ),
                vm_config=pending.cut.vm_config,
                restarts=self._restarts,
                bytes_written=pending.cut.bytes_written,
                bytes_shipped=pending.bytes_shipped,
                digests=pending.cut.digests,
                shared=pending.cut.shared,
                frozen=pending.cut.frozen,
            ),
            self._keys.writing,
        )

    def _publish(self, pending: PendingCut) -> None:
        """Create the manifest; a name that exists must hold these very bytes."""
        name = cut_name(self._item_id, self._epoch, pending.sequence)
        try:
            self._store.create(name, pending.manifest)
        except ObjectExists as error:
            if not self._is_published(name, pending):
                self.abandon()
                raise Conflict(
                    f"cut {pending.sequence} of item {self._item_id} exists with other content",
                    hint="another uploader of this epoch is or was at work; resume",
                ) from error

    def _is_published(self, name: str, pending: PendingCut) -> bool:
        """Say whether the cut that exists under that name, or was applied, is this one."""
        try:
            return self._store.get(name) == pending.manifest
        except NotFound:
            pass  # applied and removed meanwhile
        try:
            applied = self._applied_sha256(pending.sequence)
        except NotFound:
            return False
        return applied == manifest_sha256(pending.manifest)

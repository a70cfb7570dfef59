"""FORMAT.md is complete: docs/reader.py, written from it alone, restores every recovery point."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from leeward.core.units import MIB
from leeward.model.recovery import Consistency
from leeward.object_store.file import create_file_store
from leeward.object_store.store import ObjectStore
from leeward.processor.apply import Numbers
from leeward.processor.compaction import DiskCompactor
from leeward.processor.disk_log import compacted_log
from leeward.replica import snapshots
from leeward.replica.block_map import BlockMap
from leeward.replica.catalog import Catalog
from leeward.replica.catalog_state import AppliedCut, AppliedDisk, State
from leeward.replica.checkpoint import read_checkpoint_head
from leeward.replica.disk import replay_map
from leeward.replica.envelope import KIND_SNAPSHOT, parse_envelope, seal_envelope
from leeward.replica.layout import (
    checkpoint_name,
    make_segment_id,
    record_name,
    segment_name,
    snapshots_prefix,
)
from leeward.replica.sealing import Key, KeyedStore, keyring
from leeward.replica.segment import (
    BLOCKS,
    EXTENT_DTYPE,
    ZEROES,
    Compression,
    SegmentHeader,
    encode_segment,
)
from leeward.replica.snapshots import SNAPSHOT_VERSIONS

READER = Path(__file__).parents[3] / "docs/reader.py"
READER_LINES_MAX = 200
SIZE = 3 * MIB + 512
SECRETS = [bytes([number] * 32) for number in (1, 2)]
KEYS = [Key(secret) for secret in SECRETS]


class Writer:
    """Writes a small disk's history: data and zeros, aligned and not, checkpoints in between."""

    def __init__(
        self, catalog_store: ObjectStore, disk_store: ObjectStore, compression: Compression
    ) -> None:
        self.catalog_store = catalog_store
        self.disk_store = disk_store
        self.compression = compression
        self.key: Key | None = None
        self.write_with(None)
        self.map = BlockMap("web", "data", SIZE)
        self.content = bytearray(-(-SIZE // 4096) * 4096)
        self.random = np.random.default_rng(7)

    def write_with(self, key: Key | None) -> None:
        """What is written from here on is sealed with the key, if there is one."""
        keys = keyring(KEYS, key)
        self.key = key
        self.store = KeyedStore(self.disk_store, keys)
        self.catalog = Catalog.open(KeyedStore(self.catalog_store, keys), "web")
        self.claim = self.catalog.take_over(1)

    def cut(self, sequence: int) -> tuple[str, bytes]:
        edges = np.sort(self.random.choice(SIZE // 4096 + 2, 10, replace=False)).tolist()
        extents, parts, position = [], [], 0
        for index, (start, end) in enumerate(zip(edges[::2], edges[1::2], strict=True)):
            is_zero = index == sequence % 5
            noise = self.random.bytes((end - start) * 2048) + bytes((end - start) * 2048)
            new = bytes((end - start) * 4096) if is_zero else noise
            extents.append((start, end - start, ZEROES if is_zero else position))
            self.content[start * 4096 : end * 4096] = new
            if not is_zero:
                parts.append(new)
                position += end - start
        table = np.array(extents, EXTENT_DTYPE)
        header = SegmentHeader("web", "data", 1, sequence, BLOCKS)
        segment_id = make_segment_id(self.claim, sequence)
        encoded = encode_segment(header, table, parts, compression=self.compression, key=self.key)
        self.store.create(segment_name("web", "data", segment_id), encoded.parts)
        self.map.apply(segment_id, table)
        checkpoint = ""
        if sequence % 4 == 0:
            checkpoint = checkpoint_name("web", "data", self.claim, sequence)
            self.map.write_checkpoint(self.store, checkpoint, epoch=1)
        self.append(sequence, (segment_id,), checkpoint)
        return self.catalog.points[-1].id, bytes(self.content[:SIZE])

    def append(self, sequence: int, segments: tuple[int, ...], checkpoint: str) -> None:
        entry = AppliedDisk(disk="data", size_bytes=SIZE, segments=segments, checkpoint=checkpoint)
        cut = AppliedCut(
            epoch=1,
            sequence=sequence,
            manifest_sha256="",
            time_ns=sequence,
            consistency=Consistency.CRASH,
            disks=(entry,),
        )
        self.catalog.append_cuts([cut])


@pytest.mark.parametrize(
    ("compression", "keys", "idle_cuts"),
    [
        ("zstd", [None], SNAPSHOT_VERSIONS),
        ("lz4", [None], 0),
        ("none", [None], 0),
        ("zstd", [KEYS[0]], SNAPSHOT_VERSIONS),
        ("lz4", [KEYS[0]], 0),
        ("none", [None, KEYS[0], KEYS[1], None], 0),
    ],
    ids=["zstd", "lz4", "none", "encrypted", "encrypted-lz4", "keys-change"],
)
def test_every_point_is_restored_from_the_document_alone(
    tmp_path: Path, compression: Compression, keys: list[Key | None], idle_cuts: int
) -> None:
    """idle_cuts: so many cuts without changes that the reader begins with a snapshot."""
    system, data = (create_file_store(tmp_path / name) for name in ("system", "data"))
    writer = Writer(system, data, compression)
    writer.write_with(keys[0])
    for sequence in range(1, idle_cuts + 1):
        writer.append(sequence, (), "")
    points = {}
    for number in range(1, 11):
        writer.write_with(keys[number * len(keys) // 11])
        point, content = writer.cut(idle_cuts + number)
        points[point] = content
    assert bool(list((tmp_path / "system/items/web").glob("snapshots/*"))) == bool(idle_cuts)
    assert read(tmp_path, tmp_path / "system", "web").split()[-10:] == list(points)
    for point, expected in [*points.items()][::3]:
        check_restored(tmp_path, point, expected)


@pytest.mark.parametrize(
    ("keys", "idle_cuts"),
    [([None], 0), ([KEYS[0]], SNAPSHOT_VERSIONS - 14), ([None, KEYS[1]], 0)],
    ids=["plain", "encrypted-snapshot-between", "keys-change"],
)
def test_a_compacted_log_is_restored_from_the_document_alone(
    tmp_path: Path, keys: list[Key | None], idle_cuts: int
) -> None:
    """idle_cuts: so many before that the reader begins with a snapshot older or newer than that."""
    system, data = (create_file_store(tmp_path / name) for name in ("system", "data"))
    writer = Writer(system, data, "zstd")
    for sequence in range(1, idle_cuts + 1):
        writer.append(sequence, (), "")
    points = {}
    for number in range(1, 13):
        writer.write_with(keys[number * len(keys) // 13])
        point, content = writer.cut(idle_cuts + number)
        points[point] = content
        if number in (6, 12):
            dropped = [*points][:4] if number == 6 else [*points][2:5]
            writer.catalog.drop_points([p.id for p in writer.catalog.points if p.id in dropped])
            points = {p: content for p, content in points.items() if p not in dropped}
            assert compact(writer), "nothing was dead"
    for point, expected in points.items():
        check_restored(tmp_path, point, expected)


def test_a_snapshot_that_lists_not_every_segment_is_passed_over(tmp_path: Path) -> None:
    store = create_file_store(tmp_path / "system")
    writer = Writer(store, store, "zstd")
    for sequence in range(1, SNAPSHOT_VERSIONS + 1):
        writer.append(sequence, (), "")
    (name,) = store.list(snapshots_prefix("web"))
    _, state = parse_envelope(store.get(name), KIND_SNAPSHOT, State)
    store.delete(name)
    store.create(name, seal_envelope(KIND_SNAPSHOT, 1, replace(state, is_complete=False, kept=())))
    points = read(tmp_path, tmp_path / "system", "web").split()
    assert points == [point.id for point in writer.catalog.points]


@pytest.mark.parametrize("key", [None, KEYS[0]], ids=["plain", "encrypted"])
def test_a_trimmed_catalog_is_read_from_the_document_alone(
    tmp_path: Path, key: Key | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "SNAPSHOT_VERSIONS", 3)
    system, data = (create_file_store(tmp_path / name) for name in ("system", "data"))
    writer = Writer(system, data, "zstd")
    writer.write_with(key)
    points = {}
    for number in range(1, 41):
        point, content = writer.cut(number)
        points[point] = content
        if number % 10 == 0:
            raise_floor(writer)
    assert not (tmp_path / "system/items/web/catalog" / f"{1:016d}").exists()
    assert read(tmp_path, tmp_path / "system", "web").split() == list(points)
    for point, expected in [*points.items()][::13]:
        check_restored(tmp_path, point, expected)
    for name in system.list(snapshots_prefix("web")):
        system.delete(name)
    with pytest.raises(subprocess.CalledProcessError) as failed:
        read(tmp_path, tmp_path / "system", "web")
    assert "there is no version 1" in failed.value.stderr


def raise_floor(writer: Writer) -> None:
    """Make the oldest of the newest snapshots the floor, and delete what may be deleted then."""
    catalog, store = writer.catalog, KeyedStore(writer.catalog_store, keyring(KEYS, writer.key))
    version = snapshots.snapshot_versions(store, "web")[-snapshots.SNAPSHOTS_KEPT]
    sha256 = snapshots.read_snapshot(store, "web", version).sha256
    assert catalog.raise_floor(version, sha256)
    for below in range(1, catalog.state.floor.previous):
        store.delete(record_name("web", below))


def compact(writer: Writer) -> int:
    """Compact the disk's log, delete what no point needs any more, and return how much that was."""
    state = writer.catalog.state
    compactor = DiskCompactor(
        writer.store, "web", "data", compression="lz4", sleep=lambda seconds: None
    )
    compactor.survey(state)
    numbers = Numbers(writer.claim)
    numbers._next = 1000
    made = compactor.make(state, compactor.plan(state), numbers, is_stopping=lambda: False)
    log = compacted_log(state, made)
    assert log is not None
    writer.catalog.compact("data", log)
    entries = writer.catalog.state.disk_entries("data")
    needed = {segment_name("web", "data", each) for _, entry in entries for each in entry.segments}
    for _, entry in entries:
        if entry.checkpoint:
            head = read_checkpoint_head(writer.store, entry.checkpoint)
            needed |= {entry.checkpoint, *(at.object_name for at in head.pages.values())}
    gone = set(writer.disk_store.list("items/web/disks/")) - needed
    for name in gone:
        writer.disk_store.delete(name)
    checkpoint, segments = writer.catalog.newest_disk_log("data")
    writer.map = replay_map(writer.store, "web", "data", SIZE, checkpoint, segments)
    return len(gone)


def check_restored(folder: Path, point: str, expected: bytes) -> None:
    output, wanted = folder / "output.raw", folder / "expected.raw"
    wanted.write_bytes(expected)
    assert read(folder, folder / "system", "web", point, "data", output, folder / "data") == point
    compared = ["qemu-img", "compare", "-f", "raw", "-F", "raw", str(output), str(wanted)]
    subprocess.run(compared, check=True, capture_output=True, timeout=60)


def read(folder: Path, *arguments: object) -> str:
    key_file = folder / "keys"
    key_file.write_text("".join(f"{secret.hex()}  # a key\n" for secret in SECRETS))
    done = subprocess.run(
        [sys.executable, "-I", str(READER), *map(str, arguments)],
        env={"LEEWARD_KEY_FILE": str(key_file)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()


def test_reader_stands_alone() -> None:
    text = READER.read_text()
    assert len(text.splitlines()) <= READER_LINES_MAX
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [])
        + ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [])
    }
    assert imported - set(sys.stdlib_module_names) == {"zstandard", "cryptography", "lz4"}

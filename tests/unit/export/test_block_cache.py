"""The cache on disk: whole or not there, within its limit, shared, and never a damaged byte."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from leeward.core.errors import InvalidRequest, Unavailable
from leeward.core.units import GIB, KIB, MIB
from leeward.export import block_cache
from leeward.export.block_cache import BLOCK_BYTES, BlockCache, BlockKey, cache_limit, open_cache
from leeward.export.cached_store import CachedStore
from leeward.export.config import LIMIT_VARIABLE
from leeward.object_store.memory import MemoryStore

NAME = "items/item/disks/disk/segments/00001-0000001"
CONTENT = random.Random(3).randbytes(3 * BLOCK_BYTES + 1000)


def key(index: int) -> BlockKey:
    return BlockKey("s3://bucket", NAME, index)


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file() and path.name != "lock"]


def test_what_is_put_is_found_by_every_process(tmp_path: Path) -> None:
    BlockCache(tmp_path, GIB).put(key(0), CONTENT[:BLOCK_BYTES])
    other = BlockCache(tmp_path, GIB)
    assert other.get(key(0)) == CONTENT[:BLOCK_BYTES]
    assert other.get(key(1)) is None
    assert other.get(BlockKey("s3://other", NAME, 0)) is None
    other.forget(key(0))
    assert other.get(key(0)) is None


@pytest.mark.parametrize("damage", ["flip", "cut", "grow", "empty", "other"])
def test_a_damaged_block_is_not_served_but_removed(tmp_path: Path, damage: str) -> None:
    cache = BlockCache(tmp_path, GIB)
    cache.put(key(0), CONTENT[:BLOCK_BYTES])
    (path,) = files(tmp_path)
    stored = bytearray(path.read_bytes())
    match damage:
        case "flip":
            stored[len(stored) // 2] ^= 1
        case "cut":
            del stored[-1:]
        case "grow":
            stored += b"x"
        case "empty":
            stored.clear()
        case "other":  # a whole block, but not the one of that name
            cache.put(key(1), CONTENT[BLOCK_BYTES : 2 * BLOCK_BYTES])
            stored = bytearray(next(p for p in files(tmp_path) if p != path).read_bytes())
    path.write_bytes(stored)
    assert cache.get(key(0)) is None
    assert not path.exists()


def test_the_limit_is_kept_and_what_was_used_last_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_cache, "_TOUCH_SECONDS", -1.0)
    limit = 8 * MIB
    cache = BlockCache(tmp_path, limit)
    cache.put(key(0), CONTENT[:BLOCK_BYTES])
    for index in range(1, 100):
        cache.put(key(index), CONTENT[:BLOCK_BYTES])
        assert cache.get(key(0)) is not None
        time.sleep(0.001)
    sizes = sum(path.stat().st_size for path in files(tmp_path))
    assert sizes <= limit + 4 * MIB + BLOCK_BYTES  # what may be added between two looks
    assert cache.get(key(99)) is not None
    assert cache.get(key(1)) is None


def test_a_full_or_read_only_disk_costs_nothing_but_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    BlockCache(tmp_path / "file", GIB).put(key(0), b"data")
    assert BlockCache(tmp_path / "file", GIB).get(key(0)) is None
    monkeypatch.setattr(block_cache, "FREE_BYTES_MIN", 1 << 60)
    BlockCache(tmp_path / "full", GIB).put(key(0), b"data")
    assert files(tmp_path / "full") == []


def test_a_killed_writer_leaves_a_usable_cache(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path;"
        "from leeward.export.block_cache import *;"
        f"cache = BlockCache(Path({str(tmp_path)!r}), 1 << 30); print('on', flush=True)\n"
        "n = 0\n"
        "while True:\n"
        f"    cache.put(BlockKey('s3://bucket', {NAME!r}, n), bytes([n % 251]) * (1 << 18))\n"
        "    n += 1\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        cache, deadline = BlockCache(tmp_path, GIB), time.monotonic() + 60
        while cache.get(key(20)) is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        writer.kill()
    found = 0
    while (data := cache.get(key(found))) is not None:
        assert data == bytes([found % 251]) * BLOCK_BYTES
        found += 1
    assert found > 0
    leftover = tmp_path / "new-1-dead"
    leftover.write_bytes(b"half")
    os.utime(leftover, (0, 0))
    cache.put(key(found), b"data")  # a first put looks round
    assert cache.get(key(found)) == b"data"
    assert not leftover.exists()


def test_the_limit_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "512M")
    assert cache_limit() == 512 * MIB
    monkeypatch.setenv(LIMIT_VARIABLE, "0")
    assert open_cache(tmp_path) is None
    monkeypatch.setenv(LIMIT_VARIABLE, "much")
    with pytest.raises(InvalidRequest, match=LIMIT_VARIABLE):
        cache_limit()
    assert open_cache(tmp_path) is not None
    monkeypatch.delenv(LIMIT_VARIABLE)
    assert cache_limit() == block_cache.LIMIT_DEFAULT


class CountingStore(MemoryStore):
    """Counts what is read of it; may be away."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[tuple[int, int]] = []
        self.is_away = False

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        if self.is_away:
            raise Unavailable("away")
        self.reads.append((offset, length))
        return super().get_range(name, offset, length)


@pytest.fixture
def store() -> CountingStore:
    store = CountingStore()
    store.create(NAME, CONTENT)
    store.create("items/item/catalog/0000000000000001", b"catalog")
    return store


def test_any_range_reads_as_the_store_has_it(tmp_path: Path, store: CountingStore) -> None:
    cached = CachedStore(store, BlockCache(tmp_path, GIB))
    source = random.Random(9)
    for _ in range(200):
        offset = source.randrange(len(CONTENT) + 5000)
        length = source.randrange(2 * BLOCK_BYTES)
        assert cached.get_range(NAME, offset, length) == CONTENT[offset : offset + length]
    fetched = [at for at, _ in store.reads if at < len(CONTENT)]
    assert len(fetched) == len(set(fetched))


def test_another_export_reads_from_the_cache_alone(tmp_path: Path, store: CountingStore) -> None:
    CachedStore(store, BlockCache(tmp_path, GIB)).get_range(NAME, 0, len(CONTENT))
    assert store.reads == [(0, 4 * BLOCK_BYTES)]
    store.is_away = True
    again = CachedStore(store, BlockCache(tmp_path, GIB))
    assert again.get_range(NAME, 5, len(CONTENT)) == CONTENT[5:]
    with pytest.raises(Unavailable):
        again.get_range("items/item/catalog/0000000000000001", 0, 7)


def test_what_is_read_once_only_is_not_kept(tmp_path: Path, store: CountingStore) -> None:
    bulk = CachedStore(store, BlockCache(tmp_path, GIB), is_keeping=False)
    assert bulk.get_range(NAME, 100, 50) == CONTENT[100:150]
    assert store.reads == [(100, 50)]
    assert files(tmp_path) == []


def test_a_damaged_entry_is_fetched_again(tmp_path: Path, store: CountingStore) -> None:
    CachedStore(store, BlockCache(tmp_path, GIB)).get_range(NAME, 0, 10)
    for path in files(tmp_path):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    cached = CachedStore(store, BlockCache(tmp_path, GIB))
    assert cached.get_range(NAME, BLOCK_BYTES - 9, 9) == CONTENT[BLOCK_BYTES - 9 : BLOCK_BYTES]
    assert len(store.reads) == 2


def test_a_failed_fetch_leaves_nothing_behind(tmp_path: Path, store: CountingStore) -> None:
    cached = CachedStore(store, BlockCache(tmp_path, GIB))
    store.is_away = True
    with pytest.raises(Unavailable):
        cached.get_range(NAME, 0, 64 * KIB)
    store.is_away = False
    assert cached.get_range(NAME, 0, 64 * KIB) == CONTENT[: 64 * KIB]

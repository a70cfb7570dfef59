"""What every object store must do, run on every backend."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import obstore
import pytest
from obstore import exceptions
from obstore.store import MemoryStore as VendorMemoryStore
from tests.contracts.servers import azure_url, s3_url

from leeward.core.errors import (
    InvalidRequest,
    LeewardError,
    NotFound,
    ObjectExists,
    Unavailable,
)
from leeward.object_store.file import MARKER, TEMPORARY, FileStore, create_file_store
from leeward.object_store.memory import MemoryStore
from leeward.object_store.obstore_backend import ObstoreStore, open_cloud_store
from leeward.object_store.open import open_store
from leeward.object_store.store import Buffer, ObjectStore, create_same


def _memory(_: Path) -> ObjectStore:
    return MemoryStore()


def _file(directory: Path) -> ObjectStore:
    return create_file_store(directory / "store")


def _obstore_memory(_: Path) -> ObjectStore:
    vendor = VendorMemoryStore()
    return ObstoreStore("memory://vendor", vendor, vendor)


BACKENDS: dict[str, Callable[[Path], ObjectStore]] = {
    "memory": _memory,
    "file": _file,
    "obstore-memory": _obstore_memory,
    "s3": lambda _: open_store(s3_url()),
    "azure": lambda _: open_store(azure_url()),
}


@pytest.fixture(params=BACKENDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    return BACKENDS[request.param](tmp_path)


def test_created_object_reads_back_whole_and_in_ranges(store: ObjectStore) -> None:
    store.create("a/b/c", b"0123456789")
    assert store.get("a/b/c") == b"0123456789"
    assert store.size("a/b/c") == 10
    assert store.get_range("a/b/c", 2, 3) == b"234"
    assert store.get_range("a/b/c", 8, 100) == b"89"
    assert store.get_range("a/b/c", 10, 5) == b""
    assert store.get_range("a/b/c", 99, 5) == b""
    assert store.get_range("a/b/c", 3, 0) == b""


def test_create_takes_several_buffers_of_any_kind(store: ObjectStore) -> None:
    parts: list[Buffer] = [b"one", b"", bytearray(b"two"), memoryview(b"xthreex")[1:-1]]
    store.create("parts", parts)
    store.create("many", [bytes([index % 256]) for index in range(3000)])
    store.create("empty", b"")
    assert store.get("parts") == b"onetwothree"
    assert store.get("many") == bytes(index % 256 for index in range(3000))
    assert store.get("empty") == b""
    assert store.get_range("empty", 0, 10) == b""
    assert store.size("empty") == 0


def test_megabytes_survive(store: ObjectStore) -> None:
    data = os.urandom(1 << 20) * 6
    store.create("big", [data[: 1 << 20], data[1 << 20 :]])
    assert store.get("big") == data
    assert store.get_range("big", (1 << 20) - 3, 6) == data[(1 << 20) - 3 : (1 << 20) + 3]


def test_second_create_fails_whatever_the_content(store: ObjectStore) -> None:
    store.create("x", b"first")
    for content in (b"second", b"first"):
        with pytest.raises(ObjectExists):
            store.create("x", content)
    assert store.get("x") == b"first"


def test_create_same_accepts_only_the_same(store: ObjectStore) -> None:
    create_same(store, "x", [b"fi", b"rst"])
    create_same(store, "x", b"first")
    with pytest.raises(ObjectExists):
        create_same(store, "x", b"other")


def test_of_racing_creates_one_wins(store: ObjectStore) -> None:
    outcomes: list[str] = []
    barrier = threading.Barrier(8)

    def race(content: bytes) -> None:
        barrier.wait()
        try:
            store.create("race/x", content)
            outcomes.append(content.decode())
        except ObjectExists:
            outcomes.append("")

    threads = [threading.Thread(target=race, args=(b"%d" % index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [outcome for outcome in outcomes if outcome]
    assert len(outcomes) == 8
    assert len(winners) == 1
    assert store.get("race/x").decode() == winners[0]


def test_missing_object_is_not_found(store: ObjectStore) -> None:
    store.create("folder/x", b"")
    for name in ("nothing", "folder", "folder/x/y", "other/x"):
        with pytest.raises(NotFound):
            store.get(name)
        with pytest.raises(NotFound):
            store.get_range(name, 0, 1)
        with pytest.raises(NotFound):
            store.get_range(name, 0, 0)
        with pytest.raises(NotFound):
            store.size(name)


def test_list_is_sorted_complete_and_by_whole_parts(store: ObjectStore) -> None:
    names = ["a/1", "a/10", "a/2/x", "a/2.x", "ab/1", "b", "a-b/c"]
    for name in names:
        store.create(name, b"")
    assert store.list("") == sorted(names)
    assert store.list("a/") == ["a/1", "a/10", "a/2.x", "a/2/x"]
    assert store.list("a/2/") == ["a/2/x"]
    assert store.list("a/1/") == []
    assert store.list("nothing/") == []
    for prefix in ("", "a/", "nothing/"):
        assert store.sizes(prefix) == {name: store.size(name) for name in store.list(prefix)}


def test_delete_is_idempotent_and_frees_the_name(store: ObjectStore) -> None:
    store.create("a/x", b"1")
    store.delete("a/x")
    store.delete("a/x")
    store.delete("never/was")
    store.delete("a")
    assert store.list("") == []
    store.create("a/x", b"2")
    assert store.get("a/x") == b"2"


BAD_NAMES = [
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "a/../b",
    "./a",
    "a b",
    "a\n",
    "a~",
    "ä",
    "a\0",
    "a\\b",
    "x" * 513,
    "x" * 256,
    "%2e%2e/a",
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=range(len(BAD_NAMES)))
def test_bad_names_are_refused_everywhere(store: ObjectStore, name: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.create(name, b""),
        lambda: store.get(name),
        lambda: store.get_range(name, 0, 1),
        lambda: store.get_range(name, 0, 0),
        lambda: store.size(name),
        lambda: store.delete(name),
    ]
    for call in calls:
        with pytest.raises(InvalidRequest):
            call()


def test_bad_prefixes_and_ranges_are_refused(store: ObjectStore) -> None:
    for prefix in ("a", "/", "../", "a//", "a b/", "a\n/"):
        with pytest.raises(InvalidRequest):
            store.list(prefix)
    for offset, length in ((-1, 1), (0, -1)):
        with pytest.raises(InvalidRequest):
            store.get_range("x", offset, length)


def test_longest_names_work(store: ObjectStore) -> None:
    name = "/".join(["x" * 100] * 5)
    store.create(name, b"x")
    store.create("y" * 255, b"y")
    assert store.list("") == [name, "y" * 255]


# ── file ─────────────────────────────────────────────────────────────────────────────────────────


def test_url_opens_the_same_store(tmp_path: Path) -> None:
    store = create_file_store(tmp_path / "with space ä%")
    store.create("x", b"1")
    assert open_store(store.url).get("x") == b"1"
    open_store("memory://shared").create("x", b"2")
    assert open_store(open_store("memory://shared").url).get("x") == b"2"


@pytest.mark.parametrize(
    "url", ["", "file://", "file://host/x", "memory://", "ftp://x", "s3://", "az://account", "/x"]
)
def test_wrong_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest):
        open_store(url)


def test_unknown_option_of_a_cloud_url_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="secret"):
        open_cloud_store("s3://bucket/prefix?secret=1")


def test_store_without_root_or_marker_is_unavailable(tmp_path: Path) -> None:
    store = create_file_store(tmp_path / "store")
    store.create("a/x", b"")
    (tmp_path / "store").rename(tmp_path / "gone")
    _assert_unavailable(store)
    (tmp_path / "store").mkdir()
    _assert_unavailable(store)
    assert list((tmp_path / "store").iterdir()) == []
    (tmp_path / "store").rmdir()
    (tmp_path / "gone").rename(tmp_path / "store")
    assert store.get("a/x") == b""
    store.create("a/y", b"")
    _assert_unavailable(FileStore(tmp_path / "never"))


def _assert_unavailable(store: ObjectStore) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.create("a/y", b""),
        lambda: store.get("a/x"),
        lambda: store.get_range("a/x", 0, 1),
        lambda: store.size("a/x"),
        lambda: store.list(""),
        lambda: store.list("a/"),
        lambda: store.delete("a/x"),
    ]
    for call in calls:
        with pytest.raises(Unavailable, match="gone"):
            call()


def test_create_file_store_is_idempotent_but_takes_no_foreign_directory(tmp_path: Path) -> None:
    create_file_store(tmp_path / "a" / "b").create("x", b"1")
    assert create_file_store(tmp_path / "a" / "b").get("x") == b"1"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(InvalidRequest, match="file"):
        create_file_store(tmp_path / "other")
    with pytest.raises(InvalidRequest):
        create_file_store(tmp_path / "other" / "file")


@pytest.mark.parametrize("moment", ["is_dir", "exists"])
def test_two_hosts_may_make_the_same_file_store_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The other one makes it, and stores something, just after this one has found it lacking."""
    root, real = tmp_path / "store", getattr(Path, moment)
    late = [root] if moment == "is_dir" else [root / MARKER]

    def look(path: Path) -> bool:
        found = bool(real(path))
        if path in late:
            late.clear()
            create_file_store(root).create("x", b"1")
        return found

    monkeypatch.setattr(Path, moment, look)
    assert create_file_store(root).get("x") == b"1"
    assert not late


def test_one_name_inside_another_is_refused(tmp_path: Path) -> None:
    store = create_file_store(tmp_path / "store")
    store.create("a/x", b"1")
    for name in ("a", "a/x/y"):
        with pytest.raises((InvalidRequest, Unavailable)):
            store.create(name, b"")
    assert store.list("") == ["a/x"]


def test_a_nearly_full_file_system_takes_only_what_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records that drop points and free objects, pins, markers: without them it stays full."""
    store = create_file_store(tmp_path / "store")
    room = os.statvfs(tmp_path)
    for total, left, is_taken in (
        (1 << 40, 64 << 20, False),
        (1 << 40, (64 << 20) + 8192, True),
        (64 << 20, 1 << 20, False),  # of a small one little is set aside
        (64 << 20, (1 << 20) + 8192, True),
        (0, 0, True),  # it does not say
    ):
        sizes = {"f_frsize": 4096, "f_blocks": total // 4096, "f_bavail": left // 4096}
        found = SimpleNamespace(**{"f_bsize": room.f_bsize} | sizes)
        with monkeypatch.context() as patch:
            patch.setattr("leeward.object_store.file.os.statvfs", lambda _, found=found: found)
            store.create(f"small/{total}-{left}", [b"x" * 4000, b"y" * 96])
            if is_taken:
                store.create(f"large/{total}-{left}", bytes(8192))
                continue
            with pytest.raises(Unavailable, match="full"):
                store.create(f"large/{total}-{left}", bytes(8192))
    assert len(store.list("small/")) == 5
    assert len(store.list("large/")) == 3
    assert list((tmp_path / "store" / TEMPORARY).iterdir()) == []


@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EROFS", "EACCES", "EIO"])
def test_full_or_refusing_file_system_is_unavailable_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    store = create_file_store(tmp_path / "store")

    def refuse(*_: object) -> int:
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    with monkeypatch.context() as patch:
        patch.setattr("leeward.object_store.file.os.writev", refuse)
        with pytest.raises(Unavailable) as caught:
            store.create("a/x", b"data")
    assert str(tmp_path) in str(caught.value)
    assert "Errno" not in str(caught.value)
    assert list((tmp_path / "store" / TEMPORARY).iterdir()) == []
    assert store.list("") == []
    store.create("a/x", b"data")


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = create_file_store(tmp_path / "store")
    real = os.writev

    def write_little(descriptor: int, views: list[memoryview]) -> int:
        return real(descriptor, [views[0][:7]])

    monkeypatch.setattr("leeward.object_store.file.os.writev", write_little)
    data = os.urandom(100)
    store.create("x", [data[:10], data[10:11], data[11:]])
    assert store.get("x") == data


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Record what is fsynced and linked, by path relative to the store, in order."""
    recorded: list[tuple[str, str]] = []
    real_fsync, real_link = os.fsync, os.link

    def path_of(descriptor: int) -> str:
        return os.readlink(f"/proc/self/fd/{descriptor}").partition("/store")[2]

    def fsync(descriptor: int) -> None:
        recorded.append(("fsync", path_of(descriptor)))
        real_fsync(descriptor)

    def link(source: str, target: str) -> None:
        recorded.append(("link", target.partition("/store")[2]))
        real_link(source, target)

    monkeypatch.setattr("leeward.object_store.file.os.fsync", fsync)
    monkeypatch.setattr("leeward.object_store.file.os.link", link)
    return recorded


def test_create_is_durable_before_it_returns(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    store = create_file_store(tmp_path / "store")
    calls.clear()
    store.create("a/b/x", b"1")
    assert calls[0][0] == "fsync"
    assert calls[0][1].startswith(f"/{TEMPORARY}/")
    # The root's entry for a, a's entry for b, then the object's own entry in b.
    assert calls[1:] == [
        ("fsync", ""),
        ("fsync", "/a"),
        ("link", "/a/b/x"),
        ("fsync", "/a/b"),
    ]
    calls.clear()
    store.create("a/b/y", b"2")
    assert calls[1:] == [("link", "/a/b/y"), ("fsync", "/a/b")]


def test_directories_somebody_else_made_are_fsynced_too(
    tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    create_file_store(tmp_path / "store").create("a/x", b"1")
    calls.clear()
    FileStore(tmp_path / "store").create("a/y", b"1")
    assert calls[1:] == [("fsync", ""), ("link", "/a/y"), ("fsync", "/a")]


def test_lost_create_leaves_the_winner_durable(
    tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    store = create_file_store(tmp_path / "store")
    store.create("a/x", b"1")
    calls.clear()
    with pytest.raises(ObjectExists):
        store.create("a/x", b"2")
    assert calls[-1] == ("fsync", "/a")


def test_new_root_is_durable(tmp_path: Path, calls: list[tuple[str, str]]) -> None:
    create_file_store(tmp_path / "store" / "deep")
    paths = [path for _, path in calls]
    assert paths[0] == ""  # tmp_path, for its entry of "store"
    assert paths[1] == ""  # "store", for its entry of "deep"
    assert paths[2].startswith(f"/deep/{MARKER}")
    assert paths[3] == "/deep"


def test_leftovers_of_dead_writers_are_swept_and_never_listed(tmp_path: Path) -> None:
    store = create_file_store(tmp_path / "store")
    store.create("x", b"1")
    old, young = (tmp_path / "store" / TEMPORARY / name for name in ("1-old", "2-young"))
    old.touch()
    young.touch()
    os.utime(old, (time.time() - 3 * 86400,) * 2)
    again = FileStore(tmp_path / "store")
    again.create("y", b"2")
    assert not old.exists()
    assert young.exists()
    assert again.list("") == ["x", "y"]


# ── obstore ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("found", "expected"), [(b"mine", None), (b"other", ObjectExists), (None, Unavailable)]
)
def test_create_without_a_reply_is_settled_by_reading_back(
    monkeypatch: pytest.MonkeyPatch, found: bytes | None, expected: type[LeewardError] | None
) -> None:
    vendor = VendorMemoryStore()
    store = ObstoreStore("memory://vendor", vendor, vendor)
    real = obstore.put

    def lose(target: object, name: str, content: bytes, **_: object) -> None:
        if found is not None:
            real(vendor, name, found)
        raise exceptions.GenericError("connection reset by peer")

    monkeypatch.setattr(obstore, "put", lose)
    if expected is None:
        store.create("x", b"mine")
    else:
        with pytest.raises(expected):
            store.create("x", b"mine")


def test_every_vendor_exception_becomes_one_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    vendor = VendorMemoryStore()
    store = ObstoreStore("memory://vendor", vendor, vendor)
    kinds = [kind for kind in vars(exceptions).values() if isinstance(kind, type)]
    kinds += [ConnectionResetError, FileNotFoundError]
    for kind in kinds:

        def fail(*_: object, error: type[Exception] = kind, **__: object) -> None:
            raise error("first line\nsecond line")

        monkeypatch.setattr(obstore, "get", fail)
        with pytest.raises(LeewardError) as caught:
            store.get("x")
        assert "second line" not in str(caught.value)
        if not issubclass(kind, FileNotFoundError | exceptions.NotFoundError):
            assert not isinstance(caught.value, NotFound)


def test_unreachable_server_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    store = open_store("s3://bucket/prefix?endpoint=http://127.0.0.1:9&region=us-east-1")
    with pytest.raises(Unavailable):
        store.list("")
    with pytest.raises(Unavailable):
        store.create("x", b"1")

"""The tap and the watchdog as processes, spoken to directly: bad and hung peers, limits, files."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from tests.integration.tap_rig import DISKS, freeze, kill, running_tap, tap_config, wait_until

from leeward.core.errors import InvalidRequest, LeewardError, Unavailable
from leeward.core.units import MIB
from leeward.fabric.processes import read_pid_file
from leeward.mobility import link
from leeward.mobility.journal import KIND_WRITE, KIND_ZEROES
from leeward.mobility.tap_client import (
    Tap,
    TapConfig,
    drop_journal,
    ensure_watchdog,
    stop_watchdog,
    unreleased_journals,
)
from leeward.mobility.watchdog_client import locked
from leeward.nbd.client import NbdClient

pytestmark = pytest.mark.integration

GO_SYS = struct.pack(">IQIII3sH", 3, 0x49484156454F5054, 7, 9, 3, b"sys", 0)
HANDSHAKE_REPLY_BYTES = 18 + (20 + 12) + (20 + 14) + 20


def request(command: int, offset: int, length: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack(">IHHQQI", 0x25609513, flags, command, 7, offset, length) + payload


def closed(connection: socket.socket) -> bool:
    """Say whether the peer has ended the connection, whatever it sent before."""
    connection.settimeout(5)
    with suppress(ConnectionResetError):
        while connection.recv(4096):
            pass
    return True


def disk_of(tap: Tap, name: str) -> NbdClient:
    return NbdClient.connect(tap.socket, name, contexts=())


@contextmanager
def raw(tap: Tap, *, begin: bool = True) -> Iterator[socket.socket]:
    """Give a raw connection to disk sys, after its handshake unless told otherwise."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(str(tap.socket))
        if begin:
            connection.sendall(GO_SYS)
            got = b""
            while len(got) < HANDSHAKE_REPLY_BYTES:
                got += connection.recv(HANDSHAKE_REPLY_BYTES - len(got))
        yield connection


def reply(connection: socket.socket) -> tuple[int, int]:
    """Return error and handle of the next reply."""
    magic, error, handle = struct.unpack(">IIQ", connection.recv(16, socket.MSG_WAITALL))
    assert magic == 0x67446698
    return error, handle


def test_requests_of_every_kind() -> None:
    with running_tap() as tap, raw(tap) as connection:
        for message, error in (
            (request(1, 512, 3, b"abc"), 0),
            (request(1, 4096, 2, b"de", flags=1), 0),
            (request(0, 0, 512), 22),
            (request(3, 0, 0), 0),
            (request(4, 0, 4096), 0),
            (request(6, 8192, 65536), 0),
            (request(1, 0, 0), 0),
            (request(7, 0, 512), 22),
        ):
            connection.sendall(message)
            assert reply(connection) == (error, 7)
        records = tap.journal.records(0, tap.journal.position())
        assert records["kind"].tolist() == [KIND_WRITE, KIND_WRITE, KIND_ZEROES]
        assert records["offset"].tolist() == [512, 4096, 8192]
        assert bytes(tap.journal.payload(records[1])) == b"de"
        connection.sendall(request(2, 0, 0))
        assert closed(connection)
        assert tap.status().breaks == 0


def test_writes_of_any_size_arrive_whole_across_buffers() -> None:
    chance = random.Random(3)
    with running_tap(buffer_bytes=MIB, buffer_count=64) as tap:
        image = bytearray(16 * MIB)
        with disk_of(tap, "sys") as disk:
            for _ in range(300):
                length = chance.choice([1, 511, 4096, 100_001, 1 << 19])
                offset = chance.randrange(len(image) - length)
                data = chance.randbytes(length)
                disk.write(offset, data)
                image[offset : offset + length] = data
        copy = bytearray(16 * MIB)
        for record in tap.journal.records(0, tap.journal.position()):
            payload = tap.journal.payload(record)
            copy[record["offset"] : record["offset"] + len(payload)] = payload
        assert copy == image
        assert len(set(tap.journal.records(0, 300)["buffer"].tolist())) > 10


@pytest.mark.parametrize(
    "message",
    [
        b"\0" * 28,
        request(1, 16 * MIB - 1, 2, b"xx"),
        request(1, 1 << 63, 2, b"xx"),
        request(6, 16 * MIB, 4096),
        request(1, 0, 0xFFFFFFFF),
        request(1, 0, 9 * MIB, bytes(4096)),
    ],
    ids=["magic", "past-end", "far", "zeroes-past-end", "huge", "larger-than-buffer"],
)
def test_malformed_request_ends_all_connections_of_the_vm(message: bytes) -> None:
    disks = (("sys", 16 * MIB), ("data", 16 * MIB))
    with running_tap(disks=disks) as tap, disk_of(tap, "data") as other:
        other.write(0, b"x")
        with raw(tap) as connection:
            connection.sendall(message)
            assert closed(connection)
        with pytest.raises(LeewardError):
            other.write(0, b"y")
        assert tap.status().breaks == 1
        with disk_of(tap, "data") as again:
            again.write(0, b"z")
        assert tap.journal.position() == 2


def test_peer_that_does_not_read_does_not_hold_the_other_disk() -> None:
    with running_tap() as tap, raw(tap) as deaf, disk_of(tap, "data") as other:
        deaf.settimeout(0)
        with suppress(BlockingIOError):
            while True:
                deaf.send(request(3, 0, 0))
        for number in range(20):
            other.write(number, b"x")
        assert tap.status().connected == {"sys", "data"}


def test_unfinished_handshakes_hold_nobody_and_end() -> None:
    with running_tap() as tap, raw(tap, begin=False) as first, raw(tap, begin=False) as second:
        second.sendall(GO_SYS[:10])
        with disk_of(tap, "data") as other:
            other.write(0, b"x")
        first.settimeout(10)
        assert first.recv(18).startswith(b"NBDMAGIC")
        assert first.recv(1) == b""  # it took too long


def test_stopped_tap_has_its_handshakes_cut_and_newcomers_refused() -> None:
    with running_tap() as tap, raw(tap, begin=False) as hung:
        assert hung.recv(18).startswith(b"NBDMAGIC")
        freeze(tap.pid)
        hung.sendall(GO_SYS)
        started = time.monotonic()
        assert closed(hung)
        print(f"hung handshake cut after {time.monotonic() - started:.3f} s")
        with raw(tap, begin=False) as late:
            assert closed(late)
        os.kill(tap.pid, signal.SIGCONT)
        wait_until(lambda: _can_write(tap), "tap serves again")


def test_writes_nobody_waits_for_any_more_do_not_follow_newer_ones() -> None:
    with running_tap() as tap, raw(tap) as old:
        freeze(tap.pid)
        old.sendall(request(1, 0, 3, b"old"))
        assert closed(old)
        os.kill(tap.pid, signal.SIGCONT)
        wait_until(lambda: _can_write(tap), "tap serves again")
        records = tap.journal.records(0, tap.journal.position())
        assert [bytes(tap.journal.payload(record)) for record in records] == [b"x"]


def _can_write(tap: Tap) -> bool:
    try:
        with disk_of(tap, "sys") as disk:
            disk.write(0, b"x")
    except LeewardError:
        return False
    return True


def test_stopped_watchdog_blames_no_tap_and_is_replaced() -> None:
    with running_tap() as tap, disk_of(tap, "sys") as disk:
        process = read_pid_file(tap.config.run_dir / "tap" / "watchdog.pid")
        assert process is not None
        freeze(process.pid)
        time.sleep(1.5)
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.3)
        disk.write(0, b"x")
        assert tap.status().breaks == 0
        freeze(process.pid)
        successor = ensure_watchdog(tap.config.run_dir, tap.config.data_dir)
        assert successor.pid != process.pid
        wait_until(lambda: tap.status().guarded, "tap is guarded again")
        disk.write(0, b"x")
        assert tap.status().breaks == 0
        assert ensure_watchdog(tap.config.run_dir, tap.config.data_dir) == successor


def test_logs_on_a_full_disk_keep_nobody_from_freeing_the_guest() -> None:
    with tap_config() as config:
        logs = config.data_dir / "logs"
        logs.mkdir(parents=True)
        names = ("watchdog.log", f"tap-{config.item_id}.log")
        for name in names:
            (logs / name).symlink_to("/dev/full")
        try:
            tap = Tap.start_or_adopt(config)
        finally:
            for name in names:
                (logs / name).unlink()  # when a test fails they are read
        with raw(tap) as connection:
            connection.sendall(request(1, 0, 512, b"x" * 512))
            assert reply(connection) == (0, 7)
            freeze(tap.pid)
            connection.sendall(request(1, 0, 512, b"y" * 512))
            assert closed(connection)
        os.kill(tap.pid, signal.SIGCONT)
        assert tap.is_alive()
        tap.close()


def test_tap_is_adopted_or_replaced() -> None:
    with tap_config() as config:
        tap = Tap.start_or_adopt(config)
        same = Tap.start_or_adopt(config)
        assert (same.pid, same.instance) == (tap.pid, 1)
        grown = replace(config, disks=(("sys", 32 * MIB), DISKS[1]))
        other = Tap.start_or_adopt(grown)
        assert other.instance == 2
        assert not tap.is_alive()
        freeze(other.pid)
        third = Tap.start_or_adopt(grown)  # a tap that does not answer is of no use
        assert third.instance == 3
        assert not other.is_alive()
        for handle in (tap, same, other, third):
            handle.close()
            handle.close()


def test_tap_and_watchdog_whose_starter_was_killed_at_once_are_found() -> None:
    """Killed between starting them and noting their pids, an agent must not get a second pair."""
    with running_tap() as tap, disk_of(tap, "sys") as disk:
        config, watchdog = tap.config, tap.config.run_dir / "tap" / "watchdog.pid"
        before = read_pid_file(watchdog)
        for pid_file in (watchdog, config.tap_dir / "tap.pid"):
            pid_file.unlink()
        again = Tap.start_or_adopt(config)
        assert (again.pid, again.instance) == (tap.pid, tap.instance)
        assert ensure_watchdog(config.run_dir, config.data_dir) == before
        disk.write(0, b"x")
        assert again.status().breaks == 0
        again.close()
        assert unreleased_journals(config) == []


def test_who_waits_for_a_lock_whose_file_is_deleted_shares_it_with_nobody(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    inside: list[str] = []

    def enter() -> None:
        with locked(path):
            inside.append("in")
            assert path.exists()
            inside.append("out")

    with locked(path):
        threads = [threading.Thread(target=enter) for _ in range(4)]
        for thread in threads:
            thread.start()
        path.unlink()
        with locked(path):  # another file: who waited for the first must wait for this one
            assert len(inside) % 2 == 0
    for thread in threads:
        thread.join(timeout=60)
    assert inside == ["in", "out"] * 4


def test_stop_leaves_only_the_journal() -> None:
    with tap_config() as config:
        tap = Tap.start_or_adopt(config)
        with disk_of(tap, "sys") as disk:
            disk.write(0, b"x")
        tap.stop()
        tap.stop()
        assert not tap.is_alive()
        assert not config.tap_dir.exists()
        with pytest.raises(Unavailable):
            tap.mark()
        (journal,) = unreleased_journals(config)
        assert journal.position() == 1
        drop_journal(journal)
        drop_journal(journal)
        assert list(config.journals_dir.iterdir()) == []
        again = Tap.start_or_adopt(config)
        assert again.instance == 2  # a number is never used twice
        again.close()


def test_tap_that_nobody_can_find_again_ends() -> None:
    with tap_config() as config:
        tap = Tap.start_or_adopt(config)
        with disk_of(tap, "sys") as disk:
            shutil.rmtree(config.tap_dir)
            time.sleep(1.5)
            disk.write(0, b"x")  # but not while a guest uses it
        wait_until(lambda: not tap.is_alive(), "the tap ends")
        tap.close()


def test_journal_cut_short_by_a_crash_of_the_machine_is_dropped() -> None:
    with tap_config() as config:
        kill(Tap.start_or_adopt(config))
        (config.journals_dir / "00000001" / "index").write_bytes(b"")
        assert unreleased_journals(config) == []
        assert not (config.journals_dir / "00000001").exists()


def test_agent_gets_sentences_for_what_cannot_be() -> None:
    with tap_config() as config:
        with pytest.raises(InvalidRequest, match="different disks"):
            Tap.start_or_adopt(replace(config, disks=(("sys", 1), ("sys", 1))))
        with pytest.raises(InvalidRequest, match="two buffers per disk"):
            Tap.start_or_adopt(replace(config, buffer_count=3))
        with pytest.raises(InvalidRequest, match="too long"):
            Tap.start_or_adopt(replace(config, run_dir=config.run_dir / ("x" * 100)))
        shutil.rmtree(config.run_dir, ignore_errors=True)


def test_strangers_on_the_control_sockets_are_harmless() -> None:
    with running_tap() as tap:
        for path in (tap.config.tap_dir / "control.sock", tap.config.run_dir / "tap/watchdog.sock"):
            for data in (b"", b"[", b"[]", b"{}", b'{"op": "mark", "x": 1}', bytes(20_000)):
                with link.connect(path, timeout_seconds=2) as stranger:
                    stranger.send(data)
        wait_until(lambda: _can_write(tap), "tap serves")
        assert tap.status().guarded


def test_tap_and_watchdog_are_small() -> None:
    with running_tap() as tap, disk_of(tap, "sys") as disk:
        for _ in range(20):
            disk.write(0, bytes(MIB))
        watchdog = read_pid_file(tap.config.run_dir / "tap" / "watchdog.pid")
        assert watchdog is not None
        for pid in (tap.pid, watchdog.pid):
            assert _pss_mib(pid) <= 25
        loaded = Path(f"/proc/{tap.pid}/maps").read_text()
        assert not re.search(r"numpy|msgspec|structlog", loaded)


def _pss_mib(pid: int) -> float:
    kib, counted = 0, True
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            counted = "/dev/shm/" not in line
        elif counted and line.startswith("Pss:"):
            kib += int(line.split()[1])
    return kib / 1024


def test_stop_watchdog_is_idempotent() -> None:
    with tap_config() as config:
        _start_and_stop_watchdog(config)
        _start_and_stop_watchdog(config)


def _start_and_stop_watchdog(config: TapConfig) -> None:
    ensure_watchdog(config.run_dir, config.data_dir)
    stop_watchdog(config.run_dir)
    stop_watchdog(config.run_dir)
    assert read_pid_file(config.run_dir / "tap" / "watchdog.pid") is None

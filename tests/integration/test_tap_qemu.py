"""The tap behind a real mirror job: order, content, and that no fault of ours reaches the guest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from tests.integration.tap_rig import (
    STALL_GUARD_SECONDS,
    Replay,
    StorageDaemon,
    Writers,
    assert_replay_equals,
    freeze,
    kill,
    running_tap,
    storage_daemon,
    tap_config,
    wait_until,
)

from leeward.core.units import MIB
from leeward.fabric.processes import read_pid_file
from leeward.mobility.tap_client import Tap, TapConfig, ensure_watchdog, unreleased_journals

pytestmark = pytest.mark.integration


def watchdog_pid(config: TapConfig) -> int:
    process = read_pid_file(config.run_dir / "tap" / "watchdog.pid")
    assert process is not None
    return process.pid


def stop_and_check(tap: Tap, daemon: StorageDaemon, writers: Writers, what: str) -> None:
    """SIGSTOP the tap under load: the guest goes on. Let it continue: the journal catches up."""
    freeze(tap.pid)
    time.sleep(1.0)
    writers.progress()
    os.kill(tap.pid, signal.SIGCONT)
    print(f"{what}: longest write {writers.max_stall_seconds:.3f} s")
    assert writers.max_stall_seconds < STALL_GUARD_SECONDS
    daemon.converge()


def test_journal_has_order_of_all_disks_and_their_content() -> None:
    with running_tap() as tap, storage_daemon() as daemon:
        daemon.attach(tap)
        marks = []
        with Writers(daemon) as writers:
            for _ in range(10):
                time.sleep(0.05)
                before = list(writers.acknowledged)
                marks.append((before, tap.mark(), list(writers.acknowledged)))
        assert tap.status().connected == {"sys", "data"}
        replay, start = Replay(), 0
        for before, mark, after in marks:
            replay.apply(tap.journal, start, mark.position)
            start = mark.position
            for writer, (least, most) in enumerate(zip(before, after, strict=True)):
                assert least <= replay.newest.get(writer, 0) <= most + 1
        replay.apply(tap.journal, start, tap.journal.position())
        assert replay.out_of_order == []
        assert_replay_equals(daemon, replay)
        daemon.detach()
        assert tap.status().breaks == 0  # a detach is polite


def test_stopped_tap_does_not_hold_the_guest() -> None:
    with running_tap() as tap, storage_daemon() as daemon:
        daemon.attach(tap)
        with Writers(daemon) as writers:
            stop_and_check(tap, daemon, writers, "tap stopped")
        replay = Replay()
        replay.apply_all(tap.journal)
        assert_replay_equals(daemon, replay)
        assert tap.status().breaks == 1


def test_stopped_tap_does_not_hold_writes_larger_than_its_socket() -> None:
    """QEMU is then not waiting for a reply but for room to send, and hears of no hang-up."""
    with running_tap() as tap, storage_daemon() as daemon:
        daemon.attach(tap)
        with Writers(daemon, noise_lengths=(MIB,)) as writers:
            stop_and_check(tap, daemon, writers, "tap stopped under large writes")
        replay = Replay()
        replay.apply_all(tap.journal)
        assert_replay_equals(daemon, replay)


def test_stopped_tap_does_not_hold_the_guest_while_no_agent_lives() -> None:
    agent = (
        "import sys; from pathlib import Path\n"
        "from leeward.mobility.tap_client import Tap, TapConfig\n"
        "run, shm, data = map(Path, sys.argv[1:])\n"
        "disks = (('sys', 16 << 20), ('data', 16 << 20))\n"
        "print(Tap.start_or_adopt(TapConfig('item-1', disks, run, shm, data)).pid)\n"
    )
    with tap_config() as config, storage_daemon() as daemon:
        paths = [str(p) for p in (config.run_dir, config.shm_dir, config.data_dir)]
        done = subprocess.run(
            [sys.executable, "-c", agent, *paths], capture_output=True, text=True, check=True
        )
        pid = int(done.stdout)
        for disk in daemon.disks:
            daemon.attach_path(disk, config.tap_dir / "nbd.sock")
        with Writers(daemon) as writers:
            freeze(pid)
            time.sleep(1.0)
            writers.progress()
            os.kill(pid, signal.SIGCONT)
            print(f"tap stopped, no agent: longest write {writers.max_stall_seconds:.3f} s")
            assert writers.max_stall_seconds < STALL_GUARD_SECONDS
            tap = Tap.start_or_adopt(config)
            assert tap.pid == pid
            daemon.converge()
        replay = Replay()
        replay.apply_all(tap.journal)
        assert_replay_equals(daemon, replay)
        tap.close()


def test_killed_tap_leaves_a_prefix_and_its_successor_the_rest() -> None:
    with tap_config() as config, storage_daemon() as daemon:
        tap = Tap.start_or_adopt(config)
        daemon.attach(tap)
        with Writers(daemon) as writers:
            for _ in range(3):
                writers.progress()
                kill(tap)
                writers.progress()
                tap = Tap.start_or_adopt(config)
                daemon.converge()
                writers.progress()
            print(f"tap killed 3 times: longest write {writers.max_stall_seconds:.3f} s")
            assert writers.max_stall_seconds < STALL_GUARD_SECONDS
        assert tap.instance == 4
        old = unreleased_journals(config)
        assert [journal.instance for journal in old] == [1, 2, 3]
        replay = Replay()
        replay.apply_all(*old, tap.journal)
        assert_replay_equals(daemon, replay)
        for journal in (*old, tap.journal):
            journal.close()
        tap.close()


def test_successor_watchdog_guards_the_same_connections() -> None:
    with running_tap() as tap, storage_daemon() as daemon:
        daemon.attach(tap)
        with Writers(daemon) as writers:
            os.kill(watchdog_pid(tap.config), signal.SIGKILL)
            writers.progress()
            ensure_watchdog(tap.config.run_dir, tap.config.data_dir)
            wait_until(lambda: tap.status().guarded, "tap is guarded again")
            assert tap.status().breaks == 0
            stop_and_check(tap, daemon, writers, "tap stopped under a new watchdog")
        replay = Replay()
        replay.apply_all(tap.journal)
        assert_replay_equals(daemon, replay)


def test_tap_without_watchdog_lets_the_guest_go() -> None:
    with running_tap() as tap, storage_daemon() as daemon:
        daemon.attach(tap)
        with Writers(daemon, count=2, pause_seconds=0.01) as writers:
            os.kill(watchdog_pid(tap.config), signal.SIGKILL)
            wait_until(lambda: tap.status().last_break == "no watchdog", "tap lets go")
            assert not tap.status().connected
            writers.progress()
            ensure_watchdog(tap.config.run_dir, tap.config.data_dir)
            wait_until(lambda: tap.status().guarded, "tap is guarded again")
            daemon.converge()


def test_full_journal_costs_replication_not_the_guest() -> None:
    with running_tap(buffer_bytes=MIB, buffer_count=4) as tap, storage_daemon() as daemon:
        daemon.attach(tap)
        replay, consumed, stop = Replay(), [0], threading.Event()

        def consume() -> None:
            while True:
                last = stop.is_set()
                position = tap.journal.position()
                replay.apply(tap.journal, consumed[0], position)
                tap.release(position)
                consumed[0] = position
                if last:
                    return
                time.sleep(0.01)

        with Writers(daemon, count=3, pause_seconds=0.005) as writers:
            wait_until(lambda: tap.status().detached_reason == "no free buffer", "buffers run out")
            assert not tap.status().connected
            writers.progress()
            consumer = threading.Thread(target=consume)
            consumer.start()
            try:
                wait_until(lambda: tap.status().detached_reason == "", "tap accepts again")
                daemon.converge()
            finally:
                writers.stop()
                daemon.converge()
                stop.set()
                consumer.join()
        assert tap.journal.position() > tap.journal.buffer_count * 8
        assert_replay_equals(daemon, replay)


def test_storage_daemon_survives_attach_kill_resume_detach_under_slow_writes() -> None:
    """The two crashes of stock QEMU stay away: `stop` on target errors, soft cancel."""
    disks = (("slow", 64 * MIB),)
    with tap_config(disks=disks) as config, storage_daemon(disks, latency_ms=50) as daemon:
        tap = Tap.start_or_adopt(config)
        with Writers(daemon, count=12) as writers:
            for cycle in range(6):
                daemon.attach(tap)
                writers.progress()
                if cycle % 2:
                    kill(tap)
                    tap = Tap.start_or_adopt(config)
                    daemon.converge()
                daemon.detach()
                assert daemon.process.poll() is None
                writers.progress()
        tap.close()

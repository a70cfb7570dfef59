"""A storage daemon under load, replicated: every consistent cut is a moment of its history."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from tests.integration.replication_rig import FaultyStore, Rig, Target, replication_rig
from tests.integration.storage_daemon import LoggedWriters, PrefixChecker, wait_until

from leeward.core.errors import Conflict, HypervisorRefused, NotFound
from leeward.core.units import BLOCK, MIB
from leeward.fabric.processes import identify
from leeward.mobility.replicator import Replicator
from leeward.model.recovery import Consistency, ReplicationState
from leeward.nbd.client import NbdClient
from leeward.object_store.file import create_file_store
from leeward.qemu.bitmaps import list_generations, merge_generations, sweep_name
from leeward.qemu.nbd_exports import ensure_export, remove_export
from leeward.qemu.nodes import block_nodes
from leeward.qemu.session import QmpSession
from leeward.replica.manifest import AppliedMarker, applied_name, encode_applied

STALL_GUARD_SECONDS = 10.0
pytestmark = pytest.mark.integration


@pytest.fixture
def rig() -> Iterator[Rig]:
    with replication_rig() as rig:
        yield rig


def prepared(rig: Rig, *, count: int = 4) -> tuple[LoggedWriters, PrefixChecker]:
    """Fill part of both disks and return writers not yet started, and their checker."""
    rig.daemon.fill("sys", 8 * MIB, 8 * MIB)
    rig.daemon.fill("data", 10 * MIB, 4 * MIB, seed=2)
    writers = LoggedWriters(rig.daemon, count=count, area_offset=2 * MIB)
    rig.writers.append(writers)
    return writers, PrefixChecker(writers, rig.daemon.content())


def check_points(target: Target, checker: PrefixChecker) -> int:
    """Apply every cut there is, check each consistent one, return how many there were."""
    points = 0
    while (cut := target.apply_next()) is not None:
        if cut.consistency is Consistency.NONE:
            continue
        points += 1
        problems = checker.check(target.images)
        assert problems == [], f"cut {cut.sequence}: {problems}"
    return points


def assert_converges(rig: Rig, writers: LoggedWriters, target: Target) -> None:
    """With the writers at rest, the next recovery point holds exactly what the disks hold."""
    writers.stop()
    sequence = rig.wait_point()
    while target.sequence < sequence:
        assert target.apply_next() is not None
    assert target.images == rig.daemon.content()
    assert writers.errors == []


def test_invariant_2_every_consistent_cut_is_a_prefix_of_what_was_written(rig: Rig) -> None:
    writers, checker = prepared(rig)
    writers.start()
    rig.start()
    rig.wait_state(ReplicationState.STREAMING)
    for _ in range(5):
        rig.wait_point()
    target = rig.target()
    assert check_points(target, checker) >= 5
    assert_converges(rig, writers, target)


def test_invariant_3_a_tap_killed_in_the_initial_sweep_and_in_steady_state_loses_nothing(
    rig: Rig,
) -> None:
    writers, checker = prepared(rig)
    writers.start()
    rig.start()
    rig.wait_state(ReplicationState.RESYNCING)
    rig.signal_tap(signal.SIGKILL)
    rig.wait_state(ReplicationState.STREAMING)
    rig.wait_point()
    rig.signal_tap(signal.SIGKILL)
    rig.wait_point()
    target = rig.target()
    assert check_points(target, checker) >= 2
    assert_converges(rig, writers, target)
    assert writers.longest_seconds < STALL_GUARD_SECONDS


def test_invariant_2_holds_with_many_writes_in_flight_on_slow_disks() -> None:
    with replication_rig(iops=600) as rig:
        writers, checker = prepared(rig, count=12)
        writers.start()
        rig.start()
        for _ in range(3):
            rig.wait_point()
        rig.signal_tap(signal.SIGKILL)
        rig.wait_point()
        target = rig.target()
        assert check_points(target, checker) >= 3
        assert_converges(rig, writers, target)


def dirty_ranges(rig: Rig) -> dict[str, bytearray]:
    """Return per disk one byte per 4 KiB block: whether any living generation has it."""
    session = rig.daemon.session()

    def is_merged() -> bool:
        nodes = [block_nodes(session)[f"disk-{disk}"] for disk in rig.spec.disks]
        try:
            merge_generations(session, nodes, epoch=1, numbers=generation_numbers(rig))
        except HypervisorRefused:  # one was retired in between
            return False
        return True

    wait_until(is_merged, "the generations merged")
    ranges = {}
    context = f"qemu:dirty-bitmap:{sweep_name(1)}"
    for disk, size in rig.daemon.disks.items():
        ensure_export(session, "check", node=f"disk-{disk}", name="check", bitmap=sweep_name(1))
        with NbdClient.connect(rig.daemon.nbd_socket, "check", [context]) as client:
            ranges[disk] = bytearray().join(
                bytes([flags & 1]) * (length // BLOCK)
                for length, flags in client.block_status(0, size)
            )
        remove_export(session, "check")
    return ranges


def test_invariant_3_the_bitmaps_know_whatever_the_target_has_not_applied(rig: Rig) -> None:
    writers, checker = prepared(rig)
    writers.start()
    rig.start()
    target, lacking, retired = rig.target(), 0, 0
    for _ in range(8):
        sequence = rig.wait_point()
        while target.sequence < sequence:
            cut = target.apply_next()
            assert cut is not None
        assert checker.check(target.images) == []
        target.acknowledge()
        time.sleep(0.4)  # the time in which a generation may be retired
        acknowledged = time.monotonic()
        dirty = dirty_ranges(rig)
        for log, reached in zip(writers.logs, checker.reached, strict=True):
            for write in log[reached:]:
                if 0 < write.acknowledged < acknowledged:
                    first, last = (
                        write.offset // BLOCK,
                        (write.offset + len(write.data) - 1) // BLOCK,
                    )
                    assert all(dirty[write.disk][first : last + 1]), "a write no bitmap knows"
                    lacking += 1
        retired = max(retired, min(generation_numbers(rig)))
    assert lacking > 50, "the target was behind"
    assert retired > 3, "generations were retired"


def generation_numbers(rig: Rig) -> list[int]:
    nodes = block_nodes(rig.daemon.session())
    return [
        one.number for one in list_generations([nodes[f"disk-{disk}"] for disk in rig.spec.disks])
    ]


def test_invariant_3_a_lost_journal_is_made_up_for_by_the_bitmaps(rig: Rig) -> None:
    writers, checker = prepared(rig)
    rig.tuning = replace(rig.tuning, buffer_count=64)
    writers.start()
    rig.start()
    rig.wait_point()
    rig.store.refusal = "out of order"
    before = max(generation_numbers(rig))
    wait_until(lambda: max(generation_numbers(rig)) > before, "a rotation meanwhile")
    written = writers.write_count
    wait_until(lambda: writers.write_count > written + 300, "the guest goes on writing")
    rig.drop_agent()
    rig.signal_tap(signal.SIGKILL)
    shutil.rmtree(rig.places.shm_dir / "item-1")
    rig.store.refusal = ""
    rig.start()
    rig.wait_point()
    target = rig.target()
    assert check_points(target, checker) >= 2
    assert_converges(rig, writers, target)


def test_invariant_1_a_stopped_tap_is_replaced_and_the_guest_goes_on(rig: Rig) -> None:
    writers, checker = prepared(rig)
    writers.start()
    rig.start()
    rig.wait_state(ReplicationState.STREAMING)
    stopped = rig.signal_tap(signal.SIGSTOP)
    written = writers.write_count
    wait_until(lambda: writers.write_count > written + 200, "the guest goes on writing")
    wait_until(lambda: rig.tap_pid not in (0, stopped), "another tap")
    rig.wait_point()
    target = rig.target()
    assert check_points(target, checker) >= 1
    assert_converges(rig, writers, target)
    assert writers.longest_seconds < STALL_GUARD_SECONDS


def test_an_agent_that_restarts_goes_on_with_the_same_tap_job_and_chain(rig: Rig) -> None:
    writers, checker = prepared(rig)
    writers.start()
    rig.start()
    rig.wait_state(ReplicationState.STREAMING)
    rig.wait_point()
    before, tap = rig.last_sequence(), rig.tap_pid
    rig.drop_agent()
    written = writers.write_count
    wait_until(lambda: writers.write_count > written + 200, "the guest goes on writing")
    replicator = rig.start()
    rig.wait_state(ReplicationState.STREAMING)
    rig.wait_point()
    assert rig.tap_pid == tap
    assert replicator.status().sweep_bytes_total == 0, "nothing had to be swept again"
    wait_until(lambda: replicator.status().initial_done, "still known to be done")
    assert rig.last_sequence() > before
    target = rig.target()
    assert check_points(target, checker) >= 2
    assert_converges(rig, writers, target)


def test_an_agent_that_restarts_in_the_initial_sweep_goes_on_with_it(rig: Rig) -> None:
    writers, checker = prepared(rig)
    rig.tuning = replace(rig.tuning, sweep_cut_bytes=MIB)
    writers.start()
    rig.start()
    wait_until(lambda: rig.last_sequence() >= 3, "part of the sweep is in the cache")
    rig.drop_agent()
    rig.signal_tap(signal.SIGKILL)
    replicator = rig.start()
    wait_until(lambda: replicator.status().sweep_bytes_total > 0, "the sweep goes on")
    assert replicator.status().sweep_bytes_done > 0
    rig.wait_state(ReplicationState.STREAMING)
    rig.wait_point()
    target = rig.target()
    assert check_points(target, checker) >= 1
    assert_converges(rig, writers, target)


def test_the_first_point_follows_the_sweep_however_rare_cuts_are(rig: Rig) -> None:
    _, checker = prepared(rig)
    rig.spec = replace(rig.spec, cut_interval_seconds=3600.0)
    rig.start()
    target = rig.target()
    wait_until(lambda: check_points(target, checker) > 0, "the sweep's point", seconds=60.0)
    assert target.images == rig.daemon.content()


def test_a_resync_whose_agent_was_killed_is_in_nobody_s_way(rig: Rig) -> None:
    writers, checker = prepared(rig)
    writers.start()
    rig.start()
    rig.wait_state(ReplicationState.STREAMING)
    rig.wait_point()
    rig.drop_agent()
    session = rig.daemon.session()
    nodes = [block_nodes(session)[f"disk-{disk}"] for disk in rig.spec.disks]
    numbers = [one.number for one in list_generations(nodes)]
    merge_generations(session, nodes, epoch=1, numbers=numbers)
    for disk in rig.spec.disks:
        name = f"sweep-{disk}"
        ensure_export(session, name, node=f"disk-{disk}", name=name, bitmap=sweep_name(1))
    rig.daemon.hang_up()
    rig.lose_tap()
    rig.start()
    rig.wait_state(ReplicationState.STREAMING)
    rig.wait_point()
    target = rig.target()
    assert check_points(target, checker) >= 2
    assert_converges(rig, writers, target)


def test_a_cache_that_refuses_and_comes_back_heals_by_itself(rig: Rig) -> None:
    writers, checker = prepared(rig)
    writers.start()
    replicator = rig.start()
    rig.wait_state(ReplicationState.STREAMING)
    rig.wait_point()
    rig.store.refusal = "No space left on device"
    rig.wait_state(ReplicationState.TRACKING)
    assert "No space left" in replicator.status().problem
    written = writers.write_count
    wait_until(lambda: writers.write_count > written + 200, "the guest goes on writing")
    rig.store.refusal = ""
    rig.wait_state(ReplicationState.STREAMING)
    rig.wait_point()
    assert replicator.status().problem == ""
    target = rig.target()
    assert check_points(target, checker) >= 2
    assert_converges(rig, writers, target)


def test_a_mirror_job_that_somebody_cancelled_is_made_up_for_by_the_bitmaps(rig: Rig) -> None:
    writers, checker = prepared(rig)
    writers.start()
    replicator = rig.start()
    rig.wait_state(ReplicationState.STREAMING)
    rig.wait_point()
    rig.daemon.session().execute("block-job-cancel", {"device": "mirror-data"})
    wait_until(lambda: replicator.status().state is not ReplicationState.STREAMING, "noticed")
    rig.wait_point()
    assert sum(cut.bytes_shipped for cut in rig.cuts(1) if cut.consistency is Consistency.NONE) > 0
    target = rig.target()
    assert check_points(target, checker) >= 2
    assert_converges(rig, writers, target)


def test_a_vm_that_was_restarted_is_swept_again(rig: Rig) -> None:
    writers, _ = prepared(rig)
    writers.start()
    replicator = rig.start()
    rig.wait_state(ReplicationState.STREAMING)
    rig.wait_point()
    writers.stop()
    rig.daemon.kill()
    rig.wait_state(ReplicationState.STOPPED)
    assert "does not run" in replicator.status().problem
    rig.daemon.start()
    rig.daemon.fill("sys", 30 * MIB, MIB, seed=7)
    rig.wait_state(ReplicationState.STREAMING)
    sequence = rig.wait_point()
    target = rig.target()
    while target.sequence < sequence:
        assert target.apply_next() is not None
    assert target.images == rig.daemon.content()


def test_stopping_with_detach_leaves_nothing_behind(rig: Rig) -> None:
    writers, _ = prepared(rig)
    writers.start()
    replicator = rig.start()
    rig.wait_state(ReplicationState.STREAMING)
    replicator.stop(detach=True)
    rig.replicator = None
    session = rig.daemon.session()
    nodes = session.execute("query-named-block-nodes", {"flat": True})
    assert not [node["node-name"] for node in nodes if node["node-name"].startswith("tap")]
    assert not [node for node in nodes if node.get("dirty-bitmaps")]
    assert session.execute("query-block-jobs") == []
    assert files_of(rig, "item-1") == []
    written = writers.write_count
    wait_until(lambda: writers.write_count > written + 100, "the guest goes on writing")
    writers.stop()
    assert writers.errors == []


def test_stopping_when_the_vm_is_gone_from_its_host_leaves_nothing_behind(rig: Rig) -> None:
    prepared(rig)
    replicator = rig.start()
    rig.wait_state(ReplicationState.STREAMING)
    rig.daemon.kill()

    def gone() -> QmpSession:
        raise NotFound("there is no VM web-1 on this host")

    replicator._stream._open_session = gone
    replicator.stop(detach=True)
    rig.replicator = None
    assert files_of(rig, "item-1") == []


@pytest.mark.parametrize("is_noted", [True, False], ids=["noted", "killed-before-it-noted-the-tap"])
def test_an_agent_ends_the_tap_that_an_earlier_one_started_for_a_vm_that_has_stopped(
    rig: Rig, is_noted: bool
) -> None:
    prepared(rig)
    rig.start()
    rig.wait_state(ReplicationState.STREAMING)
    tap = rig.tap_pid
    assert tap
    rig.drop_agent()
    rig.daemon.kill()
    if not is_noted:
        (rig.places.data_dir / "replication" / f"{rig.spec.item_id}.json").unlink()

    def stopped() -> QmpSession:
        raise Conflict("VM web-1 is not running")

    later = Replicator(
        rig.spec,
        open_session=stopped,
        open_store=lambda _url: rig.store,
        places=rig.places,
        tuning=rig.tuning,
    )
    later.stop(detach=True)
    assert identify(tap) is None
    assert files_of(rig, "item-1") == []


def files_of(rig: Rig, item_id: str) -> list[Path]:
    """Return what there is of the item on its host but logs."""
    places = rig.places
    tops = (places.run_dir, places.shm_dir, places.data_dir)
    found = [path for top in tops for path in top.rglob(f"*{item_id}*")]
    return [path for path in found if path.suffix != ".log"]


def fill_up(directory: Path) -> None:
    """Leave no room in the directory's file system."""
    descriptor = os.open(directory / "filler", os.O_CREAT | os.O_WRONLY)
    with suppress(OSError):
        while True:
            os.write(descriptor, bytes(MIB))
    os.close(descriptor)


def test_a_cache_on_a_full_file_system_heals_when_there_is_room_again(rig: Rig) -> None:
    cache = rig.daemon.directory / "cache"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(cache)])
    if mounted.returncode:
        pytest.skip("may not mount a tmpfs here")
    try:
        rig.store = FaultyStore(create_file_store(cache))
        writers, checker = prepared(rig)
        writers.start()
        replicator = rig.start()
        rig.wait_point()
        fill_up(cache)
        rig.wait_state(ReplicationState.TRACKING)
        assert replicator.status().problem
        (cache / "filler").unlink()
        rig.wait_state(ReplicationState.STREAMING)
        target = rig.target()
        rig.wait_point()
        assert check_points(target, checker) >= 2
        assert_converges(rig, writers, target)
        rig.drop_agent()
    finally:
        subprocess.run(["umount", str(cache)], check=True)


def test_a_failed_guest_write_is_swept(rig: Rig) -> None:
    writers, checker = prepared(rig)
    writers.start()
    replicator = rig.start()
    rig.wait_state(ReplicationState.STREAMING)
    rig.wait_point()
    seen: list[ReplicationState] = []
    failure = {"event": "BLOCK_IO_ERROR", "data": {"operation": "write", "device": "dev-sys"}}
    rig.daemon.session()._deliver(failure)

    def is_back() -> bool:
        seen.append(replicator.status().state)
        return ReplicationState.RESYNCING in seen and seen[-1] is ReplicationState.STREAMING

    wait_until(is_back, "swept and streaming again")
    target = rig.target()
    rig.wait_point()
    assert check_points(target, checker) >= 2
    assert_converges(rig, writers, target)


def test_a_newer_epoch_in_the_cache_ends_replication_for_good(rig: Rig) -> None:
    create = rig.store.create
    create(
        applied_name("item-1", 2, 1),
        encode_applied(2, AppliedMarker(sequence=1, manifest_sha256="0" * 64)),
    )
    replicator = rig.start()
    rig.wait_state(ReplicationState.STOPPED)
    assert "newer than 1" in replicator.status().problem

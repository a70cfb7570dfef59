"""qcow2 disks keep their generations over a clean exit of QEMU, and only over that.

The storage daemon is the QEMU here: its block layer stores and loads bitmaps as a guest's does.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from tests.integration.replication_rig import Rig, replication_rig
from tests.integration.storage_daemon import LoggedWriters, wait_until

from leeward.core.units import MIB
from leeward.mobility import generations
from leeward.model.recovery import Consistency, ReplicationState

pytestmark = pytest.mark.integration


@pytest.fixture
def rig() -> Iterator[Rig]:
    """A rig with 16 MiB in qcow2 disks, replicated, the target up to date."""
    with replication_rig(format="qcow2") as rig:
        rig.daemon.fill("sys", 8 * MIB, 12 * MIB)
        rig.daemon.fill("data", 10 * MIB, 4 * MIB, seed=2)
        rig.start()
        rig.wait_state(ReplicationState.STREAMING)
        rig.wait_point()
        yield rig


def restarted(rig: Rig) -> int:
    """Write 1 MiB before the agent is there again; return what the resync then sent."""
    rig.daemon.start()
    rig.daemon.fill("sys", 24 * MIB, MIB, seed=9)
    before = rig.last_sequence()
    rig.wait_state(ReplicationState.STREAMING)
    rig.wait_point()
    resync = [cut for cut in rig.cuts(before + 1) if cut.consistency is Consistency.NONE]
    return sum(cut.bytes_shipped for cut in resync)


def assert_equal(rig: Rig) -> None:
    sequence, target = rig.wait_point(), rig.target()
    while target.sequence < sequence:
        assert target.apply_next() is not None
    assert target.images == rig.daemon.content()


def test_after_a_clean_exit_only_what_changed_is_swept(rig: Rig) -> None:
    writers = LoggedWriters(rig.daemon, area_offset=2 * MIB)
    rig.writers.append(writers)
    writers.start()
    wait_until(lambda: writers.write_count > 100, "writes")
    writers.stop()
    rig.daemon.quit()
    assert MIB < restarted(rig) < 8 * MIB
    assert_equal(rig)


def test_after_a_kill_everything_is_swept_also_when_bitmaps_had_been_stored(rig: Rig) -> None:
    rig.daemon.quit()
    restarted(rig)
    rig.daemon.kill()  # what the images hold now is marked in use: inconsistent
    assert restarted(rig) > 16 * MIB
    assert_equal(rig)


@pytest.mark.parametrize("generations_max", [generations.GENERATIONS_MAX, 1])
def test_bitmaps_of_disks_put_back_to_an_earlier_time_are_not_believed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, generations_max: int
) -> None:
    """Also where no generation is added any more, since the target has applied nothing for long."""
    monkeypatch.setattr(generations, "GENERATIONS_MAX", generations_max)
    rig.daemon.quit()
    rig.wait_state(ReplicationState.STOPPED)
    for disk in rig.daemon.disks:
        shutil.copy(rig.daemon.image(disk), rig.daemon.image(disk).with_suffix(".old"))
    restarted(rig)
    rig.daemon.fill("sys", 2 * MIB, 2 * MIB, seed=77)
    rig.wait_point()
    rig.daemon.quit()
    rig.wait_state(ReplicationState.STOPPED)
    for disk in rig.daemon.disks:
        shutil.move(rig.daemon.image(disk).with_suffix(".old"), rig.daemon.image(disk))
    assert restarted(rig) > 16 * MIB
    assert_equal(rig)


def test_a_qemu_that_can_be_given_no_generation_is_swept_whole(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generations, "OF_STARTS_MAX", 1)
    rig.daemon.quit()
    assert restarted(rig) > 16 * MIB
    assert_equal(rig)

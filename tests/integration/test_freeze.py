"""A running guest frozen for a recovery point: what the point holds, and that it always goes on.

The oracle is ext4 itself: a frozen file system has an empty journal and says so in its superblock,
a mounted one that is not frozen says that it needs recovery.
"""

from __future__ import annotations

import os
import signal
import struct
import time
from collections.abc import Iterator

import pytest
from tests.integration.freeze_rig import Guest, running_guest
from tests.integration.replication_rig import ITEM, Target
from tests.integration.storage_daemon import wait_until

from leeward.core.units import MIB
from leeward.mobility import thaw_client
from leeward.mobility.replicator import Replicator
from leeward.model.recovery import Consistency, FreezeReport

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(400),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]
NEEDS_RECOVERY = 0x4
SYSTEM_PARTITION = 32 * MIB
FREEZE_SECONDS = 60.0
"""Until an attempt has ended; it takes a fifth of a second where nothing else runs."""


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with running_guest() as made:
        yield made


def needs_recovery(target: Target, disk: str) -> bool:
    """Say whether the ext4 file system on the disk would have to replay its journal."""
    superblock = (SYSTEM_PARTITION if disk == "system" else 0) + 1024
    image = target.images[disk]
    assert image[superblock + 56 : superblock + 58] == b"\x53\xef"
    (features,) = struct.unpack_from("<I", image, superblock + 96)
    return bool(features & NEEDS_RECOVERY)


def test_a_point_of_a_frozen_guest_is_clean_and_the_guest_goes_on(guest: Guest) -> None:
    with guest.replicated() as replicator:
        report = replicator.freeze(seconds=FREEZE_SECONDS)
        assert report.problem == ""
        assert report.consistency is Consistency.APPLICATION
        assert 0 < report.ours_ms < report.frozen_ms
        assert guest.hooks() == (1, 1)
        guest.assert_goes_on()
        wait_until(lambda: last_sequence(guest) > report.sequence, "a later cut")
    target = Target(guest.store, {"system": 128 * MIB, "data": 64 * MIB})
    seen: dict[Consistency, set[bool]] = {}
    for sequence in range(1, report.sequence + 2):
        cut = target.apply_next()
        assert cut is not None
        assert cut.sequence == sequence
        if cut.consistency is not Consistency.NONE:
            seen[cut.consistency] = {needs_recovery(target, disk) for disk in target.images}
    assert seen == {Consistency.APPLICATION: {False}, Consistency.CRASH: {True}}


def test_a_guest_that_takes_too_long_to_freeze_is_thawed_and_gives_a_lesser_point(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thaw_client, "FREEZE_SECONDS", 0.5)
    guest.hooks(2)
    with guest.replicated() as replicator:
        report = replicator.freeze(seconds=FREEZE_SECONDS)
        assert report.consistency is Consistency.CRASH
        assert "did not freeze within 0.5 s" in report.problem
        assert report.sequence > 0
        guest.assert_goes_on()
        assert replicator.status().problem == ""


def test_a_guest_whose_guard_is_killed_while_freezing_is_thawed_by_another(
    guest: Guest,
) -> None:
    guest.hooks(1)
    before, _ = guest.hooks()
    with guest.replicated(every_seconds=3600) as replicator:
        wait_until(lambda: guest.hooks()[0] > before, "the guest is being frozen")
        os.kill(guest.guard_pid(), signal.SIGKILL)
        guest.hooks(0)
        report = wait_report(replicator)
        assert report.consistency is Consistency.CRASH
        assert "guard died" in report.problem
        guest.assert_goes_on()
        guest.hooks(1)
        asked = replicator.freeze(seconds=FREEZE_SECONDS)
        assert asked.consistency is Consistency.APPLICATION, asked.problem


def test_an_agent_that_dies_while_the_guest_is_frozen_is_not_needed(guest: Guest) -> None:
    guest.hooks(1)
    before, _ = guest.hooks()
    called = time.time_ns()
    with guest.agent(every_seconds=3600) as agent:
        wait_until(lambda: guest.hooks()[0] > before, "the guest is being frozen", seconds=60)
        agent.send_signal(signal.SIGSTOP)
        guest.assert_goes_on()
    guest.hooks(0)
    with guest.replicated() as replicator:
        assert wait_report(replicator).time_ns > called
        guest.assert_goes_on()


def test_agent_and_guard_killed_together_leave_no_guest_frozen(guest: Guest) -> None:
    guest.hooks(3)
    before, _ = guest.hooks()
    with guest.agent(every_seconds=3600) as agent:
        wait_until(lambda: guest.hooks()[0] > before, "the guest is being frozen", seconds=60)
        agent.kill()
        guard = guest.guard_pid()
        assert guard, "the guard was killed while it froze"
        os.kill(guard, signal.SIGKILL)
        agent.wait()
        guest.assert_goes_on()
    guest.hooks(0)
    with guest.replicated() as replicator:  # the next agent finds out, and goes on
        assert wait_report(replicator).consistency is Consistency.CRASH
        asked = replicator.freeze(seconds=FREEZE_SECONDS)
        assert asked.consistency is Consistency.APPLICATION, asked.problem


def last_sequence(guest: Guest) -> int:
    names = guest.store.list(f"items/{ITEM}/cuts/")
    return max((int(name.rpartition("-")[2]) for name in names), default=0)


def wait_report(replicator: Replicator) -> FreezeReport:
    """Return what the newest attempt came to, once there was one."""
    wait_until(lambda: replicator.status().freeze is not None, "a report", seconds=60)
    report = replicator.status().freeze
    assert report is not None
    return report

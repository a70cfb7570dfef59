"""The order of QMP commands that QEMU survives, against a scripted session."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from leeward.core.errors import HypervisorRefused, Unavailable
from leeward.qemu import mirror
from leeward.qemu.mirror import JobPhase
from leeward.qemu.session import QmpSession


class Script:
    """Stands for QEMU: knows one disk, its job and tap node; writes down every command."""

    def __init__(self, *, job: str = "", iothread: str | None = "", is_daemon: bool = False):
        self.job = job
        self.iothread = iothread
        self.is_daemon = is_daemon
        self.running = True
        self.has_tap = bool(job)
        self.refuse: set[str] = set()
        self.commands: list[str] = []
        self.is_connected = True
        self.drains = 0
        """Questions about the job that find it paused after a cancel: QEMU drains the disk."""

    def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout_seconds: float = 1,
    ) -> Any:
        if not command.startswith(("query-", "qom-")):
            forced = " force" if (arguments or {}).get("force") else ""
            self.commands.append(command + forced)
        if command in self.refuse:
            raise HypervisorRefused(f"{command}: scripted")
        method = getattr(self, "_" + command.replace("-", "_"))
        return method(arguments or {})

    def _query_block_jobs(self, _arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
        if not self.job:
            return []
        failed = self.job == "standby"
        if self.job == "paused" and self.drains:
            self.drains -= 1
            self.job = self.job if self.drains else "concluded"
        return [
            {
                "device": "mirror-sys",
                "status": self.job,
                "paused": failed or self.job == "paused",
                "io-status": "failed" if failed else "ok",
            }
        ]

    def _query_named_block_nodes(self, _arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
        names = ["disk-sys", *(["tap-sys"] if self.has_tap else [])]
        return [{"node-name": name, "image": {"virtual-size": 1 << 20}} for name in names]

    def _query_status(self, _arguments: Mapping[str, Any]) -> dict[str, Any]:
        if self.is_daemon:
            raise HypervisorRefused("The command query-status has not been found")
        return {"status": "running" if self.running else "paused"}

    def _qom_get(self, _arguments: Mapping[str, Any]) -> str:
        if self.iothread is None:
            raise HypervisorRefused("no such property")
        return self.iothread

    def _blockdev_add(self, _arguments: Mapping[str, Any]) -> None:
        self.has_tap = True

    def _blockdev_del(self, _arguments: Mapping[str, Any]) -> None:
        self.has_tap = False

    def _blockdev_mirror(self, arguments: Mapping[str, Any]) -> None:
        assert arguments["on-target-error"] == "stop"
        assert arguments["copy-mode"] == "write-blocking"
        assert arguments["auto-dismiss"] is False
        self.job = "ready"

    def _block_job_cancel(self, arguments: Mapping[str, Any]) -> None:
        if self.job == "standby" and not arguments.get("force"):
            raise HypervisorRefused("The block job is currently paused")
        assert not arguments.get("force") or not self.running, "forced under a running guest"
        self.job = "paused" if self.drains else "concluded"

    def _block_job_resume(self, _arguments: Mapping[str, Any]) -> None:
        if self.job != "standby":
            raise HypervisorRefused("Can't resume a job that was not paused")
        self.job = "ready"

    def _job_dismiss(self, _arguments: Mapping[str, Any]) -> None:
        self.job = ""

    def _stop(self, _arguments: Mapping[str, Any]) -> None:
        self.running = False

    def _cont(self, _arguments: Mapping[str, Any]) -> None:
        self.running = True


def session(script: Script) -> QmpSession:
    return cast(QmpSession, script)


def attach(script: Script) -> None:
    mirror.attach(session(script), "sys", Path("/run/tap.sock"))


def test_attaching_without_an_iothread_does_not_stop_the_guest() -> None:
    script = Script()
    attach(script)
    assert script.commands == ["blockdev-add", "blockdev-mirror"]


@pytest.mark.parametrize("iothread", ["/objects/io0", None])
def test_attaching_with_an_iothread_or_not_knowing_stops_the_guest(iothread: str | None) -> None:
    script = Script(iothread=iothread)
    attach(script)
    assert script.commands == ["blockdev-add", "stop", "blockdev-mirror", "cont"]


def test_a_guest_that_does_not_run_is_not_continued() -> None:
    script = Script(iothread="/objects/io0")
    script.running = False
    attach(script)
    assert script.commands == ["blockdev-add", "blockdev-mirror"]


def test_a_refused_mirror_leaves_nothing_and_a_running_guest() -> None:
    script = Script(iothread="/objects/io0")
    script.refuse.add("blockdev-mirror")
    with pytest.raises(HypervisorRefused):
        attach(script)
    assert script.commands[-2:] == ["cont", "blockdev-del"]
    assert script.running
    assert not script.has_tap


def test_attaching_again_does_nothing() -> None:
    script = Script(job="standby")
    attach(script)
    assert script.commands == []


def test_what_an_ended_job_left_is_cleared_away_first() -> None:
    script = Script(job="concluded")
    attach(script)
    assert script.commands == ["job-dismiss", "blockdev-del", "blockdev-add", "blockdev-mirror"]


def test_detaching_is_a_soft_cancel() -> None:
    script = Script(job="ready")
    mirror.detach(session(script), "sys")
    assert script.commands == ["block-job-cancel", "job-dismiss", "blockdev-del"]


def test_a_job_that_is_paused_while_the_disk_is_drained_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mirror, "FAILED_SECONDS", 0.0)
    script = Script(job="ready", is_daemon=True)
    script.drains = 10
    mirror.detach(session(script), "sys")
    assert script.commands == ["block-job-cancel", "job-dismiss", "blockdev-del"]


def test_only_what_its_tap_has_stopped_is_resumed() -> None:
    for job, resumed in (("ready", []), ("paused", []), ("standby", ["block-job-resume"])):
        script = Script(job=job)
        mirror.resume(session(script), "sys")
        assert script.commands == resumed


def test_a_standing_by_job_is_only_forced_while_the_guest_is_stopped() -> None:
    script = Script(job="standby")
    mirror.detach(session(script), "sys")
    assert script.commands == [
        "block-job-cancel",
        "stop",
        "block-job-cancel force",
        "cont",
        "job-dismiss",
        "blockdev-del",
    ]
    assert script.running


def test_where_the_guest_cannot_be_stopped_nothing_is_forced() -> None:
    script = Script(job="standby", is_daemon=True)
    with pytest.raises(HypervisorRefused, match="live tap"):
        mirror.detach(session(script), "sys")
    assert script.job == "standby"


def test_a_stop_that_takes_too_long_is_followed_by_cont() -> None:
    class Slow(Script):
        def _stop(self, _arguments: Mapping[str, Any]) -> None:
            self.running = False
            raise Unavailable("QEMU did not answer stop")

    script = Slow(job="standby")
    with pytest.raises(Unavailable):
        mirror.detach(session(script), "sys")
    assert script.commands == ["block-job-cancel", "stop", "cont"]
    assert script.running


def test_phases() -> None:
    seen = {
        status: mirror.inspect(session(Script(job=status)), ["sys"])[0].phase
        for status in ("", "created", "running", "ready", "standby", "aborting", "concluded")
    }
    assert seen == {
        "": JobPhase.ABSENT,
        "created": JobPhase.RUNNING,
        "running": JobPhase.RUNNING,
        "ready": JobPhase.RUNNING,
        "standby": JobPhase.STANDBY,
        "aborting": JobPhase.ENDED,
        "concluded": JobPhase.ENDED,
    }

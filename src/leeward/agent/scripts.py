"""Scripts of recovery plans: files that the host's owner put into one directory, run with a limit.

Owns: that only those run, that one that hangs is ended with all it started, also after the agent
was killed. Must not know: plans. One of the verb sets of an agent.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from leeward.agent.records import Records
from leeward.core.codec import to_json
from leeward.core.errors import Conflict, InvalidRequest, NotFound, Unavailable
from leeward.observability.log import get_logger
from leeward.protocol.fabric import ScriptResult, ScriptSpec

log = get_logger()

OUTPUT_BYTES_MAX = 4096
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptRun:
    """A script under way: its process group leads with `pid`, which began at `started` (clock
    ticks since the boot `boot_id`)."""

    pid: int
    started: str
    boot_id: str


class Scripts:
    """The scripts of this host. Thread-safe. Making one ends what an earlier agent left running."""

    def __init__(self, directory: Path, runs: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory
        self._runs = Records(runs, ScriptRun)
        for run_id, run in self._runs.all().items():
            _end_left(run)
            self._runs.delete(run_id)

    def run(self, spec: ScriptSpec) -> ScriptResult:
        """Return the end of what the script printed, once it has ended well.

        Nothing that it started in its process group runs any more, however it ended. Raises:
        NotFound, InvalidRequest; Unavailable when it took too long; Conflict when it
        ended with another code than 0.
        """
        path = self._find(spec.script)
        with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as given:
            given.write(to_json(spec.context))
            given.seek(0)
            try:
                process = subprocess.Popen(
                    [path],
                    stdin=given,
                    stdout=said,
                    stderr=subprocess.STDOUT,
                    cwd=self._directory,
                    env={"PATH": _PATH, "LANG": "C.UTF-8"},
                    start_new_session=True,
                )
            except OSError as error:
                raise InvalidRequest(f"script {spec.script}: {error.strerror}") from error
            try:
                self._runs.put(spec.run_id, _run_of(process.pid))
                code = process.wait(spec.timeout_seconds)
            except subprocess.TimeoutExpired as error:
                raise Unavailable(
                    f"script {spec.script} was ended after {spec.timeout_seconds:g} s: it hung",
                    hint="make it faster, or give its action more timeout_seconds",
                ) from error
            finally:
                _end_group(process.pid)
                process.wait()
                self._runs.delete(spec.run_id)
            output = _last(said.fileno())
        log.info("script_ended", script=spec.script, code=code)
        if code:
            raise Conflict(f"script {spec.script} ended with {code}: {output or 'silent'}")
        return ScriptResult(output=output)

    def _find(self, name: str) -> Path:
        path = self._directory / name
        if "/" in name or name.startswith(".") or not name:
            raise InvalidRequest(f"{name!r} is not the name of a script", field="script")
        if not path.is_file():
            raise NotFound(f"this host has no script {name}", hint=f"put it into {self._directory}")
        if not os.access(path, os.X_OK):
            raise InvalidRequest(
                f"script {name} is not executable", field="script", hint=f"`chmod +x {path}`"
            )
        return path


def _end_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _end_left(run: ScriptRun) -> None:
    """End an earlier agent's script, unless its number belongs to somebody else by now."""
    if run.boot_id == _boot_id() and _started(run.pid) in ("", run.started):
        log.warning("left_script_ended", pid=run.pid)
        _end_group(run.pid)


def _run_of(pid: int) -> ScriptRun:
    return ScriptRun(pid=pid, started=_started(pid), boot_id=_boot_id())


def _started(pid: int) -> str:
    """Return when the process began, "" if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _last(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    start = max(0, size - OUTPUT_BYTES_MAX)
    return os.pread(descriptor, OUTPUT_BYTES_MAX, start).decode(errors="replace").strip()

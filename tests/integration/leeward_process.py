"""`leeward` as its users run it: commands and daemons as processes over a data directory."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo.ports import free_port

WAIT_SECONDS = 150.0


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Installation:
    """One data directory and what was started over it."""

    data: Path
    port: int
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("LEEWARD_")}
        return {
            **kept,
            "LEEWARD_DATA": str(self.data),
            "LEEWARD_SERVICE__PORT": str(self.port),
            "COLUMNS": "160",
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def run(self, *arguments: str, **environment: str) -> Done:
        """Return how `leeward …` ended."""
        done = subprocess.run(
            [sys.executable, "-m", "leeward.cli.main", *arguments],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def ask(self, *arguments: str) -> Any:
        """Return what a command that has to succeed printed as JSON."""
        done = self.run(*arguments, "-o", "json")
        assert done.code == 0, done.err
        return done.json

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Return the daemon `leeward …`, started; its output is in the data directory."""
        with (self.data / f"{arguments[0]}.log").open("ab") as log:
            daemon = subprocess.Popen(
                [sys.executable, "-m", "leeward.cli.main", *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.daemons.append(daemon)
        return daemon

    def serve(self) -> subprocess.Popen[bytes]:
        """Return the service, answering; commands find it by what it wrote itself."""
        service = self.start("serve")

        def is_answering() -> bool:
            assert service.poll() is None, (self.data / "serve.log").read_text()
            return (self.data / "client.toml").exists() and self._listens()

        wait_for(is_answering)
        return service

    def end(self, daemon: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> int:
        """End the daemon; return its exit code."""
        daemon.send_signal(number)
        return daemon.wait(timeout=WAIT_SECONDS)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@contextmanager
def installation() -> Iterator[Installation]:
    """An empty data directory; afterwards nothing of it runs and nothing is left."""
    data = Path(tempfile.mkdtemp(dir="/tmp", prefix="lw-cli-"))
    made = Installation(data, free_port())
    try:
        yield made
    finally:
        for daemon in made.daemons:
            if daemon.poll() is None:
                daemon.kill()
            daemon.wait()
        made.run("down", "--vms")
        shutil.rmtree(data, ignore_errors=True)


def wait_for(holds: Callable[[], object], *, seconds: float = WAIT_SECONDS) -> None:
    """Return when `holds()` is true."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.1)

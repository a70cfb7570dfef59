"""The way out of a network: one slirp4netns that carries its connections as the host's own.

Owns: slirp4netns's command line. Must not know: rules, subnets' bridges. Nothing of the host's own
network is changed, and nobody out there can begin a connection to a VM.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from leeward.core.errors import InvalidRequest
from leeward.fabric import processes
from leeward.fabric.namespaces import namespace_path
from leeward.fabric.packet_rules import OUTSIDE

PREFIX = "100.127.255.0/24"
"""Between the namespace and slirp4netns; of the range that carriers use among themselves."""
NAME_SERVER = "100.127.255.3"


@dataclass(frozen=True, slots=True)
class Outside:
    """One network's way out. home: its directory."""

    home: Path
    namespace: str

    def ensure_open(self) -> None:
        """Make it work. Raises: InvalidRequest when slirp4netns is not installed; Unavailable."""
        if shutil.which("slirp4netns") is None:
            raise InvalidRequest(
                "slirp4netns is not installed: a network with address translation needs it",
                hint="apt-get install slirp4netns",
            )
        if processes.find(self._pid_file) is None:
            self.home.mkdir(parents=True, exist_ok=True)
            processes.spawn(
                [
                    *("slirp4netns", "--configure", "--mtu=1500", "--disable-host-loopback"),
                    *(f"--cidr={PREFIX}", "--netns-type=path"),
                    *(str(namespace_path(self.namespace)), OUTSIDE),
                ],
                pid_file=self._pid_file,
                log_file=self.home / "slirp4netns.log",
            )

    def close(self) -> None:
        """Make it not work. Idempotent."""
        running = processes.find(self._pid_file)
        if running is not None:
            processes.end(running)
        self._pid_file.unlink(missing_ok=True)

    @property
    def _pid_file(self) -> Path:
        return self.home / "slirp4netns.pid"

"""Debian packages the guest is made of: which versions, downloaded and unpacked, not installed.

Owns: talking to apt and dpkg. Must not know: what becomes of the files. Needs no root.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

KERNEL_META = "linux-image-cloud-amd64"
TOOLS = ("busybox-static", "e2fsck-static", "syslinux", "syslinux-common", "mtools")
AGENT = (
    *("qemu-guest-agent", "libc6", "libglib2.0-0", "libnuma1", "libpcre2-8-0", "libudev1"),
    "liburing2",
)
"""QEMU's guest agent and the packages of the libraries it is linked with."""


class BuildFailed(Exception):
    """The guest cannot be built; the message is one sentence for a person."""


def run(
    *argv: str | Path, cwd: Path | None = None, environment: dict[str, str] | None = None
) -> str:
    """Run a program to its end and return what it printed. Raises: BuildFailed with its output."""
    try:
        done = subprocess.run(
            [str(argument) for argument in argv],
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C", **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise BuildFailed(f"{argv[0]} is not installed") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise BuildFailed(f"{argv[0]} failed: {said[-1] if said else done.returncode}")
    return done.stdout


def kernel_package() -> str:
    """Return the name of the package that holds Debian's current cloud kernel."""
    try:
        found = re.search(r"Depends: (linux-image-\S+)", run("apt-cache", "depends", KERNEL_META))
    except BuildFailed as error:
        raise BuildFailed(f"{error}: run `apt-get update` first") from error
    if not found:
        raise BuildFailed(f"apt knows no {KERNEL_META}: run `apt-get update` first")
    return found[1]


def candidate_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Return name → the version apt would install."""
    policy = run("apt-cache", "policy", *names)
    versions = dict(re.findall(r"^(\S+):\n(?:.*\n)*?\s+Candidate: (\S+)", policy, re.MULTILINE))
    for name in names:
        if versions.get(name, "(none)") == "(none)":
            raise BuildFailed(f"apt knows no {name}: run `apt-get update` first")
    return versions


def unpack(versions: dict[str, str], into: Path) -> None:
    """Download (verified by apt) and unpack those very packages under `into`."""
    downloads = into.parent / "debs"
    downloads.mkdir(parents=True, exist_ok=True)
    into.mkdir(parents=True, exist_ok=True)
    wanted = [f"{name}={version}" for name, version in sorted(versions.items())]
    # apt's own sandbox user may not write here, and says so on every run
    try:
        run("apt-get", "download", "-qq", "-o", "APT::Sandbox::User=", *wanted, cwd=downloads)
    except BuildFailed as error:
        raise BuildFailed(f"{error} (lists out of date? run `apt-get update`)") from error
    for package in sorted(downloads.glob("*.deb")):
        run("dpkg-deb", "-x", package, into)
        package.unlink()

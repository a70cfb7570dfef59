"""Network namespaces of the host: made, entered, removed.

Owns: /run/netns, iproute2 and tap devices. Must not know: what a network is for. iproute2 in one
batch per change takes milliseconds; loading pyroute2 alone takes most of a second.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import struct
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from leeward.core.errors import InvalidRequest, Unavailable

T = TypeVar("T")

DIRECTORY = Path("/run/netns")
COMMAND_SECONDS = 20.0
_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000


def namespace_path(name: str) -> Path:
    """Return the file that names the namespace."""
    return DIRECTORY / name


def exists(name: str) -> bool:
    """Say whether the namespace is there (a file that an interrupted creation left is not one)."""
    try:
        return namespace_path(name).stat().st_dev == os.stat("/proc/self/ns/net").st_dev
    except FileNotFoundError:
        return False


def ensure(name: str) -> None:
    """Make the namespace exist."""
    if not exists(name):
        namespace_path(name).unlink(missing_ok=True)
        _ip(["netns", "add", name])


def remove(name: str) -> None:
    """Make the namespace not exist, with all its devices. Idempotent."""
    if exists(name):
        _ip(["netns", "delete", name])
    namespace_path(name).unlink(missing_ok=True)


def processes_in(name: str) -> list[int]:
    """Return the pids of the processes in the namespace."""
    return [int(pid) for pid in _ip(["netns", "pids", name]).split()] if exists(name) else []


def change(name: str, commands: Sequence[str]) -> None:
    """Carry out iproute2 `commands` ("link set lo up") in the namespace, stopping at an error."""
    _ip(["-n", name, "-batch", "-"], stdin="\n".join(commands) + "\n")


def change_host(commands: Sequence[str]) -> None:
    """Carry out iproute2 `commands` in the namespace this process is in, stopping at an error."""
    _ip(["-batch", "-"], stdin="\n".join(commands) + "\n")


def links(name: str) -> dict[str, dict[str, Any]]:
    """Return the namespace's devices by name, as iproute2 describes them in detail."""
    return _by_name(_ip(["-j", "-d", "-n", name, "link"]))


def host_links() -> dict[str, dict[str, Any]]:
    """Return the devices of the namespace this process is in, as `links`."""
    return _by_name(_ip(["-j", "-d", "link"]))


def _by_name(shown: str) -> dict[str, dict[str, Any]]:
    return {link["ifname"]: link for link in json.loads(shown or "[]")}


def addresses(name: str, device: str) -> set[str]:
    """Return the IPv4 addresses of a device of the namespace, with their prefix lengths."""
    shown = json.loads(_ip(["-j", "-n", name, "-4", "address", "show", "dev", device]) or "[]")
    return {
        f"{info['local']}/{info['prefixlen']}"
        for link in shown
        for info in link.get("addr_info", ())
    }


def write_setting(name: str, setting: str, value: str) -> None:
    """Give a network setting ("ipv4/ip_forward") that value in the namespace; skip unknown ones."""

    def write() -> None:
        path = Path("/proc/sys/net") / setting
        if path.exists():
            path.write_text(value)

    inside(name, write)


def open_tap(name: str, device: str) -> int:
    """Return a descriptor of a new tap device of the namespace.

    The device lives until its last descriptor is closed: it cannot outlast the VM that has it.
    """

    def opened() -> int:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        request = struct.pack("16sH22x", device.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        try:
            fcntl.ioctl(descriptor, _TUNSETIFF, request)
        except OSError as error:
            os.close(descriptor)
            raise Unavailable(f"cannot make tap device {device}: {error.strerror}") from error
        return descriptor

    return inside(name, opened)


def inside(name: str, action: Callable[[], T]) -> T:
    """Return what `action` returns, run in the namespace by a thread of its own that then ends."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            _enter(namespace_path(name))
            outcome.append(action())
        except BaseException as error:  # handed to the caller's thread, whatever it is
            failure.append(error)

    thread = threading.Thread(target=run, name=f"in-{name}")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def _enter(path: Path) -> None:
    """Move the calling thread, and it alone, into a network namespace."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Unavailable(f"there is no network namespace {path.name}") from error
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(descriptor, _CLONE_NEWNET):
            reason = os.strerror(ctypes.get_errno())
            raise Unavailable(f"cannot enter network namespace {path.name}: {reason}")
    finally:
        os.close(descriptor)


def _ip(arguments: Sequence[str], *, stdin: str = "") -> str:
    try:
        done = subprocess.run(
            ["ip", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise InvalidRequest("ip (iproute2) is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"ip {' '.join(arguments)} hangs") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise Unavailable(f"ip {' '.join(arguments)}: {said[0] if said else done.returncode}")
    return done.stdout

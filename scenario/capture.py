"""Packets seen in network namespaces: who has been called where, whatever carries the packet.

Owns: AF_PACKET sockets, and telling calls apart in a frame. Must not know: why anybody is called. A
call is recognized inside a tunnel, too: its bytes are looked for anywhere in the frame.
"""

from __future__ import annotations

import secrets
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from leeward.fabric import namespaces

OUTSIDE, OUTSIDE_HOST = "203.0.113.9", "203.0.113.1"
FRAME_BYTES = 2048
BUFFER_BYTES = 32 << 20
LOOK_SECONDS = 0.2
_ETH_P_ALL = 0x0003
_SO_RCVBUFFORCE = 33
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_ARP_REQUEST = bytes.fromhex("08060001080006040001")
_ARP_TARGET = len(_ARP_REQUEST) + 6 + 4 + 6
_ICMP, _ECHO_REQUEST = 1, 8


@dataclass(frozen=True, slots=True)
class Call:
    """What a guest's /call does: a datagram that names the target, a connection, a ping. is_asked:
    others ask who has that address as well, so that a question for it tells nothing."""

    address: str
    port: int
    is_asked: bool = False

    @property
    def target(self) -> str:
        return f"{self.address}:{self.port}"

    def is_in(self, frame: bytes) -> bool:
        """Say whether the frame carries any part of this call."""
        if f"leeward {self.target}".encode() in frame:
            return True
        address = socket.inet_aton(self.address)
        if not self.is_asked and _asks(frame, address):
            return True
        return any(self._is_to(frame, at) for at in _positions(frame, address))

    def _is_to(self, frame: bytes, at: int) -> bool:
        """Say whether an IPv4 header's destination is at `at`, and this call behind it."""
        behind = frame[at + 4 : at + 8]
        if len(behind) < 4 or at < 16:
            return False
        if frame[at - 7] == _ICMP:
            return behind[0] == _ECHO_REQUEST
        return behind[2:4] == self.port.to_bytes(2, "big")


def _asks(frame: bytes, address: bytes) -> bool:
    at = frame.find(_ARP_REQUEST)
    return at >= 0 and frame[at + _ARP_TARGET : at + _ARP_TARGET + 4] == address


def _positions(frame: bytes, wanted: bytes) -> Iterator[int]:
    at = frame.find(wanted)
    while at >= 0:
        yield at
        at = frame.find(wanted, at + 1)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a capture saw: frames by (place, target); frames that it had no time for."""

    frames: Mapping[tuple[str, str], int]
    missed: int

    def at(self, place: str) -> dict[str, int]:
        """Return frames by target at one place."""
        return {target: count for (where, target), count in self.frames.items() if where == place}

    def elsewhere(self, place: str) -> dict[str, int]:
        """Return frames by "place: target" everywhere else."""
        return {f"{p}: {t}": count for (p, t), count in self.frames.items() if p != place}


class Capture:
    """Every device of some namespaces, from `capturing` on."""

    def __init__(self, calls: Iterable[Call]) -> None:
        self._calls = tuple(calls)
        self._frames: Counter[tuple[str, str]] = Counter()
        self._missed = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []

    def watch(self, place: str, namespace: str) -> None:
        """What passes in the namespace ("": this process's own) is counted under that name from
        now on."""
        tap = namespaces.inside(namespace, _open) if namespace else _open()
        thread = threading.Thread(target=self._count, args=(place, tap), name=f"capture-{place}")
        self._threads.append(thread)
        thread.start()

    def end(self) -> Seen:
        """Return what was seen; nothing is watched any more."""
        self._ended.set()
        for thread in self._threads:
            thread.join()
        return Seen(dict(self._frames), self._missed)

    def _count(self, place: str, tap: socket.socket) -> None:
        with tap:
            while not self._ended.is_set():
                with suppress(TimeoutError, OSError):  # a device went down
                    frame = tap.recv(FRAME_BYTES)
                    for call in self._calls:
                        if call.is_in(frame):
                            self._add(place, call.target)
            _, dropped = struct.unpack("II", tap.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        with self._lock:
            self._missed += dropped

    def _add(self, place: str, target: str) -> None:
        with self._lock:
            self._frames[place, target] += 1


@contextmanager
def capturing(places: Mapping[str, str], calls: Iterable[Call]) -> Iterator[Capture]:
    """Give a capture of `places` (name → namespace) that is watching."""
    capture = Capture(calls)
    try:
        for place, namespace in places.items():
            capture.watch(place, namespace)
        yield capture
    finally:
        capture.end()


def _open() -> socket.socket:
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    tap.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER_BYTES)
    tap.settimeout(LOOK_SECONDS)
    return tap


@contextmanager
def way_out(namespace: str, bridge: str) -> Iterator[None]:
    """A device leads from the bridge out into this process's own namespace meanwhile."""
    inner, outer = "escape", f"esc{namespace[-8:]}"
    namespaces.change_host(
        [
            f"link add {outer} type veth peer name {inner} netns {namespace}",
            f"link set {outer} up",
        ]
    )
    try:
        namespaces.change(namespace, [f"link set {inner} master {bridge} up"])
        wait_carries(namespace, inner)
        wait_carries("", outer)
        yield
    finally:
        namespaces.change_host([f"link delete {outer}"])


def wait_carries(namespace: str, device: str, *, seconds: float = 60.0) -> None:
    """Return when the device ("" as namespace: of this process's own) carries frames.

    The kernel tells a device, and the bridge it is a port of, that its other end is up when it
    finds the time; until then both drop what they are given. Raises: TimeoutError.
    """
    deadline = time.monotonic() + seconds
    while True:
        links = namespaces.links(namespace) if namespace else namespaces.host_links()
        port = links[device].get("linkinfo", {}).get("info_slave_data", {})
        if links[device]["operstate"] == "UP" and port.get("state", "forwarding") == "forwarding":
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{device} carries nothing: {links[device]}")
        time.sleep(0.01)


@contextmanager
def outside_world() -> Iterator[str]:
    """Give a namespace outside, with an address that this machine reaches."""
    tag = secrets.token_hex(3)
    world, device = f"lwx{tag}", f"lwx{tag}"
    namespaces.ensure(world)
    try:
        namespaces.change_host(
            [
                f"link add {device} type veth peer name eth0 netns {world}",
                f"address add {OUTSIDE_HOST}/24 dev {device}",
                f"link set {device} up",
            ]
        )
        commands = [f"address add {OUTSIDE}/24 dev eth0", "link set lo up", "link set eth0 up"]
        namespaces.change(world, commands)
        wait_carries(world, "eth0")
        wait_carries("", device)
        yield world
    finally:
        namespaces.remove(world)

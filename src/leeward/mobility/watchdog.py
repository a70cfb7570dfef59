"""The watchdog: a process that frees a host's guests from taps that do not answer.

Owns: the taps' listeners, duplicates of their connections, their heartbeats. Must not know: NBD,
journals, QEMU, the agent beyond its requests. Standard library only; outlives agent and taps. Run
as `python -m leeward.mobility.watchdog CONFIG.json`.

QEMU completes a guest's write only when the tap has acknowledged it. shutdown() on a duplicate of
the connection ends that wait, whatever state the tap is in; emptying it ends a wait for room to
send, which shutdown() does not.
"""

from __future__ import annotations

import json
import resource
import select
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from leeward.mobility import link
from leeward.mobility.events import log

STALE_SECONDS = 0.6
"""Three beats of a tap."""
PASS_SECONDS = 0.1
IDLE_SECONDS = 5.0
COUNTED_SECONDS_MAX = 0.2
DISCARD_SECONDS = 0.05
BEAT_SECONDS = 1.0
CONNECTIONS_MAX = 1024
MESSAGES_PER_WAKE_MAX = 64


class GuardedTap:
    """One item's listener, tap and connections.

    `silence` is how long the watchdog, while itself awake, has heard nothing of the tap.
    """

    def __init__(self, item: str) -> None:
        self.item = item
        self.path: Path | None = None
        self.listener: socket.socket | None = None
        self.link: socket.socket | None = None
        self.silence = 0.0
        self.is_healthy = False
        self.cuts = 0
        self.connections: dict[int, socket.socket] = {}


class Watchdog:
    """All guarded taps of a host."""

    def __init__(self, path: Path) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._taps: dict[str, GuardedTap] = {}
        self._ended: list[socket.socket] = []
        self._discard_at = 0.0
        self._path = path
        self._control = link.listen(path, socket.SOCK_SEQPACKET)
        self._inode = link.inode(path)
        self._watch(self._control, self._accept_peer)

    def run(self) -> None:
        """Guard until there is no tap and, the socket's file being gone, will never be one."""
        passed = beaten = time.monotonic()
        while self._linked() or link.inode(self._path) == self._inode:
            events = self._epoll.poll(self._patience())
            # A handler may close a descriptor that a later one reopens: act only for the same one.
            batch = [(fd, self._handlers.get(fd)) for fd, _ in events]
            for fd, handler in batch:
                if handler is not None and self._handlers.get(fd) is handler:
                    handler()
            now = time.monotonic()
            self._discard(now)
            self._judge(now - passed)
            passed = now
            if now - beaten >= BEAT_SECONDS:
                self._beat()
                beaten = now

    def _linked(self) -> list[GuardedTap]:
        return [tap for tap in self._taps.values() if tap.link is not None]

    def _patience(self) -> float:
        if self._ended:
            return DISCARD_SECONDS
        linked = self._linked()
        if not linked:
            return IDLE_SECONDS
        silence = max((tap.silence for tap in linked if tap.is_healthy), default=0.0)
        return max(0.005, min(PASS_SECONDS, STALE_SECONDS - silence))

    def _judge(self, elapsed: float) -> None:
        """Cut the taps that have been silent for too long.

        One pass counts for at most `COUNTED_SECONDS_MAX`: when we were late ourselves, the tap's
        heartbeats have waited with us, and this pass has just read them.
        """
        counted = min(elapsed, COUNTED_SECONDS_MAX)
        for tap in self._taps.values():
            if not tap.is_healthy:
                continue
            tap.silence += counted
            if tap.silence > STALE_SECONDS:
                tap.is_healthy = False
                self._cut(tap, "silent")

    def _cut(self, tap: GuardedTap, reason: str) -> None:
        if tap.connections:
            tap.cuts += 1
            log("connections_cut", item=tap.item, reason=reason, count=len(tap.connections))
        if not self._ended:
            self._discard_at = time.monotonic() + DISCARD_SECONDS
        for connection in list(tap.connections.values()):
            self._forget(connection)
            link.hang_up(connection)
            self._ended.append(connection)
        tap.connections.clear()

    def _discard(self, now: float) -> None:
        """Empty and close the connections that were cut a moment ago.

        Not at once: a tap that is only slow may be about to read, and must find either all of a
        request or, having seen the hang-up, not look for it.
        """
        if self._ended and now >= self._discard_at:
            for connection in self._ended:
                link.shut_down(connection)
            self._ended.clear()

    def _beat(self) -> None:
        for tap in self._taps.values():
            if tap.link is not None:
                with suppress(OSError):  # it does not read: it will not be heard either
                    tap.link.send(link.BEAT)

    # Peers: agents with a request, taps for good

    def _accept_peer(self) -> None:
        with suppress(OSError):
            peer, _ = self._control.accept()
            peer.setblocking(False)
            self._watch(peer, lambda: self._serve_peer(peer))

    def _serve_peer(self, peer: socket.socket) -> None:
        try:
            request, descriptors = link.receive(peer)
            for descriptor in descriptors:
                socket.close(descriptor)
            request = request or {}
            if request.get("op") == "tap":
                self._adopt(str(request["item"]), Path(str(request["path"])), peer)
            else:
                link.send(peer, self._answer(request))
        except BlockingIOError:
            return
        except (OSError, KeyError, link.LinkClosed):
            self._forget(peer)
            peer.close()

    def _answer(self, request: link.Message) -> link.Message:
        op, item = request.get("op"), str(request.get("item"))
        if op == "ping":
            return {}
        if op == "status":
            return {"taps": {t.item: _describe(t) for t in self._taps.values()}}
        if op == "open":
            tap = self._taps.setdefault(item, GuardedTap(item))
            try:
                self._listen(tap, Path(str(request["path"])))
            except OSError as error:
                return {"error": f"cannot listen: {error.strerror}"}
            return {}
        if op == "close":
            self._close_listener(item)
            return {}
        return {"error": "unknown request"}

    # Listeners and connections

    def _listen(self, tap: GuardedTap, path: Path) -> None:
        if tap.listener is not None and tap.path == path and path.exists():
            return
        self._drop_listener(tap)
        tap.path = path
        tap.listener = link.listen(path, socket.SOCK_STREAM)
        self._watch(tap.listener, lambda: self._accept_connection(tap))

    def _drop_listener(self, tap: GuardedTap) -> None:
        if tap.listener is not None:
            self._forget(tap.listener)
            tap.listener.close()
            tap.listener = None

    def _close_listener(self, item: str) -> None:
        tap = self._taps.get(item)
        if tap is None:
            return
        self._drop_listener(tap)
        if tap.path is not None:
            tap.path.unlink(missing_ok=True)
        if tap.link is None:
            del self._taps[item]

    def _accept_connection(self, tap: GuardedTap) -> None:
        """Guard a new connection and pass it on; end it at once if nobody healthy would answer."""
        if tap.listener is None:
            return
        try:
            connection, _ = tap.listener.accept()
        except OSError:
            return
        full = len(tap.connections) >= CONNECTIONS_MAX
        if tap.link is None or not tap.is_healthy or full:
            link.shut_down(connection)
            return
        self._hold(tap, connection)  # armed before the tap knows of it
        try:
            link.send(tap.link, {"op": "connection"}, [connection.fileno()])
        except OSError:
            self._release(tap, connection)
            link.shut_down(connection)

    def _hold(self, tap: GuardedTap, connection: socket.socket) -> None:
        tap.connections[connection.fileno()] = connection
        # Waits for nothing, so wakes up only when either side has ended the connection.
        self._watch(connection, lambda: self._drop_ended(tap, connection), events=0)

    def _drop_ended(self, tap: GuardedTap, connection: socket.socket) -> None:
        self._release(tap, connection)
        connection.close()

    def _release(self, tap: GuardedTap, connection: socket.socket) -> None:
        tap.connections.pop(connection.fileno(), None)
        self._forget(connection)

    # Taps

    def _adopt(self, item: str, path: Path, peer: socket.socket) -> None:
        """Make `peer` the tap of `item`; whoever was it before is cut."""
        tap = self._taps.setdefault(item, GuardedTap(item))
        if tap.link is not None:
            self._lose(tap, tap.link)
            tap = self._taps.setdefault(item, tap)
        tap.link, tap.silence, tap.is_healthy = peer, 0.0, True
        self._watch(peer, lambda: self._hear(tap, peer))
        self._listen(tap, path)
        peer.send(link.BEAT)
        log("tap_guarded", item=item)

    def _hear(self, tap: GuardedTap, peer: socket.socket) -> None:
        """Read what the tap has said, up to a heartbeat; what follows one wakes us again."""
        try:
            for _ in range(MESSAGES_PER_WAKE_MAX):
                message, descriptors = link.receive(peer)
                tap.silence, tap.is_healthy = 0.0, True
                if message is None and not descriptors:
                    return
                for descriptor in descriptors:
                    self._hold(tap, socket.socket(fileno=descriptor))
        except BlockingIOError:
            pass
        except link.LinkClosed:
            self._lose(tap, peer)

    def _lose(self, tap: GuardedTap, peer: socket.socket) -> None:
        self._forget(peer)
        peer.close()
        tap.link, tap.is_healthy = None, False
        self._cut(tap, "gone")
        if tap.listener is None:
            self._taps.pop(tap.item, None)

    def _watch(
        self, peer: socket.socket, handler: Callable[[], None], events: int = select.EPOLLIN
    ) -> None:
        if peer.fileno() in self._handlers:
            self._epoll.modify(peer.fileno(), events)
        else:
            self._epoll.register(peer.fileno(), events)
        self._handlers[peer.fileno()] = handler

    def _forget(self, peer: socket.socket) -> None:
        if self._handlers.pop(peer.fileno(), None) is not None:
            self._epoll.unregister(peer.fileno())


def _describe(tap: GuardedTap) -> dict[str, object]:
    return {
        "is_healthy": tap.is_healthy,
        "connections": len(tap.connections),
        "cuts": tap.cuts,
        "listening": tap.listener is not None,
    }


def main() -> None:
    """Run the watchdog that the configuration file named on the command line describes."""
    link.raise_priority()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    Watchdog(Path(json.loads(Path(sys.argv[1]).read_text())["socket"])).run()


if __name__ == "__main__":
    main()

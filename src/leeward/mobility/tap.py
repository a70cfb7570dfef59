"""The tap: a process that receives one VM's writes into shared memory and does nothing else.

Owns: the loop over the VM's connections, breaking all of them together, back-pressure, answers to
the agent. Must not know: QEMU's job, compression, networks, disks. Standard library only: there is
one such process per protected VM. Run as `python -m leeward.mobility.tap CONFIG.json`.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from leeward.mobility import link
from leeward.mobility.connection import Connection, Gone, OutOfRoom
from leeward.mobility.events import log
from leeward.mobility.guard import Guard
from leeward.mobility.handshake import Malformed
from leeward.mobility.journal_writer import FLAG_FROZEN, KIND_MARK, JournalWriter

BEAT_SECONDS = 0.2
UNGUARDED_SECONDS_MAX = 3.0
HANDSHAKE_SECONDS_MAX = 5.0
HANDSHAKES_MAX = 64
CONTROLS_MAX = 16
IDLE_SECONDS = 5.0
TRIM_SECONDS = 1.0
WARM_BUFFERS = 4
LATE_SECONDS = 1.0
HOLD_SECONDS_MAX = 0.3
"""Longest hold: a guest's write waits for no longer, whoever forgot to release it."""
_NEVER = float("inf")


class Tap:
    """One VM's tap: a journal, the connections of its disks, an agent, a watchdog."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._disks = tuple((str(name), int(size)) for name, size in config["disks"])
        self._journal = JournalWriter(
            Path(config["journal"]),
            instance=int(config["instance"]),
            buffer_bytes=int(config["buffer_bytes"]),
            buffer_count=int(config["buffer_count"]),
            disks=self._disks,
        )
        self._epoll = select.epoll()
        self._serving: dict[int, Connection] = {}
        self._greeting: dict[int, Connection] = {}
        self._controls: dict[int, socket.socket] = {}
        self._control_path = Path(config["control"])
        self._control = link.listen(self._control_path, socket.SOCK_SEQPACKET)
        self._control_inode = link.inode(self._control_path)
        self._epoll.register(self._control.fileno(), select.EPOLLIN)
        self._guard = Guard(
            Path(config["watchdog"]), item=str(config["item"]), nbd_path=str(config["nbd"])
        )
        self._stopping = False
        self._detached_reason = ""
        self._last_break = ""
        self._breaks = 0
        self._marks = 0
        self._held_mark = 0
        self._hold_until = _NEVER
        self._holder: socket.socket | None = None
        self._idle_since = self._ticked = self._trimmed = time.monotonic()
        self._idle_position = 0

    def run(self) -> None:
        """Serve until the agent says shutdown, or cannot say anything any more."""
        poll, serving, clock = self._epoll.poll, self._serving, time.monotonic
        next_tick = clock()
        while not self._stopping:
            others = []
            for fd, events in poll(max(0.0, min(next_tick, self._hold_until) - clock())):
                connection = serving.get(fd)
                if connection is None:
                    others.append((fd, events))
                    continue
                try:
                    connection.handle(events)
                except (OSError, Gone, Malformed, OutOfRoom) as error:
                    self._end(connection, error)
            # Handlers that open descriptors come last, so that an event meant for a descriptor
            # closed above never reaches a newer one of the same number.
            for fd, events in sorted(others, key=self._opens_descriptors):
                self._handle_other(fd, events)
            now = clock()
            if now >= self._hold_until:
                self._end_hold("nobody released it")
            if now >= next_tick:
                self._tick(now)
                next_tick = now + BEAT_SECONDS
        self._break("tap was shut down")
        self._journal.close()

    def _opens_descriptors(self, event: tuple[int, int]) -> bool:
        return event[0] not in self._greeting and event[0] not in self._controls

    def _handle_other(self, fd: int, events: int) -> None:
        guard = self._guard.socket
        if fd in self._greeting:
            self._greet(self._greeting[fd], events)
        elif guard is not None and fd == guard.fileno():
            self._receive_connections()
        elif fd in self._controls:
            self._answer_control(self._controls[fd])
        elif fd == self._control.fileno():
            self._accept_control()

    # Connections

    def _receive_connections(self) -> None:
        try:
            arrivals = self._guard.take_arrivals()
        except link.LinkClosed:
            self._guard.close()
            return
        for arrival in arrivals:
            if self._detached_reason or len(self._greeting) >= HANDSHAKES_MAX:
                link.shut_down(arrival)
                continue
            try:
                connection = Connection(arrival, self._disks, self._journal, self._epoll)
            except OSError:
                link.shut_down(arrival)
            else:
                self._greeting[arrival.fileno()] = connection

    def _greet(self, connection: Connection, events: int) -> None:
        self._end_hold("a connection came")  # its first writes would be acknowledged
        fd = connection.socket.fileno()
        try:
            connection.handle(events)
        except (OSError, Gone, Malformed, OutOfRoom) as error:
            self._end(connection, error)
            return
        if connection.disk is None:
            return
        if self._detached_reason:  # since it was accepted
            self._end(connection, OutOfRoom(self._detached_reason))
            return
        del self._greeting[fd]
        if any(other.disk == connection.disk for other in self._serving.values()):
            self._break("a newer connection took the disk over")
        self._serving[fd] = connection
        log("connected", disk=self._disks[connection.disk][0], position=self._journal.position)

    def _end(self, connection: Connection, error: Exception) -> None:
        """Close one connection, and all others of the VM unless it ended politely.

        A prefix of the stream is only consistent while no disk of the VM is missing from it.
        """
        fd = connection.socket.fileno()
        self._serving.pop(fd, None)
        self._greeting.pop(fd, None)
        connection.close()
        if isinstance(error, OutOfRoom):
            self._detached_reason = str(error)
        if connection.disk is None:
            return
        self._end_hold("a connection ended")
        disk = self._disks[connection.disk][0]
        if isinstance(error, Gone) and error.politely:
            log("disconnected", disk=disk, position=self._journal.position)
            return
        self._break(f"{disk}: {error}")

    def _break(self, reason: str) -> None:
        self._breaks += 1
        self._last_break = reason
        for connection in list(self._serving.values()):
            connection.close()
        self._serving.clear()
        self._end_hold(reason)
        log("connections_broken", reason=reason, position=self._journal.position)

    # Holding acknowledgements

    def _begin_hold(self, holder: socket.socket) -> link.Message:
        """Mark the stream, and from the mark on acknowledge nothing until the hold ends."""
        if self._hold_until != _NEVER:
            return {"error": "it holds already"}
        marked = self._mark()
        if "error" not in marked:
            for connection in self._serving.values():
                connection.pause()
            self._held_mark, self._holder = self._marks, holder
            self._hold_until = time.monotonic() + HOLD_SECONDS_MAX
        return marked

    def _finish_hold(self, mark_id: object) -> link.Message:
        """End the hold that began with that mark and say whether it has lasted until now."""
        is_held = mark_id == self._held_mark and time.monotonic() < self._hold_until != _NEVER
        self._end_hold("" if is_held else "it was released late")
        return {"is_held": is_held}

    def _end_hold(self, problem: str) -> None:
        """Acknowledge again. Idempotent. problem: why nobody may count on the hold, "" if all may;
        whoever ends it later is told that it did not last."""
        if self._hold_until == _NEVER:
            return
        self._hold_until, self._holder = _NEVER, None
        for connection in self._serving.values():
            connection.go_on()
        if problem:
            log("hold_void", reason=problem, position=self._journal.position)

    # Time

    def _tick(self, now: float) -> None:
        if now - self._ticked > LATE_SECONDS:
            self._guard.excuse(now)
        self._ticked = now
        self._stay_guarded(now)
        for connection in list(self._greeting.values()):
            if now - connection.opened > HANDSHAKE_SECONDS_MAX:
                self._end(connection, Malformed("handshake took too long"))
        if self._detached_reason and self._has_room():
            log("accepting_again", position=self._journal.position)
            self._detached_reason = ""
        if now - self._trimmed >= TRIM_SECONDS:
            self._trimmed = now
            self._save_memory(now)
            self._stop_if_lost()

    def _stay_guarded(self, now: float) -> None:
        if self._guard.socket is None:
            held = [c.socket for c in (*self._serving.values(), *self._greeting.values())]
            if self._guard.connect(held) and self._guard.socket is not None:
                self._epoll.register(self._guard.socket.fileno(), select.EPOLLIN)
        self._guard.beat()
        unguarded = self._guard.silent_seconds(now) > UNGUARDED_SECONDS_MAX
        if unguarded and (self._serving or self._greeting):
            # With nobody to cut us off, our next hang would freeze the guest for as long as it
            # lasts. Replication can be resumed later; a frozen guest cannot be made good.
            for connection in list(self._greeting.values()):
                self._end(connection, Malformed("no watchdog"))
            if self._serving:
                self._break("no watchdog")

    def _has_room(self) -> bool:
        journal = self._journal
        used = journal.position - journal.released
        return journal.free_buffers * 2 >= journal.buffer_count and used * 2 <= journal.capacity

    def _save_memory(self, now: float) -> None:
        """Give memory back that a burst, or an idle VM, has left unused."""
        journal = self._journal
        if journal.position != self._idle_position:
            self._idle_position, self._idle_since = journal.position, now
        is_idle = now - self._idle_since > IDLE_SECONDS
        journal.trim(keep=0 if is_idle else WARM_BUFFERS)
        if is_idle and journal.released == journal.position:
            for connection in self._serving.values():
                connection.rest()

    def _stop_if_lost(self) -> None:
        """End a tap that no guest uses and no agent can find again: its directory is gone."""
        if not self._serving and link.inode(self._control_path) != self._control_inode:
            log("stopping_unreachable")
            self._stopping = True

    # The agent

    def _accept_control(self) -> None:
        with suppress(BlockingIOError):
            control, _ = self._control.accept()
            if len(self._controls) >= CONTROLS_MAX:
                control.close()
                return
            control.setblocking(False)
            self._controls[control.fileno()] = control
            self._epoll.register(control.fileno(), select.EPOLLIN)

    def _answer_control(self, control: socket.socket) -> None:
        try:
            request, descriptors = link.receive(control)
            for descriptor in descriptors:
                socket.close(descriptor)
            link.send(control, self._answer(request or {}, control))
        except BlockingIOError:
            return
        except (OSError, link.LinkClosed):
            if control is self._holder:
                self._end_hold("its holder is gone")
            del self._controls[control.fileno()]
            control.close()

    def _answer(self, request: link.Message, control: socket.socket) -> link.Message:
        if request.get("op") == "mark":
            return self._mark(FLAG_FROZEN if request.get("is_frozen") else 0)
        if request.get("op") == "hold":
            return self._begin_hold(control)
        if request.get("op") == "end_hold":
            return self._finish_hold(request.get("mark_id"))
        if request.get("op") == "status":
            return self._status()
        if request.get("op") == "shutdown":
            self._stopping = True
            return {}
        return {"error": "unknown request"}

    def _mark(self, flags: int = 0) -> link.Message:
        position, time_ns = self._journal.position, time.time_ns()
        mark_id = self._marks + 1
        if not self._journal.append(
            KIND_MARK, disk=0, length=0, offset=mark_id, time_ns=time_ns, flags=flags
        ):
            return {"error": "no free index records"}
        self._marks = mark_id
        return {
            "position": position,
            "time_ns": time_ns,
            "mark_id": mark_id,
            "instance": self._journal.instance,
        }

    def _status(self) -> link.Message:
        disks = {c.disk for c in self._serving.values() if c.disk is not None}
        return {
            "position": self._journal.position,
            "released": self._journal.released,
            "connected": sorted(self._disks[disk][0] for disk in disks),
            "free_buffers": self._journal.free_buffers,
            "breaks": self._breaks,
            "last_break": self._last_break,
            "detached_reason": self._detached_reason,
            "guarded": self._guard.is_present,
        }


def main() -> None:
    """Run the tap that the configuration file named on the command line describes."""
    link.raise_priority()
    Tap(json.loads(Path(sys.argv[1]).read_text())).run()


if __name__ == "__main__":
    main()

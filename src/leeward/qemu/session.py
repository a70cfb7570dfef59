"""One QMP connection to a QEMU or a qemu-storage-daemon, for threads.

Owns: the background event loop, time limits, translation of qemu.qmp's errors into ours. Must not
know: what any command means. Sits under everything that talks to a hypervisor process.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import QMPClient, QMPError, Runstate
from qemu.qmp.message import Message
from qemu.qmp.qmp_client import ExecuteError

from leeward.core.errors import HypervisorRefused, LeewardError, Unavailable
from leeward.observability.log import get_logger

T = TypeVar("T")
EventCallback = Callable[[dict[str, Any]], None]
EventPredicate = Callable[[dict[str, Any]], bool]

CLOSE_SECONDS = 2.0
EVENTS_WAITING_MAX = 4096
"""Events one ExpectedEvent keeps; older ones are dropped when nobody fetches them."""

_log = get_logger()
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)
# qemu.qmp logs every failure it also raises; ours is the one place that reports it.

_loop_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None
_loop_thread: threading.Thread | None = None


def _event_loop() -> asyncio.AbstractEventLoop:
    """Return the running loop that all sessions of this process share."""
    global _loop, _loop_thread
    with _loop_lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            _loop_thread = threading.Thread(target=_loop.run_forever, name="qmp", daemon=True)
            _loop_thread.start()
        return _loop


def _on_loop(work: Coroutine[Any, Any, T], timeout_seconds: float) -> T:
    """Return what `work` returns on the shared loop. Raises: TimeoutError, or what `work` raises.

    The inner limit cancels the work; the outer one is only for a loop that no longer turns.
    """
    if threading.current_thread() is _loop_thread:
        work.close()
        raise LeewardError("a QMP event callback may not call QMP itself: it runs on the loop")
    bounded = asyncio.wait_for(work, timeout_seconds)
    future = asyncio.run_coroutine_threadsafe(bounded, _event_loop())
    try:
        return future.result(timeout_seconds + CLOSE_SECONDS)
    except FutureTimeoutError:
        future.cancel()
        raise TimeoutError from None


class _Client(QMPClient):
    """A QMPClient that hands events on at once; the stock one keeps every event for ever."""

    def __init__(self, deliver: Callable[[dict[str, Any]], None]) -> None:
        super().__init__()
        self._deliver = deliver

    async def _event_dispatch(self, msg: Message) -> None:
        self._deliver(dict(msg))

    async def hang_up(self) -> None:
        """Drop the connection without waiting for anything still to be written."""
        if self._writer is not None:
            self._writer.transport.abort()


class ExpectedEvent:
    """Events of one name seen since `QmpSession.expect` began, fetched one at a time."""

    def __init__(self, name: str, predicate: EventPredicate | None) -> None:
        self._name = name
        self._predicate = predicate
        self._seen: queue.Queue[dict[str, Any] | None] = queue.Queue(EVENTS_WAITING_MAX)

    def offer(self, event: dict[str, Any] | None) -> None:
        """Keep the event if it is one of ours; None says that the connection has ended."""
        ours = event is None or event.get("event") == self._name
        if event is not None and ours and self._predicate is not None:
            ours = self._predicate(event)
        if ours:
            with suppress(queue.Full):
                self._seen.put_nowait(event)

    def wait(self, *, timeout_seconds: float) -> dict[str, Any]:
        """Return the next such event. Raises: Unavailable on time-out or a lost connection."""
        try:
            event = self._seen.get(timeout=timeout_seconds)
        except queue.Empty:
            raise Unavailable(
                f"QEMU did not send {self._name} within {timeout_seconds:g} s"
            ) from None
        if event is None:
            self.offer(None)  # whoever asks again learns the same
            raise Unavailable(f"QEMU went away before it sent {self._name}")
        return event


class QmpSession:
    """An established QMP connection. Thread-safe; commands of several threads interleave.

    The socket is close-on-exec: no child process inherits it, for QEMU serves one client per
    socket and would stay deaf to a successor for as long as that child lives.
    """

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path
        self._client = _Client(self._deliver)
        self._callbacks: tuple[EventCallback, ...] = ()
        self._expected: tuple[ExpectedEvent, ...] = ()
        self._lock = threading.Lock()
        self._ended = threading.Event()

    @classmethod
    def connect(cls, socket_path: Path, *, timeout_seconds: float = 5.0) -> QmpSession:
        """Return a session with capabilities negotiated.

        Raises: Unavailable when nobody listens, or somebody else holds the monitor (QEMU then
        accepts and never greets).
        """
        session = cls(socket_path)
        try:
            _on_loop(session._open(), timeout_seconds)
        except TimeoutError:
            raise Unavailable(
                f"QEMU does not answer on {socket_path}",
                hint="only one client at a time can use a QMP socket",
            ) from None
        except (QMPError, OSError) as error:
            raise Unavailable(f"cannot reach QEMU on {socket_path}: {_reason(error)}") from error
        return session

    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout_seconds: float = 10.0,
    ) -> Any:
        """Return what QEMU returns for `command`.

        Raises: HypervisorRefused with QEMU's own sentence; Unavailable when the connection is gone
        or no answer came in time (the command may then still be carried out, or hang).
        """
        try:
            return _on_loop(self._client.execute(command, arguments), timeout_seconds)
        except TimeoutError:
            raise Unavailable(
                f"QEMU did not answer {command} within {timeout_seconds:g} s"
            ) from None
        except ExecuteError as error:
            raise HypervisorRefused(f"{command}: {error}") from error
        except (QMPError, OSError, EOFError) as error:
            raise Unavailable(f"QEMU went away during {command}: {_reason(error)}") from error

    def transaction(
        self, actions: Sequence[dict[str, object]], *, timeout_seconds: float = 10.0
    ) -> None:
        """Carry out all `actions` at one point in time, with nothing in flight, or none of them."""
        self.execute("transaction", {"actions": list(actions)}, timeout_seconds=timeout_seconds)

    def subscribe(self, callback: EventCallback) -> None:
        """Call `callback` with every event from now on, on the loop's thread: it must not block."""
        with self._lock:
            self._callbacks = (*self._callbacks, callback)

    def unsubscribe(self, callback: EventCallback) -> None:
        """Call `callback` no more. Idempotent."""
        with self._lock:
            self._callbacks = tuple(known for known in self._callbacks if known != callback)

    @contextmanager
    def expect(self, name: str, predicate: EventPredicate | None = None) -> Iterator[ExpectedEvent]:
        """Collect events `name` from here on, so that none is missed between cause and wait."""
        expected = ExpectedEvent(name, predicate)
        with self._lock:
            self._expected = (*self._expected, expected)
        if self._ended.is_set():
            expected.offer(None)
        try:
            yield expected
        finally:
            with self._lock:
                self._expected = tuple(known for known in self._expected if known is not expected)

    def wait_event(
        self, name: str, predicate: EventPredicate | None = None, *, timeout_seconds: float
    ) -> dict[str, Any]:
        """Return the first event `name` that arrives after this call begins; see `expect`."""
        with self.expect(name, predicate) as expected:
            return expected.wait(timeout_seconds=timeout_seconds)

    @property
    def is_connected(self) -> bool:
        """True until the connection is closed by either side."""
        return not self._ended.is_set()

    def close(self) -> None:
        """Make the connection closed, whatever state QEMU is in. Idempotent."""
        with suppress(TimeoutError, QMPError, OSError, EOFError):
            _on_loop(self._client.hang_up(), CLOSE_SECONDS)
        self._ended.wait(CLOSE_SECONDS)

    async def _open(self) -> None:
        await self._client.connect(str(self._path))
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        """Collect the end of the connection, so that it is known at once and nothing leaks."""
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()
        with suppress(QMPError, OSError, EOFError, AssertionError):
            await self._client.disconnect()
        self._ended.set()
        for expected in self._expected:
            expected.offer(None)

    def _deliver(self, event: dict[str, Any]) -> None:
        for expected in self._expected:
            expected.offer(event)
        for callback in self._callbacks:
            try:
                callback(event)
            except Exception:  # a broken listener must not end the connection for all others
                _log.exception("qmp_callback_failed", qmp_event=event.get("event"))


def _reason(error: BaseException) -> str:
    cause = error.__cause__ or error
    return str(cause) or type(cause).__name__

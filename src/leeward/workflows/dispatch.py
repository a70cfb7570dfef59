"""Commands to nodes: queued in the vault, delivered by long poll, answered once.

Owns: delivery, re-delivery and waiting. Must not know: what commands are for. Between the verbs and
the node routes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass

from leeward.core.clock import Clock
from leeward.core.errors import LeewardError, Unavailable, error_from_code
from leeward.protocol.messages import Command, CommandResult, Verb
from leeward.vault.nodes import NodeRecord
from leeward.vault.records import Records, VaultStore
from leeward.workflows.live import LiveState
from leeward.workflows.signals import Signals

REDELIVER_SECONDS = 2.0
"""A node that did not answer a command within this gets it again: the reply may have been lost, or
the node restarted. One that still works on it ignores the repetition."""
NODE_SILENT_SECONDS = 15.0
"""A command to a node not heard for longer is given up."""
_LOOK_SECONDS = 1.0


class Outdated(Exception):
    """What an order was made from has changed before it was queued. Make it anew."""


def _always(_: Records) -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One command to be sent: to whom, what, and with which arguments (plain JSON)."""

    node: NodeRecord
    verb: Verb
    arguments: dict[str, object]
    key: str = ""
    """Tells apart orders of one step with the same verb to the same node."""
    holds: Callable[[Records], bool] = _always
    """Whether it follows from these records too. Asked in the transaction that queues it: nodes get
    their commands in the order in which they were queued."""


class Dispatch:
    """Thread-safe."""

    def __init__(self, vault: VaultStore, signals: Signals, live: LiveState, clock: Clock) -> None:
        self._vault = vault
        self._signals = signals
        self._live = live
        self._clock = clock
        self._lock = threading.Lock()
        self._delivered: dict[str, float] = {}

    # --- for the verbs

    def send(self, orders: list[Order], *, job_id: str, step: str) -> list[str]:
        """Return the ids of the orders' commands, queued. Idempotent: ids follow from job, step and
        order. Raises: Outdated; then none is queued."""
        ids = [_command_id(order, job_id, step) for order in orders]
        with self._vault.write() as records:
            for command_id, order in zip(ids, orders, strict=True):
                if records.commands.find(command_id) is not None:
                    continue
                if not order.holds(records):
                    raise Outdated
                records.commands.enqueue(
                    Command(id=command_id, verb=order.verb, arguments=order.arguments),
                    node_id=order.node.id,
                    job_id=job_id,
                    now_ns=self._clock.now_ns(),
                )
        for order in orders:
            self._signals.notify(_node_key(order.node.id))
        return ids

    def wait_answer(
        self,
        command_id: str,
        node: NodeRecord,
        *,
        timeout_seconds: float,
        check: Callable[[], None],
        keep: bool = False,
    ) -> dict[str, object]:
        """Return the result of the command once it is answered.

        check: called now and then; raises to stop waiting. A command given up is withdrawn, or with
        `keep` stays queued until its node comes back. Raises: the error the node answered with;
        Unavailable when the node is silent or takes too long.
        """
        deadline = self._clock.monotonic() + timeout_seconds
        try:
            with self._signals.listen(_command_key(command_id)) as listener:
                while (answer := self._answer(command_id)) is None:
                    check()
                    self._check_alive(node, deadline)
                    listener.wait(_LOOK_SECONDS)
        except LeewardError:
            if not keep:
                self.withdraw([command_id])
            raise
        if not answer.ok:
            raise error_from_code(
                answer.error_code, f"{node.label}: {answer.error}", hint=answer.error_hint or None
            )
        return answer.result

    def withdraw(self, command_ids: list[str]) -> None:
        """Those of the commands that nobody answered are not delivered any more."""
        with self._vault.write() as records:
            for command_id in command_ids:
                records.commands.withdraw(command_id, now_ns=self._clock.now_ns())

    # --- for the node routes

    async def wait_commands(self, node_id: str, seconds: float) -> list[Command]:
        """Return the node's unanswered commands, oldest first: at once if one is new or due to be
        delivered again, else when there is one, at the latest after `seconds`."""
        deadline = self._clock.monotonic() + seconds
        with self._signals.listen_async(_node_key(node_id)) as signalled:
            while True:
                signalled.clear()
                commands = await asyncio.to_thread(self._open_commands, node_id)
                left = deadline - self._clock.monotonic()
                if left <= 0 or self._signals.is_closed or self._is_due(commands):
                    self._note_delivery(commands)
                    return commands
                if commands:
                    left = min(left, REDELIVER_SECONDS / 4)
                try:
                    await asyncio.wait_for(signalled.wait(), left)
                except TimeoutError:
                    continue

    def answer(self, node_id: str, result: CommandResult) -> None:
        """The command is answered; who waits for it knows. Repeated answers change nothing.

        Raises: NotFound.
        """
        with self._vault.write() as records:
            records.commands.answer(result, node_id=node_id, now_ns=self._clock.now_ns())
        with self._lock:
            self._delivered.pop(result.command_id, None)
        self._signals.notify(_command_key(result.command_id))

    # ---

    def _answer(self, command_id: str) -> CommandResult | None:
        with self._vault.read() as records:
            record = records.commands.find(command_id)
        return record.answer if record else None

    def _check_alive(self, node: NodeRecord, deadline: float) -> None:
        if self._live.silent_seconds(node.id) > NODE_SILENT_SECONDS:
            raise Unavailable(
                f"{node.label} does not answer", hint="start it again, then repeat this"
            )
        if self._clock.monotonic() > deadline:
            raise Unavailable(f"{node.label} took too long")

    def _open_commands(self, node_id: str) -> list[Command]:
        with self._vault.read() as records:
            return records.commands.open_for(node_id)

    def _is_due(self, commands: list[Command]) -> bool:
        now = self._clock.monotonic()
        with self._lock:
            return any(
                now - self._delivered.get(command.id, float("-inf")) >= REDELIVER_SECONDS
                for command in commands
            )

    def _note_delivery(self, commands: list[Command]) -> None:
        now = self._clock.monotonic()
        with self._lock:
            for command in commands:
                self._delivered[command.id] = now


def _command_id(order: Order, job_id: str, step: str) -> str:
    parts = [job_id, step, order.verb.value, order.node.id, order.key]
    return ".".join(part for part in parts if part)


def _node_key(node_id: str) -> str:
    return f"node:{node_id}"


def _command_key(command_id: str) -> str:
    return f"command:{command_id}"

"""Commands queued for nodes and their answers.

Owns: that a command exists once and is answered once. Must not know: delivery, waiting.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from leeward.core.codec import from_plain, to_plain
from leeward.core.errors import NotFound
from leeward.protocol.messages import Command, CommandResult, Verb
from leeward.vault.tables import commands

WITHDRAWN = "withdrawn"
"""Error code of a command taken back before it was answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRecord:
    """A command, whom it is for, and its answer if there is one."""

    command: Command
    node_id: str
    job_id: str
    created_ns: int
    answer: CommandResult | None


class CommandStore:
    """The rows of one transaction."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def enqueue(self, command: Command, *, node_id: str, job_id: str, now_ns: int) -> bool:
        """The command is queued for the node; say whether it was not before (same id)."""
        if self.find(command.id) is not None:
            return False
        self._connection.execute(
            commands.insert().values(
                id=command.id,
                node_id=node_id,
                job_id=job_id,
                verb=command.verb.value,
                arguments=command.arguments,
                created_ns=now_ns,
                answered_ns=0,
                result=None,
            )
        )
        return True

    def find(self, command_id: str) -> CommandRecord | None:
        """Return the command, or None."""
        row = self._connection.execute(
            sa.select(commands).where(commands.c.id == command_id)
        ).one_or_none()
        return None if row is None else _record(row)

    def open_for(self, node_id: str, *, limit: int = 200) -> list[Command]:
        """Return the node's unanswered commands, oldest first."""
        rows = self._connection.execute(
            sa.select(commands)
            .where(commands.c.node_id == node_id, commands.c.answered_ns == 0)
            .order_by(commands.c.sequence)
            .limit(limit)
        )
        return [_record(row).command for row in rows]

    def of_job(self, job_id: str) -> list[CommandRecord]:
        """Return the commands of a job, oldest first."""
        rows = self._connection.execute(
            sa.select(commands).where(commands.c.job_id == job_id).order_by(commands.c.sequence)
        )
        return [_record(row) for row in rows]

    def newest_about(
        self, node_id: str, verbs: tuple[Verb, ...], vm_id: str
    ) -> CommandRecord | None:
        """Return the last command with one of these verbs that the node got about a VM, or None."""
        rows = self._connection.execute(
            sa.select(commands)
            .where(
                commands.c.node_id == node_id,
                commands.c.verb.in_([verb.value for verb in verbs]),
            )
            .order_by(commands.c.sequence.desc())
        )
        for row in rows:
            vm = row.arguments.get("vm", row.arguments)
            if vm.get("vm_id") == vm_id:
                return _record(row)
        return None

    def answer(self, result: CommandResult, *, node_id: str, now_ns: int) -> bool:
        """The command is answered; say whether it was not before. The first answer stands.

        Raises: NotFound when the node has no such command.
        """
        record = self.find(result.command_id)
        if record is None or record.node_id != node_id:
            raise NotFound(f"there is no command {result.command_id} for this node")
        return self._settle(result, now_ns)

    def withdraw(self, command_id: str, *, now_ns: int) -> None:
        """The command, if nobody answered it, is not delivered again."""
        self._settle(
            CommandResult(
                command_id=command_id, ok=False, error_code=WITHDRAWN, error="taken back"
            ),
            now_ns,
        )

    def purge(self, *, answered_before_ns: int) -> None:
        """Commands answered before that are gone."""
        self._connection.execute(
            commands.delete().where(
                commands.c.answered_ns > 0, commands.c.answered_ns < answered_before_ns
            )
        )

    def delete_of(self, node_id: str) -> None:
        """The node's commands, answered or not, are gone."""
        self._connection.execute(commands.delete().where(commands.c.node_id == node_id))

    def _settle(self, result: CommandResult, now_ns: int) -> bool:
        changed = self._connection.execute(
            commands.update()
            .where(commands.c.id == result.command_id, commands.c.answered_ns == 0)
            .values(answered_ns=now_ns, result=to_plain(result))
        )
        return changed.rowcount == 1


def _record(row: sa.Row[tuple[object, ...]]) -> CommandRecord:
    return CommandRecord(
        command=Command(id=row.id, verb=Verb(row.verb), arguments=row.arguments),
        node_id=row.node_id,
        job_id=row.job_id,
        created_ns=row.created_ns,
        answer=None if row.result is None else from_plain(row.result, CommandResult),
    )

"""The vault: every durable record of the control plane, in transactions.

Owns: putting the stores of one transaction together. Must not know: what callers decide with them.
Under workflows and api; the only way to the database.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from leeward.vault.commands import CommandStore
from leeward.vault.database import Database
from leeward.vault.events import EventStore
from leeward.vault.items import ItemStore, PointStore
from leeward.vault.jobs import JobStore
from leeward.vault.nodes import NodeStore
from leeward.vault.resources import ResourceStore
from leeward.vault.tables import installation

_INSTALLATION_ID = "id"


class Records:
    """The stores of one transaction; all see and change one consistent state."""

    def __init__(self, connection: sa.Connection) -> None:
        self.resources = ResourceStore(connection)
        self.nodes = NodeStore(connection)
        self.commands = CommandStore(connection)
        self.jobs = JobStore(connection)
        self.items = ItemStore(connection)
        self.points = PointStore(connection)
        self.events = EventStore(connection)


class VaultStore:
    """All records. Thread-safe. Open it once per process."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def open(cls, url: str) -> VaultStore:
        """Return the vault at a database URL, its schema brought up to date.

        Raises: InvalidRequest (unusable URL, newer schema), Unavailable.
        """
        database = Database(url)
        try:
            database.migrate()
        except BaseException:
            database.close()
            raise
        return cls(database)

    @contextmanager
    def read(self) -> Iterator[Records]:
        """Give the records as they are at one moment. Raises: Unavailable."""
        with self._database.read() as connection:
            yield Records(connection)

    @contextmanager
    def write(self) -> Iterator[Records]:
        """Give the records to change: durable when the block ends, undone if it raises.

        Writers take turns; keep the block short. Raises: Unavailable, Conflict.
        """
        with self._database.write() as connection:
            yield Records(connection)

    def installation_id(self) -> str:
        """Return 12 hex digits that tell this installation from others on the same machine."""
        with self._database.write() as connection:
            query = sa.select(installation.c.value).where(installation.c.key == _INSTALLATION_ID)
            known = connection.execute(query).scalar_one_or_none()
            if known is None:
                known = secrets.token_hex(6)
                connection.execute(installation.insert().values(key=_INSTALLATION_ID, value=known))
            return str(known)

    def close(self) -> None:
        """No connection is open."""
        self._database.close()

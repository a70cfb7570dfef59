"""The database under the vault: connections, transactions, migrations.

Owns: SQLite's settings, who may write when, and translating SQLAlchemy's exceptions. Must not know:
what the tables mean.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.pool import ConnectionPoolEntry

from leeward.core.errors import Conflict, InvalidRequest, Unavailable

_BUSY_MILLISECONDS = 5000
_CONNECTIONS = 10
_CONNECTIONS_EXTRA = 40
_WRITE_OPTION = "leeward_write"


class Database:
    """One engine. Thread-safe; a transaction belongs to the thread that opened it."""

    def __init__(self, url: str) -> None:
        try:
            self._engine = sa.create_engine(
                url, pool_size=_CONNECTIONS, max_overflow=_CONNECTIONS_EXTRA, pool_timeout=10
            )
        except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ModuleNotFoundError) as error:
            raise InvalidRequest(
                f"the vault's database URL cannot be used: {error}", field="service.database_url"
            ) from error
        self._is_sqlite = self._engine.dialect.name == "sqlite"
        # SQLite has one writer: queueing for it here is fair and wakes at once, where SQLite's own
        # busy handler sleeps up to 100 ms at a time.
        self._writing = threading.Lock() if self._is_sqlite else nullcontext()
        if self._is_sqlite:
            sa.event.listen(self._engine, "connect", _prepare_sqlite)
            sa.event.listen(self._engine, "begin", _begin_sqlite)

    def migrate(self) -> None:
        """The schema is this release's. Raises: InvalidRequest when a newer release wrote it."""
        config = Config()
        config.set_main_option("script_location", "leeward.vault:migrations")
        with self.write() as connection:
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise InvalidRequest(
                    f"the vault database cannot be used by this release: {error}",
                    hint="it was written by a newer Leeward",
                ) from error

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Give a connection that sees one consistent state. Raises: Unavailable."""
        with _translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """Give a connection whose changes are durable when the block ends, and undone if it raises.

        Raises: Unavailable; Conflict when a row that must be unique is there already.
        """
        with _translated(), self._writing, self._engine.connect() as connection:
            writer = connection.execution_options(**{_WRITE_OPTION: True})
            with writer.begin():
                yield writer

    def close(self) -> None:
        """No connection is open."""
        self._engine.dispose()


def sqlite_url(path: Path) -> str:
    """Return the URL of an SQLite database file; its directory exists afterwards (0700)."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return f"sqlite:///{path.absolute()}"


def _prepare_sqlite(connection: Any, entry: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # transactions are begun below, not guessed by the driver
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {_BUSY_MILLISECONDS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A reader that turns writer can deadlock with another one: writers say so from the start.
    is_write = connection.get_execution_options().get(_WRITE_OPTION, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN DEFERRED")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except sa.exc.IntegrityError as error:
        raise Conflict(f"the vault refuses: {error.orig}") from error
    except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
        cause = getattr(error, "orig", None) or error
        raise Unavailable(f"the vault database cannot be used: {cause}") from error

"""Migrations, transactions, and what becomes of database errors."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from leeward.core.errors import Conflict, InvalidRequest, Unavailable
from leeward.model.resources import Region
from leeward.vault.database import Database, sqlite_url
from leeward.vault.records import VaultStore
from leeward.vault.tables import metadata


@pytest.fixture
def url(tmp_path: Path) -> str:
    return sqlite_url(tmp_path / "service" / "vault.sqlite")


@pytest.fixture
def vault(url: str) -> Iterator[VaultStore]:
    store = VaultStore.open(url)
    yield store
    store.close()


def test_migrations_lead_to_the_tables(url: str) -> None:
    database = Database(url)
    database.migrate()
    database.migrate()
    with database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    database.close()


def test_a_database_of_a_newer_release_is_refused(url: str) -> None:
    VaultStore.open(url).close()
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(InvalidRequest, match="newer Leeward"):
        VaultStore.open(url)


def test_writes_are_durable_in_the_log_and_keys_are_enforced(vault: VaultStore, url: str) -> None:
    database = Database(url)
    with database.read() as connection:
        pragmas = {
            name: connection.execute(sa.text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    database.close()
    assert pragmas == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "busy_timeout": 5000,
    }


def test_a_block_that_raises_changes_nothing(vault: VaultStore) -> None:
    def write() -> None:
        with vault.write() as records:
            records.resources.insert(Region(name="east"), scope="", name="east")
            raise Conflict("stop")

    with pytest.raises(Conflict, match="stop"):
        write()
    with vault.read() as records:
        assert records.resources.listed(Region) == []


def test_the_installation_keeps_its_id(url: str) -> None:
    ids = set()
    for _ in range(2):
        store = VaultStore.open(url)
        ids.add(store.installation_id())
        store.close()
    assert len(ids) == 1


def test_a_file_that_is_no_database_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "vault.sqlite"
    path.write_bytes(b"no database " * 1000)
    with pytest.raises(Unavailable, match="not a database"):
        VaultStore.open(sqlite_url(path))


def test_an_unusable_url_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="database URL"):
        VaultStore.open("nonsense")

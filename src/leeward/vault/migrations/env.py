"""How Alembic reaches the database: over the connection that vault.database hands it."""

from __future__ import annotations

from alembic import context

from leeward.vault.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()

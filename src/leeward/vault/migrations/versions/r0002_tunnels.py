"""Hosts say where tunnels end."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Every node has a tunnel end, empty until it tells."""
    with op.batch_alter_table("nodes") as nodes:
        nodes.add_column(sa.Column("tunnel", sa.Text(), nullable=False, server_default=""))

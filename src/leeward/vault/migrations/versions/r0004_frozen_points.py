"""Recovery points say how long the guest stood still for them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Of those there are it is not known."""
    with op.batch_alter_table("recovery_points") as points:
        points.add_column(sa.Column("frozen", sa.JSON(), nullable=True))

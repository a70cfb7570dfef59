"""Recovery points say which other items share them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """No point is shared yet."""
    with op.batch_alter_table("recovery_points") as points:
        points.add_column(sa.Column("shared_id", sa.String(64), nullable=False, server_default=""))
        points.add_column(sa.Column("shared", sa.JSON(), nullable=True))
    op.create_index("recovery_points_shared", "recovery_points", ["item_id", "shared_id"])

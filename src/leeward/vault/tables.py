"""Tables of the vault database.

Owns: their columns, as migrations leave them. Must not know: who reads them. Bodies are JSON of the
model's frozen dataclasses; columns beside a body exist to be searched.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""An autoincrementing key: SQLite wants plain INTEGER for it."""

installation = sa.Table(
    "installation",
    metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

resources = sa.Table(
    "resources",
    metadata,
    sa.Column("kind", sa.String(32), primary_key=True),
    sa.Column("scope", sa.String(64), primary_key=True),
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("body", sa.JSON, nullable=False),
    sa.Column("requested", sa.JSON, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("created_by", sa.String(64), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
)

nodes = sa.Table(
    "nodes",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("region", sa.String(64), nullable=False),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("key_hash", sa.String(64), nullable=False),
    sa.Column("storage_root", sa.Text, nullable=False),
    sa.Column("tunnel", sa.Text, nullable=False, server_default=""),
    sa.Column("enrolled_ns", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("role", "region", "name"),
)

enrolment_tokens = sa.Table(
    "enrolment_tokens",
    metadata,
    sa.Column("token_hash", sa.String(64), primary_key=True),
    sa.Column("region", sa.String(64), nullable=False),
    sa.Column("expires_ns", sa.BigInteger, nullable=False),
    sa.Column("node_id", sa.String(64), nullable=False),
)

commands = sa.Table(
    "commands",
    metadata,
    sa.Column("sequence", _BIG, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(128), nullable=False, unique=True),
    sa.Column("node_id", sa.String(64), sa.ForeignKey("nodes.id"), nullable=False),
    sa.Column("job_id", sa.String(64), nullable=False),
    sa.Column("verb", sa.String(32), nullable=False),
    sa.Column("arguments", sa.JSON, nullable=False),
    sa.Column("created_ns", sa.BigInteger, nullable=False),
    sa.Column("answered_ns", sa.BigInteger, nullable=False),
    sa.Column("result", sa.JSON, nullable=True),
    sa.Index("commands_open", "node_id", "answered_ns"),
    sa.Index("commands_job", "job_id"),
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("verb", sa.String(64), nullable=False),
    sa.Column("target", sa.String(200), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("created_ns", sa.BigInteger, nullable=False),
    sa.Column("ended_ns", sa.BigInteger, nullable=False),
    sa.Column("arguments", sa.JSON, nullable=False),
    sa.Column("error_code", sa.String(64), nullable=False),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("result", sa.JSON, nullable=False),
    sa.Column("cancel_requested", sa.Boolean, nullable=False),
    sa.Index("jobs_created", "created_ns"),
    sa.Index("jobs_state", "state"),
)

job_steps = sa.Table(
    "job_steps",
    metadata,
    sa.Column(
        "job_id", sa.String(64), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column("index", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("started_ns", sa.BigInteger, nullable=False),
    sa.Column("ended_ns", sa.BigInteger, nullable=False),
    sa.Column("bytes_done", sa.BigInteger, nullable=False),
    sa.Column("bytes_total", sa.BigInteger, nullable=False),
    sa.Column("eta_seconds", sa.Float, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
)

items = sa.Table(
    "items",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("vault", sa.String(64), nullable=False),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("source_region", sa.String(64), nullable=False),
    sa.Column("target_region", sa.String(64), nullable=False),
    sa.Column("body", sa.JSON, nullable=False),
    sa.Column("target_vm", sa.JSON, nullable=False),
    sa.Column("cache_region", sa.String(64), nullable=False),
    sa.Column("worker_id", sa.String(64), nullable=False),
    sa.Column("is_replicating", sa.Boolean, nullable=False),
    sa.Column("is_hydrated", sa.Boolean, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.UniqueConstraint("vault", "name"),
)

recovery_points = sa.Table(
    "recovery_points",
    metadata,
    sa.Column(
        "item_id", sa.String(64), sa.ForeignKey("items.id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("time_ns", sa.BigInteger, nullable=False),
    sa.Column("consistency", sa.String(16), nullable=False),
    sa.Column("shared_id", sa.String(64), nullable=False, server_default=""),
    sa.Column("shared", sa.JSON(none_as_null=True), nullable=True),
    sa.Column("frozen", sa.JSON(none_as_null=True), nullable=True),
    sa.Index("recovery_points_shared", "item_id", "shared_id"),
    sa.Index("recovery_points_order", "item_id", "epoch", "sequence"),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("sequence", _BIG, primary_key=True, autoincrement=True),
    sa.Column("time_ns", sa.BigInteger, nullable=False),
    sa.Column("target", sa.String(200), nullable=False),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("job_id", sa.String(64), nullable=False),
    sa.Index("events_target", "target", "sequence"),
)

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("job_id", sa.String(64), nullable=False),
    sa.Column("created_ns", sa.BigInteger, nullable=False),
)

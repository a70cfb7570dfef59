"""Durable records of the control plane: SQLAlchemy on SQLite or PostgreSQL, with migrations."""

"""Logs for people and programs. Knows nothing of what it reports."""

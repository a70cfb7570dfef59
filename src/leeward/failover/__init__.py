"""Deciding what a failover does: pure, no I/O."""

"""Benchmarks: `python -m bench NAME` measures one thing and prints a table and one JSON line."""

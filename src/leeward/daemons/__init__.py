"""Composition roots: each daemon puts rooms together, runs until told to stop, and ends cleanly."""

"""Deciding how a VM is protected: pure, no I/O."""

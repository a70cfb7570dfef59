"""Whole scenarios on real VMs: `make scenario NAME=x` runs one and reports violations and leaks."""

"""The replica log: formats, block map, catalog, and reading a disk as it was at a point."""

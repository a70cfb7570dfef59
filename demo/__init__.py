"""The demo: a running VM survives the loss of its region. Run it with `make demo`."""

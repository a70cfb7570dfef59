"""Cuts in the cache become recovery points in the target storage. Knows no control plane."""

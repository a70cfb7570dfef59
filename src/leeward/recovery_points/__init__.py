"""Which recovery points to keep, and which one a failover takes: pure planners."""

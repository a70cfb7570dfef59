"""The typed REST client: what the command line uses, and what scripts may."""

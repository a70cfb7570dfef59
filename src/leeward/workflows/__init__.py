"""Durable verbs: each a job that goes on after a kill, runs once, and undoes what it cannot end."""

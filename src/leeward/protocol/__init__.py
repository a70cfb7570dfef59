"""Messages between the service and its nodes (agents, workers). Values only; JSON by core.codec."""

"""Network Block Device: wire format, client, server. Knows bytes, not what they hold."""

"""The command line: arguments become REST calls, replies become tables or JSON."""

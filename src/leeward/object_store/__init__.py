"""Object stores over one port: create-if-absent, read, list, delete. Durable when it returns."""

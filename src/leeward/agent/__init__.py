"""A node's side of Leeward: its link to the service, and the verbs it carries out on this host."""

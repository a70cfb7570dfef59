"""REST routes: the public API under /api/v1, the nodes' own under /node/v1.

Owns: HTTP, authentication, problem documents. Must not know: SQL, durable workflow engines, nodes'
work. Over workflows, under the daemons.

Shapes every route shares: a list is {"items": [...], "next": cursor or null}; a resource is its
model dataclass plus "provisioning_state" ("creating", "ready", "deleting"), a virtual machine also
"status" (VmStatus or null); what takes longer than a request is 202 with a Job and its Location.
"""

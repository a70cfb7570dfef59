"""Nodes and the one-time tokens they enrol with.

Owns: who may speak as which node; keys and tokens are kept as hashes only. Must not know: HTTP.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

import sqlalchemy as sa

from leeward.core.errors import NotAllowed, NotFound
from leeward.core.ids import new_id
from leeward.protocol.messages import EnrolmentRequest, Role
from leeward.vault.tables import enrolment_tokens, nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """An enrolled agent or worker."""

    id: str
    role: Role
    region: str
    name: str
    storage_root: str
    tunnel: str
    """Agents: where tunnels from the region's other hosts end, "address:port"; "": nowhere."""
    enrolled_ns: int

    @property
    def label(self) -> str:
        """Return what people call it: "agent host-1 in east"."""
        return f"{self.role.value} {self.name} in {self.region}"


class NodeStore:
    """The rows of one transaction."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def add_token(self, token: str, *, region: str, expires_ns: int) -> None:
        """The token enrols one node of that region until it expires. Idempotent."""
        hashed = _hash(token)
        known = self._connection.execute(
            sa.select(enrolment_tokens.c.region).where(enrolment_tokens.c.token_hash == hashed)
        ).one_or_none()
        if known is None:
            self._connection.execute(
                enrolment_tokens.insert().values(
                    token_hash=hashed, region=region, expires_ns=expires_ns, node_id=""
                )
            )

    def purge_tokens(self, *, expired_before_ns: int) -> None:
        """Tokens that expired before that are gone."""
        self._connection.execute(
            enrolment_tokens.delete().where(enrolment_tokens.c.expires_ns < expired_before_ns)
        )

    def enrol(self, request: EnrolmentRequest, *, now_ns: int) -> NodeRecord:
        """Return the node, enrolled under the request's key; the token is spent.

        Asked again with the same token and key (the reply was lost), it changes nothing. A new
        token for a node that exists replaces its key. Raises: NotAllowed.
        """
        hashed = _hash(request.token)
        token = self._connection.execute(
            sa.select(enrolment_tokens).where(enrolment_tokens.c.token_hash == hashed)
        ).one_or_none()
        if token is None or token.region != request.region:
            raise NotAllowed(
                f"the enrolment token is not one of region {request.region}",
                field="token",
                hint=f"`leeward region token {request.region}` makes one",
            )
        if token.node_id:
            return self._repeated(token.node_id, request)
        if token.expires_ns < now_ns:
            raise NotAllowed("the enrolment token has expired", field="token")
        node_id = self._put(request, now_ns)
        self._connection.execute(
            enrolment_tokens.update()
            .where(enrolment_tokens.c.token_hash == hashed)
            .values(node_id=node_id)
        )
        return self.get(node_id)

    def authenticate(self, node_id: str, key: str) -> NodeRecord:
        """Return the node whose key it is. Raises: NotAllowed."""
        row = self._connection.execute(sa.select(nodes).where(nodes.c.id == node_id)).one_or_none()
        if row is None or not hmac.compare_digest(row.key_hash, _hash(key)):
            raise NotAllowed("unknown node or wrong key", hint="enrol it again with a new token")
        return _record(row)

    def get(self, node_id: str) -> NodeRecord:
        """Return the node. Raises: NotFound."""
        row = self._connection.execute(sa.select(nodes).where(nodes.c.id == node_id)).one_or_none()
        if row is None:
            raise NotFound(f"there is no node {node_id}")
        return _record(row)

    def find(self, role: Role, region: str, name: str) -> NodeRecord | None:
        """Return the node of that role, region and name, or None."""
        row = self._connection.execute(
            sa.select(nodes).where(
                nodes.c.role == role.value, nodes.c.region == region, nodes.c.name == name
            )
        ).one_or_none()
        return None if row is None else _record(row)

    def listed(self, *, role: Role | None = None, region: str | None = None) -> list[NodeRecord]:
        """Return the nodes, by region, role and name."""
        query = sa.select(nodes).order_by(nodes.c.region, nodes.c.role, nodes.c.name)
        if role is not None:
            query = query.where(nodes.c.role == role.value)
        if region is not None:
            query = query.where(nodes.c.region == region)
        return [_record(row) for row in self._connection.execute(query)]

    def set_storage_root(self, node_id: str, storage_root: str) -> None:
        """The node's storage accounts without a URL go under that directory."""
        self._connection.execute(
            nodes.update().where(nodes.c.id == node_id).values(storage_root=storage_root)
        )

    def set_tunnel(self, node_id: str, tunnel: str) -> None:
        """Tunnels from the region's other hosts end there."""
        self._connection.execute(nodes.update().where(nodes.c.id == node_id).values(tunnel=tunnel))

    def delete(self, node_id: str) -> None:
        """The node is not enrolled. Idempotent."""
        self._connection.execute(nodes.delete().where(nodes.c.id == node_id))

    def _repeated(self, node_id: str, request: EnrolmentRequest) -> NodeRecord:
        row = self._connection.execute(sa.select(nodes).where(nodes.c.id == node_id)).one_or_none()
        is_same = row is not None and (row.role, row.region, row.name) == (
            request.role.value,
            request.region,
            request.name,
        )
        if row is None or not (is_same and hmac.compare_digest(row.key_hash, _hash(request.key))):
            raise NotAllowed("the enrolment token has been used", field="token")
        return _record(row)

    def _put(self, request: EnrolmentRequest, now_ns: int) -> str:
        values = {"key_hash": _hash(request.key), "enrolled_ns": now_ns}
        existing = self.find(request.role, request.region, request.name)
        if existing is not None:
            self._connection.execute(
                nodes.update().where(nodes.c.id == existing.id).values(**values)
            )
            return existing.id
        node_id = new_id(request.role.value)
        self._connection.execute(
            nodes.insert().values(
                id=node_id,
                role=request.role.value,
                region=request.region,
                name=request.name,
                storage_root="",
                tunnel="",
                **values,
            )
        )
        return node_id


def _hash(secret: str) -> str:
    """Keys and tokens are 256 random bits: a plain hash of them cannot be guessed back."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _record(row: sa.Row[tuple[object, ...]]) -> NodeRecord:
    return NodeRecord(
        id=row.id,
        role=Role(row.role),
        region=row.region,
        name=row.name,
        storage_root=row.storage_root,
        tunnel=row.tunnel,
        enrolled_ns=row.enrolled_ns,
    )

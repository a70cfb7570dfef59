"""Who asks: the operator's token, a node's key; and the raw request parts routes share.

Owns: authentication and the Idempotency-Key header. Must not know: what is asked.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from http import HTTPStatus
from pathlib import Path
from typing import Annotated

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from leeward.core.errors import Conflict, InvalidRequest, NotAllowed, Unavailable
from leeward.protocol.messages import PROCESS_HEADER
from leeward.vault.jobs import IdempotencyKey
from leeward.vault.nodes import NodeRecord
from leeward.workflows.service import Service

NODE_BODY_MAX = 16 << 20
PUBLIC_BODY_MAX = 1 << 20
_KEY_MAX = 255
_VERSION_DIGITS_MAX = 18

_bearer = HTTPBearer(auto_error=False)
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


def load_token(path: Path) -> str:
    """Return the operator's token, made on the first call (file mode 0600). Raises: Unavailable."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        known = path.read_text().strip() if path.exists() else ""
        if known:  # an empty one would let everybody in
            return known
        token = secrets.token_urlsafe(32)
        temporary = path.with_name(f".{path.name}.new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(token + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise Unavailable(f"cannot keep the service's token in {path}: {error.strerror}") from error
    return token


def get_service(request: Request) -> Service:
    """Return the service behind the app."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def require_operator(request: Request, credentials: Credentials) -> None:
    """Return if the request bears the operator's token."""
    token = credentials.credentials if credentials else ""
    if not hmac.compare_digest(token.encode(), request.app.state.token.encode()):
        raise _unauthorized(
            "a valid token is needed: that in service/api-token of the service's data directory, "
            "given as LEEWARD_TOKEN or in client.toml"
        )


def require_node(
    request: Request, service: Annotated[Service, Depends(get_service)], credentials: Credentials
) -> NodeRecord:
    """Return the node that asks; it has been heard. Raises: Conflict when another process is at
    work under its identity."""
    node_id, _, key = (credentials.credentials if credentials else "").partition(":")
    try:
        with service.bench.vault.read() as records:
            node = records.nodes.authenticate(node_id, key)
    except NotAllowed as error:
        raise _unauthorized(error.message) from error
    if not service.bench.live.admit(node.id, request.headers.get(PROCESS_HEADER, "")):
        raise Conflict(
            f"another process is at work as {node.label}: its data directory has been copied",
            hint="end one of the two, and start it with an empty data directory, a name and a "
            "token of its own",
        )
    service.bench.live.touch(node.id)
    return node


async def node_body(request: Request) -> bytes:
    """Return the body of a node's request. Raises: InvalidRequest when it is too large."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > NODE_BODY_MAX:
            raise InvalidRequest(f"the body is larger than {NODE_BODY_MAX} bytes")
    return bytes(body)


async def idempotency_key(request: Request) -> IdempotencyKey | None:
    """Return the caller's Idempotency-Key with a hash of the request, or None without the header.

    Raises: InvalidRequest.
    """
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return None
    if not 1 <= len(key) <= _KEY_MAX or not key.isprintable():
        raise InvalidRequest(
            f"Idempotency-Key: 1 to {_KEY_MAX} printable characters", field="Idempotency-Key"
        )
    request_hash = hashlib.sha256(
        b"\0".join(
            (
                request.method.encode(),
                request.url.path.encode(),
                request.url.query.encode(),
                await request.body(),
            )
        )
    )
    return IdempotencyKey(key=key, fingerprint=request_hash.hexdigest())


def expected_version(request: Request) -> int | None:
    """Return the version that If-Match names; None without it. Raises: InvalidRequest."""
    text = request.headers.get("If-Match")
    if text is None or text == "*":
        return None
    number = text.removeprefix("W/").strip('"')
    if not number.isdigit() or len(number) > _VERSION_DIGITS_MAX:
        raise InvalidRequest(
            "If-Match: not an ETag of this service", field="If-Match", hint="as GET gave it"
        )
    return int(number)


def _unauthorized(detail: str) -> HTTPException:
    return HTTPException(HTTPStatus.UNAUTHORIZED, detail, headers={"WWW-Authenticate": "Bearer"})


ServiceOf = Annotated[Service, Depends(get_service)]
NodeOf = Annotated[NodeRecord, Depends(require_node)]
VersionOf = Annotated[int | None, Depends(expected_version)]
KeyOf = Annotated[IdempotencyKey | None, Depends(idempotency_key)]
BodyOf = Annotated[bytes, Depends(node_body)]

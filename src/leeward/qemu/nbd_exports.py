"""Exporting nodes of a running QEMU over its own NBD server.

Owns: starting that server, of which a QEMU has one, and adding and removing exports. Must not
know: what is read through them. Used by sweep and hydration, possibly at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leeward.core.errors import HypervisorRefused
from leeward.qemu.session import QmpSession

REMOVE_SECONDS = 10.0


def ensure_nbd_server(session: QmpSession, socket: Path) -> None:
    """Make QEMU's NBD server listen on the unix socket `socket`. Idempotent.

    It is never stopped: another user may rely on it, and it ends with QEMU. All users of one QEMU
    have to agree on `socket`.
    """
    address = {"type": "unix", "data": {"path": str(socket)}}
    try:
        session.execute("nbd-server-start", {"addr": address, "max-connections": 0})
    except HypervisorRefused as error:
        if "already running" not in error.message:
            raise


def ensure_export(
    session: QmpSession,
    export_id: str,
    *,
    node: str,
    name: str,
    allocation_depth: bool = False,
    bitmap: str = "",
) -> None:
    """Export `node` read-only as `name`; an export of that id is taken to be this one already.

    allocation_depth: offer the context qemu:allocation-depth too. bitmap: and that of this
    (disabled) dirty bitmap of the node.
    """
    if _exists(session, export_id):
        return
    session.execute(
        "block-export-add",
        {
            "type": "nbd",
            "id": export_id,
            "node-name": node,
            "name": name,
            "writable": False,
            "allocation-depth": allocation_depth,
            **({"bitmaps": [bitmap]} if bitmap else {}),
        },
    )


def remove_export(session: QmpSession, export_id: str) -> None:
    """End the export and its connections. Idempotent; QEMU finishes requests in flight first.

    Raises: Unavailable if they do not finish in time.
    """
    if not _exists(session, export_id):
        return

    def is_ours(event: dict[str, Any]) -> bool:
        return bool(event["data"]["id"] == export_id)

    with session.expect("BLOCK_EXPORT_DELETED", is_ours) as deleted:
        session.execute("block-export-del", {"id": export_id, "mode": "hard"})
        deleted.wait(timeout_seconds=REMOVE_SECONDS)


def _exists(session: QmpSession, export_id: str) -> bool:
    return any(export["id"] == export_id for export in session.execute("query-block-exports"))

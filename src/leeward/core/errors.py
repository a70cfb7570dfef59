"""The one error tree, cut by what the caller must do next.

Owns: every error Leeward raises on purpose. Must not know: HTTP, QEMU, object stores; each adapter
translates its vendor's exceptions into this tree in one place.

LeewardError
├ InvalidRequest     the caller must change something and ask again
├ NotAllowed         the caller must ask as somebody else: unknown, or without that right
│ └ KeyMissing       what is stored is encrypted, and the key is not on this host
├ NotFound           the named thing does not exist
├ Conflict           the state moved, or forbids this; reread
│ ├ StaleVersion     it changed since the caller read it (If-Match)
│ ├ ObjectExists     create-if-absent lost: somebody else created that name
│ └ Fenced           a newer epoch or claim exists: stop writing at once
├ Unavailable        retry with back-off
├ DataIntegrity      never retry: quarantine
│ ├ SegmentCorrupt   stored bytes do not match their checksum or their format
│ ├ ObjectMissing    an object that a catalog or manifest names is gone
│ └ ChainBroken      cuts in the cache are lost or damaged; the source begins a new chain
└ HypervisorRefused  QEMU (or another fabric driver) said no
"""

from __future__ import annotations

from typing import ClassVar


class LeewardError(Exception):
    """Base of every deliberate error: a sentence, a stable code, the field at fault, a hint."""

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, field: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InvalidRequest(LeewardError):
    code = "invalid_request"
    http_status = 400


class NotAllowed(LeewardError):
    code = "not_allowed"
    http_status = 403


class KeyMissing(NotAllowed):
    code = "key_missing"


class NotFound(LeewardError):
    code = "not_found"
    http_status = 404


class Conflict(LeewardError):
    code = "conflict"
    http_status = 409


class StaleVersion(Conflict):
    code = "stale_version"
    http_status = 412


class ObjectExists(Conflict):
    code = "object_exists"


class Fenced(Conflict):
    code = "fenced"


class Unavailable(LeewardError):
    code = "unavailable"
    http_status = 503


class DataIntegrity(LeewardError):
    code = "data_integrity"
    http_status = 500


class SegmentCorrupt(DataIntegrity):
    code = "segment_corrupt"


class ObjectMissing(DataIntegrity):
    code = "object_missing"


class ChainBroken(DataIntegrity):
    code = "chain_broken"


class HypervisorRefused(LeewardError):
    code = "hypervisor_refused"
    http_status = 502


def _tree(root: type[LeewardError]) -> list[type[LeewardError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _tree(child))]


def error_from_code(
    code: str, message: str, *, field: str | None = None, hint: str | None = None
) -> LeewardError:
    """Return the error of that code, as it was on the other side of a wire; unknown codes become
    LeewardError itself."""
    for kind in _tree(LeewardError):
        if kind.code == code:
            return kind(message, field=field, hint=hint)
    return LeewardError(message, field=field, hint=hint)

"""httpx without its command line.

Owns: how httpx is imported by the client. httpx brings its own command line (click, rich, pygments)
with it unless that cannot be imported: two thirds of the time that each of our commands would take
to begin, and a failover waits for ours.
"""

from __future__ import annotations

import sys

sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]

import httpx  # noqa: E402

__all__ = ["httpx"]

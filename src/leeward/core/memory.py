"""Memory that a process has freed and does not need again.

Owns: giving it back to the system. Must not know: who freed it.
"""

from __future__ import annotations

import ctypes


def return_free_memory() -> None:
    """Have freed memory returned to the system, where the C library can do that (glibc keeps what
    many threads have freed for itself for ever). A few milliseconds: after bursts only."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)

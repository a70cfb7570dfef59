"""What is shipped of what a guest writes: random writes of 4 KiB, some blocks several times a cut.

Owns: metric ratio, the bytes shipped before compression (segments' data and tables, manifests) ÷
the bytes of the unique blocks written between two cuts, the median of all cuts; overwritten, the
share of writes that a later one of the same cut made void. One writer with one write in flight
notes when each began and ended: a cut's own time says on which side of it a write lies.
"""

from __future__ import annotations

import random
import time
from bisect import bisect_right
from dataclasses import dataclass, field
from statistics import median

from bench.common import Invalid, Result, scratch
from bench.path import Guest, Protection, guest, protected
from bench.sides import DISK, ITEM
from leeward.core.units import BLOCK, GIB, MIB
from leeward.nbd.client import NbdClient
from leeward.object_store.open import open_store
from leeward.replica.layout import disk_prefix
from leeward.replica.segment import read_table

DISK_BYTES = GIB
HOT_BYTES = 8 * MIB
"""Written to at random: at a few thousand writes a second a good share meets a block again."""
CUTS_MIN, BLOCKS_MIN = 3, 200
"""A cut with fewer blocks is one at the edge of the run."""
PAUSE_SECONDS = 0.0002


@dataclass(slots=True)
class _Log:
    """Writes in order: when each ended (source's clock, ns), and its block."""

    ended_ns: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)


def run(rounds: float = 3, seconds: float = 8.0) -> Result:
    """Write for `seconds`, `rounds` times."""
    figures: dict[str, list[float]] = {"ratio": [], "overwritten": [], "cuts": []}
    with scratch() as root, guest(root, "guest", DISK_BYTES) as of, protected(root, of) as path:
        for _ in range(int(rounds)):
            before = path.agent.look()["shipped"]
            known = _newest_sequence(path)
            with path.watched():
                log = _write(of, seconds)
            path.settle()
            shipped = path.agent.look()["shipped"] - before
            for metric, value in _figures(path, log, known, shipped).items():
                figures[metric].append(value)
    return Result(figures, {"ratio": "≤ 1.1"})


def _write(of: Guest, seconds: float) -> _Log:
    """Write with one write in flight, payload new every time and half compressible."""
    log, until, chance = _Log(), time.monotonic() + seconds, random.Random()
    with NbdClient.connect(of.nbd_socket, DISK, ()) as client:
        while time.monotonic() < until:
            block = chance.randrange(HOT_BYTES // BLOCK)
            client.write(block * BLOCK, chance.randbytes(BLOCK // 2) + bytes(BLOCK // 2))
            log.ended_ns.append(time.time_ns())
            log.blocks.append(block)
            time.sleep(PAUSE_SECONDS)
    return log


def _figures(path: Protection, log: _Log, after: int, shipped: int) -> dict[str, float]:
    """Return the metrics of the cuts that came after that one. shipped: stored bytes of their
    segments and manifests together."""
    sent, stored = _segments(path, after)
    marks = {point.sequence: point.time_ns for point in path.catalog.points}
    manifest_bytes = (shipped - stored) / max(len(sent), 1)
    ratios, unique = [], 0
    for sequence, raw_bytes in sorted(sent.items()):
        if sequence not in marks or sequence - 1 not in marks:
            continue
        low = bisect_right(log.ended_ns, marks[sequence - 1])
        blocks = set(log.blocks[low : bisect_right(log.ended_ns, marks[sequence])])
        unique += len(blocks)
        if len(blocks) >= BLOCKS_MIN:
            ratios.append((raw_bytes + manifest_bytes) / (len(blocks) * BLOCK))
    if len(ratios) < CUTS_MIN:
        raise Invalid(f"only {len(ratios)} cuts with {BLOCKS_MIN} blocks or more")
    return {
        "ratio": median(ratios),
        "overwritten": 1 - unique / len(log.blocks),
        "cuts": len(ratios),
    }


def _segments(path: Protection, after: int) -> tuple[dict[int, int], int]:
    """Return by cut, of those after `after`, the uncompressed bytes of its segments, tables
    included; and the stored bytes of all of them."""
    store = open_store(path.target_url)
    sent: dict[int, int] = {}
    stored = 0
    for name in store.list(f"{disk_prefix(ITEM, DISK)}segments/"):
        table = read_table(store, name)
        sequence = table.header.sequence
        if sequence > after:
            table_bytes = int(table.frame_offsets[0])
            sent[sequence] = sent.get(sequence, 0) + table_bytes + table.data_bytes
            stored += table.object_bytes
    return sent, stored


def _newest_sequence(path: Protection) -> int:
    path.catalog.refresh()
    newest = path.catalog.newest_cut
    return newest.sequence if newest else 0

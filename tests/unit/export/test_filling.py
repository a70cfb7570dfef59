"""Which ranges hydration reads, against a plain model of clusters."""

from __future__ import annotations

from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from leeward.export.filling import CLUSTER_BYTES, DEPTH_CONTEXT, READ_BYTES, _missing
from leeward.nbd import wire
from leeward.nbd.client import NbdClient

BLOCK = 4096
HOLE = wire.STATE_HOLE | wire.STATE_ZERO
PER_CLUSTER = CLUSTER_BYTES // BLOCK


class Root:
    """Block status of a list of (is data, is local) blocks."""

    def __init__(self, blocks: list[tuple[bool, bool]]) -> None:
        self.blocks = blocks
        self.size_bytes = len(blocks) * BLOCK

    def block_status_all(self, offset: int, length: int) -> dict[str, list[tuple[int, int]]]:
        part = self.blocks[offset // BLOCK : (offset + length) // BLOCK]
        return {
            wire.BASE_ALLOCATION: [(BLOCK, 0 if data else HOLE) for data, _ in part],
            DEPTH_CONTEXT: [(BLOCK, 1 if local else 3) for _, local in part],
        }


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80))
def test_reads_are_the_clusters_with_data_that_is_not_local(
    blocks: list[tuple[bool, bool]],
) -> None:
    root = Root(blocks)
    reads = list(_missing(cast(NbdClient, root), 0, root.size_bytes))
    wanted = {
        index // PER_CLUSTER for index, (data, local) in enumerate(blocks) if data and not local
    }
    covered: list[int] = []
    for offset, length in reads:
        assert 0 < length <= READ_BYTES
        assert offset % CLUSTER_BYTES == 0
        assert offset + length <= root.size_bytes
        covered += range(offset // CLUSTER_BYTES, -(-(offset + length) // CLUSTER_BYTES))
    assert covered == sorted(wanted)

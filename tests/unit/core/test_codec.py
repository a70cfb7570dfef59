"""JSON at the edge: what comes in wrong says where."""

from __future__ import annotations

import pytest

from leeward.core.codec import from_json, from_plain, to_json, to_plain
from leeward.core.errors import InvalidRequest
from leeward.model.recovery import Policy
from leeward.protocol.messages import Command, NodeStatus, Verb


def test_values_come_back_as_they_were() -> None:
    command = Command(id="c-1", verb=Verb.VM_START, arguments={"vm_id": "web-1"})
    assert from_json(to_json(command), Command) == command
    assert from_plain(to_plain(NodeStatus()), NodeStatus) == NodeStatus()


def test_the_field_at_fault_is_named() -> None:
    with pytest.raises(InvalidRequest, match=r"cut_interval_seconds"):
        from_plain({"name": "p", "cut_interval_seconds": "often"}, Policy)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b'{"id": 3}'])
def test_garbage_is_an_invalid_request(text: bytes) -> None:
    with pytest.raises(InvalidRequest):
        from_json(text, Command)

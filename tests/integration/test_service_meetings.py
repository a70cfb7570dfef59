"""A consistency group over a real service: its hosts are called, meet, and their items move as one.

The hosts speak through the agent's own code: the link's requests, the gate's limits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.integration.service_rig import FakeNode, World, running_service, wait_for, world

from leeward.agent.meetings import attempt_of
from leeward.agent.service import Service
from leeward.core.errors import LeewardError
from leeward.protocol.messages import MeetingCall, Role

pytestmark = pytest.mark.integration

NAMES = ("db-1", "web-1")


class Host:
    """A host's ear for calls, and a member that answers them as its `mood` says."""

    def __init__(self, node: FakeNode, worker: FakeNode) -> None:
        self.mood = "well"
        self.held_seconds: list[float] = []
        self._worker = worker
        self._service = Service(node.url)
        self._service.authenticate(node.node_id, node.key)
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(2)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._service.close()
        self._thread.join(timeout=60)
        self._pool.shutdown()

    def _listen(self) -> None:
        while not self._stopping.is_set():
            try:
                for call in self._service.meeting_calls(wait_seconds=5):
                    self._pool.submit(self._meet, call)
            except LeewardError:
                self._stopping.wait(0.05)

    def _meet(self, call: MeetingCall) -> None:
        gate = attempt_of(call, self._service.meet).gate
        if not gate.ready(is_changed=True):
            return
        began = time.monotonic()
        if self.mood == "slow":
            time.sleep(0.5)
        all_hold = gate.held()
        self.held_seconds.append(time.monotonic() - began)
        if all_hold:
            self._worker.add_point(call.item_id, shared=call.mark)
        gate.end("" if all_hold else "its hold ended before all members held")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[World]:
    with running_service(tmp_path / "service") as service, world(service) as made:
        yield made


def test_two_hosts_meet_and_their_items_fail_over_to_one_moment(site: World) -> None:
    operator, group = site.operator, f"/vaults/{site.vault}/consistency-groups/shop"
    other = site.add_node(Role.AGENT, site.east, "host-2")
    for name, place in zip(NAMES, ("host-1", "host-2"), strict=True):
        site.add_vm(name, host=place)
        operator.done(site.protect(name))
    operator.put(f"/vaults/{site.vault}/policies/default", {"shared_interval_seconds": 1})
    hosts = [Host(site.source, site.worker), Host(other, site.worker)]
    try:
        operator.done(operator.put(group, {"items": list(NAMES)}))
        wait_for(lambda: operator.get(group)["points"] >= 2, "shared points", 60)
        hosts[1].mood = "slow"
        wait_for(lambda: "held too late" in operator.get(group)["problem"], "void attempts")
        assert max(hosts[0].held_seconds) < 30  # nobody is held until the others come
        hosts[1].mood = "well"
        points = len(operator.get(f"{group}/shared-points")["items"])
        wait_for(lambda: operator.get(group)["points"] > points, "shared points again", 60)
    finally:
        for host in hosts:
            host.stop()
    newest = operator.get(f"{group}/shared-points")["items"][0]
    done = operator.done(operator.post(f"{group}/failover", {}))
    assert done["result"]["recovery_point"] == newest["id"]
    items = [site.item(name) for name in NAMES]
    assert {item["state"] for item in items} == {"failed_over"}
    assert {item["id"]: item["recovery_point"] for item in items} == newest["points"]
    listed = operator.get(f"{site.items}/web-1/recovery-points")["items"]
    marks = {point["id"]: point["shared"] for point in listed if point["shared"]}
    assert newest["points"][items[1]["id"]] in marks

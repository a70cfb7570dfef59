"""A guest trims while nothing is mirrored, and is replicated on whatever came of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.agent.fakes import FakeDriver, FakeReplicator

from leeward.agent.replication import Replications
from leeward.agent.trimming import Trimming
from leeward.core.errors import HypervisorRefused
from leeward.model.resources import PowerState
from leeward.protocol.fabric import ReplicationSpec, TrimSpec

SPEC = ReplicationSpec(
    item_id="item", epoch=1, vm_id="web", disks=("a", "b"), cache_url="memory://cache"
)


class Driver(FakeDriver):
    def agent_socket(self, vm_id: str) -> Path:
        return Path("agent")


@pytest.mark.parametrize("refusal", [None, HypervisorRefused("it has no file system")])
def test_mirrors_are_off_while_the_guest_trims_and_on_afterwards(
    tmp_path: Path, refusal: HypervisorRefused | None
) -> None:
    driver = Driver()
    driver.vms["web"] = PowerState.RUNNING
    calls = driver.calls
    replications = Replications(driver, tmp_path, lambda spec, _: FakeReplicator(spec, calls))
    replications.start(SPEC)
    calls.clear()

    def trim_guest(agent_socket: Path) -> None:
        calls.append(f"trim behind {agent_socket}")
        if refusal:
            raise refusal

    trimming = Trimming(driver, replications, trim_guest)
    if refusal:
        with pytest.raises(HypervisorRefused):
            trimming.trim(TrimSpec(vm_id="web", item_id="item"))
    else:
        assert trimming.trim(TrimSpec(vm_id="web", item_id="item")).freed_bytes > 0
    after = calls[calls.index("let go of a") :]
    expected = ["let go of a", "let go of b", "trim behind agent", "replicate item epoch 1"]
    assert [call for call in after if not call.startswith("measure")] == expected


def test_a_vm_that_is_not_replicated_is_trimmed_as_well(tmp_path: Path) -> None:
    driver = Driver()
    driver.vms["web"] = PowerState.RUNNING
    replications = Replications(
        driver, tmp_path, lambda spec, _: FakeReplicator(spec, driver.calls)
    )
    trimming = Trimming(driver, replications, lambda path: None)
    assert trimming.trim(TrimSpec(vm_id="web", item_id="")).freed_bytes > 0

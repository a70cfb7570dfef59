"""What the API says of the VM that a failover makes of an item."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.api.test_routes import Http
from tests.unit.workflows.replay_rig import Site, site

from leeward.api.app import build_app
from leeward.model.recovery import JobState
from leeward.model.resources import PowerState
from leeward.protection.update import ItemChanges
from leeward.protocol.fabric import VmStatus
from leeward.protocol.messages import NodeStatus, Verb
from leeward.workflows.change_verbs import MachineSize


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path / "site") as made:
        assert made.run(made.protect()).state is JobState.SUCCEEDED
        yield made


def machine(made: Site) -> dict[str, Any]:
    """Return the item's target machine, the same from the list and from the item itself."""
    http = Http(build_app(made.service, "secret", on_end=lambda: None))
    path = "/api/v1/vaults/main/replicated-items"
    shown: dict[str, Any] = http.get(f"{path}/web-1").json()["target"]
    assert [each["target"] for each in http.get(path).json()["items"]] == [shown]
    return shown


def test_the_machine_of_a_failover_is_shown_as_the_last_update_left_it(made: Site) -> None:
    before = machine(made)
    nic = before["nics"][0]
    assert (before["region"], before["name"]) == ("west", "web-1")
    assert nic["address"]
    address = nic["address"].rpartition(".")[0] + ".77"
    changes = ItemChanges(vcpus=3, memory_mib=777, addresses={nic["name"]: address})
    job = made.service.updates.update("main", "web-1", changes)
    assert made.run(job).state is JobState.SUCCEEDED
    after = machine(made)
    assert (after["vcpus"], after["memory_mib"]) == (3, 777)
    assert after["nics"][0]["address"] == address
    changed = {"vcpus", "memory_mib", "nics"}
    assert {k: v for k, v in after.items() if k not in changed} == {
        k: v for k, v in before.items() if k not in changed
    }


def test_after_the_failover_it_is_the_machine_that_there_is(made: Site) -> None:
    job = made.service.failovers.failover("main", "web-1", "latest")
    assert made.run(job).state is JobState.SUCCEEDED
    stopped = VmStatus(vm_id="web-1", power=PowerState.STOPPED)
    status = NodeStatus(storage_root="/somewhere", vms=(stopped,))
    made.service.monitor.take_status(made.target, status)
    made.results[Verb.VM_UPDATE] = {"vm_id": "web-1", "power": "stopped"}
    size = MachineSize(region="west", name="web-1", vcpus=4, memory_mib=512, forwards=(8080,))
    changed = made.run(made.service.changes.change_machine(size, None))
    assert changed.state is JobState.SUCCEEDED, changed.error
    now = machine(made)
    assert (now["vcpus"], now["memory_mib"], now["forwards"]) == (4, 512, [8080])

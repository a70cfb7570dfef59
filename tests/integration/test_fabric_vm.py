"""VMs that boot: addresses, forwards, an agent that is replaced, and nothing left over."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.fabric_rig import Rig, ask, rig, wait_for_records

from leeward.core.errors import Conflict
from leeward.model.resources import PowerState

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(400),
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]


@pytest.fixture
def host() -> Iterator[Rig]:
    with rig() as made:
        yield made


def test_two_networks_with_the_same_addresses_and_an_agent_that_is_replaced(host: Rig) -> None:
    driver = host.driver()
    source, target = host.network("s"), host.network("t")
    for network in (source, target):
        driver.apply_network(network)
    one = driver.create_vm(host.guest_vm("one", host.nics(source)))
    two = driver.create_vm(host.guest_vm("two", host.nics(target)))
    port_one, port_two = (status.forwards[0].host_port for status in (one, two))
    answers = [wait_for_records(port, beyond=3) for port in (port_one, port_two)]
    assert answers[0]["boot_id"] != answers[1]["boot_id"]
    console = Path(one.console_log).read_text()
    assert "eth0 has 10.77.0.4/24" in console
    assert "eth1 has 10.77.1.4/24" in console

    driver.close()
    successor = host.driver()
    assert successor.remove_leftovers() == ()
    assert {(vm.vm_id, vm.power) for vm in successor.list_vms()} == {
        ("one", PowerState.RUNNING),
        ("two", PowerState.RUNNING),
    }
    assert successor.vm_status("one").forwards == one.forwards
    assert successor.qmp("one").execute("query-name") == {"name": "one"}
    with pytest.raises(Conflict, match="used by one"):
        successor.delete_network(source.network_id)

    _kill(one.pid)
    assert successor.vm_status("one").power is PowerState.STOPPED
    before = wait_for_records(port_two, beyond=3)["acknowledged"]
    assert successor.stop_vm("two", force=False).power is PowerState.STOPPED
    for vm_id in ("one", "two"):
        again = successor.start_vm(vm_id)
        assert again.forwards == (one if vm_id == "one" else two).forwards
    for port, last in ((port_one, answers[0]["acknowledged"]), (port_two, before)):
        wait_for_records(port, beyond=last)
        check = ask(port, "/check")
        assert check is not None
        assert check["ok"], check
        assert check["last_data_at_boot"] >= last

    for vm_id in ("one", "two", "two"):
        successor.delete_vm(vm_id)
    for network in (source, target, target):
        successor.delete_network(network.network_id)
    assert host.traces() == []


def _kill(pid: int) -> None:
    """The process is gone, as in a loss of power, and reaped by whoever is its parent."""
    watched = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(watched, signal.SIGKILL)
        select.select([watched], [], [], 10)
    finally:
        os.close(watched)

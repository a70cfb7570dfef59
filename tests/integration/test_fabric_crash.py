"""An agent killed at any moment leaves nothing that its successor does not find and settle."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.fabric_rig import Rig, rig

from leeward.core.codec import to_json
from leeward.core.errors import NotFound
from leeward.model.resources import PowerState

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root"),
]

STEPS = 6
CREATE_SECONDS, DELETE_SECONDS = 0.6, 0.2
"""How long these take on a busy machine; the moments of the kills are spread over them."""
SPECS = ("network.json", "vm.json")
AGENT = """
import sys
from pathlib import Path
from leeward.core.codec import from_json
from leeward.fabric.qemu_driver import QemuDriver
from leeward.protocol.fabric import NetworkSpec, VmSpec
from leeward.qemu.machine import Accelerator

home, verb = Path(sys.argv[1]), sys.argv[2]
driver = QemuDriver(home / "data", home / "run", accelerator=Accelerator.TCG)
network = from_json((home / "network.json").read_bytes(), NetworkSpec)
vm = from_json((home / "vm.json").read_bytes(), VmSpec)
print("begin", flush=True)
if verb == "create":
    driver.apply_network(network)
    driver.create_vm(vm, paused=True)
elif verb == "start":
    driver.start_vm(vm.vm_id)
else:
    driver.delete_vm(vm.vm_id)
    driver.delete_network(network.network_id)
"""


@pytest.fixture
def host() -> Iterator[Rig]:
    with rig() as made:
        network = made.network("k")
        vm = made.empty_vm("victim", nics=made.nics(network))
        (made.directory / "network.json").write_bytes(to_json(network))
        (made.directory / "vm.json").write_bytes(to_json(vm))
        yield made


def killed_agent(host: Rig, verb: str, *, after: float) -> None:
    """Carry out `verb` in a process of its own and kill it `after` seconds of work."""
    argv = [sys.executable, "-c", AGENT, str(host.directory), verb]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begin\n"
        time.sleep(after)
        process.kill()


def settle(host: Rig) -> PowerState | None:
    """Let a successor take over; return the VM's power state, None if there is no such VM."""
    driver = host.driver()
    driver.remove_leftovers()
    try:
        return driver.vm_status("victim").power
    except NotFound:
        return None
    finally:
        driver.close()


def images(host: Rig) -> list[Path]:
    return [path for path in (host.directory / "disks").rglob("*") if path.is_file()]


def qemus(host: Rig) -> list[str]:
    return [line for line in host.traces() if line.startswith("qemu-system")]


@pytest.mark.timeout(300)
def test_killed_while_creating_starting_and_deleting(host: Rig) -> None:
    network = host.network("k")
    vm = host.empty_vm("victim", nics=host.nics(network))
    for step in range(STEPS):
        killed_agent(host, "create", after=CREATE_SECONDS * step / STEPS)
        found = settle(host)
        if found is None:
            assert images(host) == [], "disks of a VM that does not exist"
            assert qemus(host) == [], "a process of a VM that does not exist"
        driver = host.driver()
        driver.apply_network(network)
        driver.create_vm(vm, paused=True)  # asked again, as a service would
        assert len(qemus(host)) == 1
        driver.stop_vm("victim", force=True)
        driver.close()

        killed_agent(host, "start", after=CREATE_SECONDS * step / STEPS)
        found = settle(host)
        assert found in (PowerState.STOPPED, PowerState.RUNNING), "neither started nor not"
        assert len(qemus(host)) == (found is PowerState.RUNNING)

        killed_agent(host, "delete", after=DELETE_SECONDS * step / STEPS)
        settle(host)
        driver = host.driver()
        driver.delete_vm("victim")
        driver.delete_network(network.network_id)
        driver.close()
        assert [trace for trace in host.traces() if not trace.endswith(SPECS)] == []

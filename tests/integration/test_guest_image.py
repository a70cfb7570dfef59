"""The demo guest: the same packages give the same bytes, it boots anywhere, it tells the truth."""

from __future__ import annotations

import hashlib
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest
from tests.integration.fabric_rig import REPOSITORY, ask, guest_images, rig, wait_for_records

from leeward.fabric import processes
from leeward.model.resources import PowerState

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


def test_it_is_built_the_same_again(tmp_path: Path) -> None:
    again = tmp_path / "again"
    subprocess.run(
        [sys.executable, REPOSITORY / "guest" / "build.py", "--out", again],
        env={**os.environ, "LEEWARD_CACHE": str(tmp_path / "cache")},
        check=True,
        capture_output=True,
        timeout=300,
    )
    for name in ("system.raw", "data.raw"):
        digests = {
            hashlib.sha256((where / name).read_bytes()).hexdigest()
            for where in (again, guest_images())
        }
        assert len(digests) == 1, f"{name} differs from one build to the next"


def test_a_missing_package_list_is_said_in_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, REPOSITORY / "guest" / "build.py", "--out", tmp_path / "out"],
        env={**os.environ, "LEEWARD_CACHE": str(tmp_path), "APT_CONFIG": _no_lists(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "apt-get update" in done.stderr
    assert "Traceback" not in done.stderr


def _no_lists(directory: Path) -> str:
    """Return an apt configuration under which no package is known."""
    (directory / "lists" / "partial").mkdir(parents=True)
    config = directory / "apt.conf"
    config.write_text(
        f'Dir::State::Lists "{directory}/lists"; Dir::State::status "/dev/null";\n'
        f'Dir::Cache::pkgcache "{directory}/p"; Dir::Cache::srcpkgcache "{directory}/s";\n'
    )
    return str(config)


def test_its_answers_over_http_and_its_records_after_a_loss_of_power() -> None:
    """In a VM without privileged networking, so that this works everywhere."""
    with rig() as host:
        driver = host.driver(is_privileged=False)
        network = host.network("g")
        driver.apply_network(network)
        status = driver.create_vm(host.guest_vm("guest", host.nics(network)))
        port = status.forwards[0].host_port
        before = wait_for_records(port, beyond=20)
        assert before["data"] <= before["system"]
        assert ask(port, "/write?mb=2") == {"written_mb": 2}
        assert ask(port, "/write?mb=1000") == {"error": "the data disk is full or failed"}
        assert ask(port, "/write?mb=two") == {"error": "mb is a number"}
        assert ask(port, "/nothing") == {"error": "not found"}
        # a record that begins after what was written was removed makes its removal durable too
        removed = wait_for_records(port, beyond=before["acknowledged"])
        last = wait_for_records(port, beyond=removed["acknowledged"] + 1)
        qemu = processes.identify(status.pid)
        assert qemu is not None
        processes.end(qemu, grace_seconds=0)

        port = driver.start_vm("guest").forwards[0].host_port
        after = wait_for_records(port, beyond=last["acknowledged"])
        assert after["boot_id"] != before["boot_id"]
        check = ask(port, "/check")
        assert check is not None
        assert check["ok"], check
        assert check["filesystems_clean"]
        assert check["last_data_at_boot"] <= check["last_system_at_boot"]
        assert check["last_data_at_boot"] >= last["acknowledged"], "it forgot what it acknowledged"
        assert ask(port, "/poweroff") == {"powering_off": True}
        _wait_stopped(driver.vm_status("guest").pid)
        assert driver.vm_status("guest").power is PowerState.STOPPED


def _wait_stopped(pid: int) -> None:
    if pid:
        descriptor = os.pidfd_open(pid)
        try:
            assert select.select([descriptor], [], [], 60)[0], "it did not power off"
        finally:
            os.close(descriptor)

"""What a VM shows: a picture where it has a display, its serial console in any case."""

from __future__ import annotations

import base64
import struct
import time
from dataclasses import replace

import pytest
from tests.integration.fabric_rig import rig

from leeward.core.errors import Conflict, InvalidRequest
from leeward.fabric.qemu_driver import QemuDriver

pytestmark = pytest.mark.integration


def test_a_display_is_pictured_and_a_vm_without_one_is_not() -> None:
    with rig() as host:
        driver = host.driver()
        plain = host.empty_vm("plain")
        shown = replace(
            host.empty_vm("shown"), display="vga", disks=(host.disk("other", format="qcow2"),)
        )
        with pytest.raises(InvalidRequest, match="none that a VM can have"):
            driver.create_vm(replace(plain, display="cga"))
        for spec in (plain, shown):
            driver.create_vm(spec)
        log = driver.vm_status("plain").console_log
        with open(log, "a") as console:
            console.write("x" * 10_000 + "login: ")
        assert driver.view_console("plain").screen == ""
        assert driver.view_console("plain").text.endswith("login: ")
        assert len(driver.view_console("plain").text) < 10_000
        picture = base64.b64decode(_screen(driver))
        assert picture[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", picture[16:24])
        assert width >= 320
        assert height >= 200
        assert not list((host.directory / "data").rglob("screen.png"))
        driver.stop_vm("shown", force=True)
        with pytest.raises(Conflict):
            driver.view_console("shown")


def _screen(driver: QemuDriver) -> str:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        screen = driver.view_console("shown").screen
        if screen:
            return screen
        time.sleep(0.2)
    raise AssertionError("no picture")

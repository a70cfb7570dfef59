"""QEMU's command line: the devices a guest sees and the names others rely on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from leeward.qemu.machine import (
    Accelerator,
    Machine,
    MachineDisk,
    MachineNic,
    command_line,
)

MACHINE = Machine(
    name="web-1",
    vcpus=2,
    memory_mib=256,
    accelerator=Accelerator.TCG,
    disks=(
        MachineDisk(name="system", path=Path("/d/web-1-system.raw"), format="raw", is_direct=True),
        MachineDisk(
            name="data",
            path=Path("/d/web-1-data.qcow2"),
            format="raw",
            is_overlay=True,
            base_socket=Path("/run/export"),
        ),
    ),
    nics=(MachineNic(name="nic0", mac="52:54:00:00:00:01", backend="tap,fd=9"),),
    qmp_socket=Path("/run/q,mp"),
    spare_qmp_socket=Path("/run/spare"),
    agent_socket=Path("/run/agent"),
    console_log=Path("/log"),
)


def values(argv: list[str], option: str) -> list[str]:
    return [argv[index + 1] for index, word in enumerate(argv) if word == option]


def devices(argv: list[str]) -> dict[str, dict[str, Any]]:
    parsed = [json.loads(value) for value in values(argv, "-device") if value.startswith("{")]
    return {device["id"]: device for device in parsed}


def test_nodes_have_the_names_others_attach_to() -> None:
    argv = command_line(MACHINE)
    nodes = [json.loads(value)["node-name"] for value in values(argv, "-blockdev")]
    assert nodes == [
        "file-system",
        "disk-system",
        "base-data",
        "file-data",
        "disk-data",
        "root-data",
    ]
    assert devices(argv)["dev-system"]["drive"] == "disk-system"
    assert devices(argv)["dev-data"]["drive"] == "root-data"


def test_a_disk_from_a_recovery_point_waits_and_a_normal_one_reports() -> None:
    found = devices(command_line(MACHINE))
    assert (found["dev-data"]["werror"], found["dev-data"]["rerror"]) == ("stop", "stop")
    assert (found["dev-system"]["werror"], found["dev-system"]["rerror"]) == ("report", "report")


def test_a_hydrated_disk_needs_no_base() -> None:
    hydrated = replace(MACHINE.disks[1], base_socket=None)
    argv = command_line(replace(MACHINE, disks=(MACHINE.disks[0], hydrated)))
    assert not any("base-data" in value and "nbd" in value for value in values(argv, "-blockdev"))


def test_it_boots_from_the_first_disk_and_waits_to_be_told() -> None:
    argv = command_line(MACHINE)
    assert "-S" in argv
    assert [d for d, device in devices(argv).items() if "bootindex" in device] == ["dev-system"]


def test_commas_in_paths_are_not_options() -> None:
    assert any("path=/run/q,,mp," in value for value in values(command_line(MACHINE), "-chardev"))


def test_direct_io_is_for_where_it_works() -> None:
    direct = json.loads(values(command_line(MACHINE), "-blockdev")[0])
    assert direct["cache"] == {"direct": True, "no-flush": False}
    cached = replace(MACHINE.disks[0], is_direct=False)
    argv = command_line(replace(MACHINE, disks=(cached,)))
    assert json.loads(values(argv, "-blockdev")[0])["cache"]["direct"] is False


def test_a_display_moves_nothing_else() -> None:
    without, with_one = command_line(MACHINE), command_line(replace(MACHINE, display="vga"))
    at = with_one.index("VGA,id=display")
    assert [*with_one[: at - 1], *with_one[at + 1 :]] == without

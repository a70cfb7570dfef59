"""What people get wrong: one clear sentence each, the documented exit code, nothing half-made."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from demo.ports import free_port
from scenario.rig import Ended, Rig, running_rig

from leeward.client.client import Resource
from leeward.client.views import MachineView
from leeward.model.resources import (
    AvailabilitySet,
    ResourceGroup,
    StorageAccount,
    VirtualNetwork,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]

JOB_FAILED, USAGE, NOT_FOUND, CONFLICT, UNAVAILABLE = 1, 2, 3, 4, 5
IN_EAST = ("--region", "east", "--resource-group", "idle-rg")
NOUNS: tuple[type[Resource], ...] = (
    *(ResourceGroup, VirtualNetwork, StorageAccount),
    *(AvailabilitySet, MachineView),
)
DISK = ("--disk", "system=idledisks,size=16M")


@pytest.fixture(scope="module")
def idle(rig: Rig) -> Iterator[Rig]:
    """Return Leeward with a VM idle-1 in east that has nothing to boot, protected to west."""
    rig.run("resource-group", "create", "idle-rg", "--region", "east")
    subnets = ("--address-space", "10.20.0.0/16", "--subnet", "only=10.20.1.0/24")
    rig.run("network", "create", "idle", *IN_EAST, *subnets)
    rig.run("storage-account", "create", "idledisks", *IN_EAST)
    nic = ("--nic", "only=idle/only,address=10.20.1.10")
    rig.run("vm", "create", "idle-1", *IN_EAST, "--memory", "64M", *DISK, *nic)
    rig.run("protect", "east/idle-1", "--to", "west")
    yield rig
    rig.run("unprotect", "idle-1")
    rig.run("vm", "delete", "east/idle-1")


@dataclass(frozen=True, slots=True)
class Mistake:
    """A command that must be refused, how, and what its sentence must speak of."""

    arguments: tuple[str, ...]
    code: int
    speaks_of: tuple[str, ...]


def new_vm(name: str, *rest: str) -> tuple[str, ...]:
    """Return the command that creates a small VM."""
    return ("vm", "create", name, *IN_EAST, "--memory", "64M", *rest)


MISTAKES = {
    "unknown-vm": Mistake(("protect", "east/ghost", "--to", "west"), NOT_FOUND, ("ghost", "east")),
    "unknown-region": Mistake(("protect", "east/idle-1", "--to", "north"), NOT_FOUND, ("north",)),
    "same-region": Mistake(("protect", "east/idle-1", "--to", "east"), USAGE, ("east",)),
    "protected-already": Mistake(
        ("protect", "east/idle-1", "--to", "west"), CONFLICT, ("idle-1", "already")
    ),
    "image-missing": Mistake(
        new_vm("new", "--disk", "system=idledisks,image=/nowhere.raw"),
        JOB_FAILED,
        ("/nowhere.raw",),
    ),
    "account-missing": Mistake(
        new_vm("new", "--disk", "system=nosuch,size=16M"), NOT_FOUND, ("nosuch",)
    ),
    "no-store": Mistake(
        ("storage-account", "create", "new", *IN_EAST, "--url", "ftp://x"), JOB_FAILED, ("ftp://x",)
    ),
    "address-clash": Mistake(
        new_vm("new", *DISK, "--nic", "only=idle/only,address=10.20.1.10"),
        CONFLICT,
        ("10.20.1.10",),
    ),
    "address-outside": Mistake(
        new_vm("new", *DISK, "--nic", "only=idle/only,address=10.99.1.10"),
        USAGE,
        ("10.99.1.10",),
    ),
    "name-taken": Mistake(new_vm("idle-1", *DISK), CONFLICT, ("idle-1",)),
    "unknown-item": Mistake(("failover", "ghost"), NOT_FOUND, ("ghost",)),
    "unknown-point": Mistake(
        ("failover", "idle-1", "--recovery-point", "rp-1-1"), NOT_FOUND, ("rp-1-1",)
    ),
    "not-failed-over": Mistake(("commit", "idle-1"), CONFLICT, ("idle-1",)),
    "disk-missing": Mistake(
        ("export", "idle-1", "latest", "--disk", "nosuch", "--raw", "x.raw"),
        NOT_FOUND,
        ("nosuch",),
    ),
    "nonsense-size": Mistake(new_vm("new", "--disk", "system=idledisks,size=big"), USAGE, ("big",)),
    "unknown-region-name": Mistake(("vm", "list", "--region", "no where"), USAGE, ("no where",)),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_refused_in_one_sentence(idle: Rig, mistake: Mistake) -> None:
    before = everything(idle)
    check_refused(idle.try_run(*mistake.arguments), mistake.code, *mistake.speaks_of)
    assert everything(idle) == before
    assert not (idle.directory / "x.raw").exists()


def check_refused(ended: Ended, code: int, *speaks_of: str) -> None:
    """The command was refused as it must be: in one sentence, after the steps of a job if any."""
    assert ended.code == code, ended
    assert ended.out == ""
    assert "Traceback" not in ended.said
    sentence = ended.said.splitlines()[-1]
    assert sentence.startswith("leeward: ")
    for word in speaks_of:
        assert word in sentence, sentence
    if code != JOB_FAILED:
        assert sentence == ended.said


def everything(rig: Rig) -> dict[str, object]:
    """Return all there is, by name, and what lies on the regions' disks."""
    found: dict[str, object] = {}
    for region in ("east", "west"):
        for noun in NOUNS:
            listed = rig.client.list(noun, region)
            found[f"{region} {noun.__name__}"] = sorted(each.name for each in listed)
        disks = (rig.data / "regions" / region / "storage").rglob("disks/*")
        found[f"{region} disks"] = sorted(str(path) for path in disks)
    found["items"] = sorted(
        item.name for vault in rig.client.vaults() for item in rig.client.items(vault.name)
    )
    return found


# -- before there is a service ---------------------------------------------------------------------


def test_service_unreachable(tmp_path: Path) -> None:
    port = free_port()
    environment = {"LEEWARD_URL": f"http://127.0.0.1:{port}", "LEEWARD_TOKEN": "x"}
    for arguments in (("status",), ("protect", "east/web-1", "--to", "west")):
        ended = nowhere(tmp_path).try_run(*arguments, environment=environment)
        check_refused(ended, UNAVAILABLE, str(port))


def test_no_leeward_known(tmp_path: Path) -> None:
    check_refused(nowhere(tmp_path).try_run("status"), UNAVAILABLE, "leeward up")


@pytest.mark.parametrize(
    ("content", "speaks_of"),
    [
        ("data = \n", "TOML"),
        ("[service]\nport = 'many'\n", "service.port"),
        ("colour = 'blue'\n", "colour"),
        ("\xff", "leeward.toml"),
    ],
    ids=["not-toml", "wrong-type", "unknown-key", "not-utf-8"],
)
@pytest.mark.parametrize("daemon", ["serve", "agent"])
def test_broken_settings(tmp_path: Path, daemon: str, content: str, speaks_of: str) -> None:
    rig = nowhere(tmp_path)
    (rig.directory / "leeward.toml").write_bytes(content.encode("latin-1"))
    check_refused(rig.try_run(daemon), USAGE, "leeward.toml", speaks_of)
    assert not rig.data.exists()


@pytest.mark.parametrize("command", ["serve", "up"])
def test_port_taken(tmp_path: Path, command: str) -> None:
    rig = nowhere(tmp_path)
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        if command == "up":
            ended = rig.try_run("up", "--port", port)
        else:
            ended = rig.try_run("serve", environment={"LEEWARD_SERVICE__PORT": port})
    check_refused(ended, UNAVAILABLE, port)
    assert not (rig.data / "service" / "vault.sqlite").exists()
    assert not (rig.data / "regions").exists()


def nowhere(directory: Path) -> Rig:
    """Return a rig in which nothing runs."""
    return Rig(directory)


def test_no_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for directory in os.environ["PATH"].split(os.pathsep):
        for program in Path(directory).glob("*"):
            link = programs / program.name
            if not program.name.startswith("qemu") and not link.is_symlink():
                link.symlink_to(program)
    assert shutil.which("qemu-system-x86_64", path=str(programs)) is None
    monkeypatch.setenv("PATH", str(programs))
    with running_rig(free_port()) as rig:
        doctor = rig.try_run("doctor")
        assert doctor.code == 1
        assert "qemu-system-x86_64" in doctor.out
        rig.run("resource-group", "create", "idle-rg", "--region", "east")
        rig.run("storage-account", "create", "idledisks", *IN_EAST)
        before = everything(rig)
        ended = rig.try_run(*new_vm("new", *DISK))
        check_refused(ended, JOB_FAILED, "qemu", "is not installed")
        assert everything(rig) == before

"""The story of the demo, step by step; each step says what it does and checks what came out.

Owns: the order of things, the checks, the figures printed at the end. Must not know: Leeward's
code; it types commands, watches the guest from outside, and sets the fire.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo.command import BOLD, DIM, GREEN, RED, RESET, CommandFailed, Leeward, say
from demo.fire import burn
from demo.poller import Poller, ask, bounds_at, lost_seconds

RPO_LIMIT_SECONDS = 10.0
GUEST_PORT = 8080
STREAM_SECONDS = 20
ARCHIVE_MIB = 192
"""Size of a third disk that nobody writes to: something for the initial replication to do."""


@dataclass
class Outcome:
    """What was checked and measured. The demo fails if any check did."""

    failed: list[str] = field(default_factory=list)
    figures: list[tuple[str, str]] = field(default_factory=list)

    def check(self, what: str, holds: bool, detail: str = "") -> None:
        """Record and print one check."""
        mark = f"{GREEN}✓{RESET}" if holds else f"{RED}✗ FAILED:{RESET}"
        say(f"  {mark} {what}{f'  {DIM}({detail}){RESET}' if detail else ''}")
        if not holds:
            self.failed.append(what)

    def measured(self, what: str, value: str) -> None:
        """Record and print one figure."""
        self.figures.append((what, value))
        say(f"  {what}: {BOLD}{value}{RESET}")


class Story:
    """One run: regions `east` and `west` under `directory`, guest images in `guest`."""

    def __init__(self, directory: Path, guest: Path, port: int, seed: int) -> None:
        self.directory = directory
        self.guest = guest
        self.port = port
        self.leeward = Leeward(directory)
        self.outcome = Outcome()
        self.random = random.Random(seed)
        self.original: dict[str, Any] = {}
        """What the VM in east was known by before the fire."""
        self._pollers: list[Poller] = []

    def run(self, meanwhile: Callable[[Story, Poller], None]) -> None:
        """Tell the story up to the failover's last change. meanwhile: told while the VM streams,
        before the fire. Raises: CommandFailed when it cannot go on."""
        self.start_regions()
        self.create_vm()
        witness = self.protect()
        points = self.stream()
        meanwhile(self, witness)
        self.before_fire()
        killed_at = self.burn_east(witness)
        points = self.points() or points
        self.fail_over(witness, killed_at)
        self.hydrate()
        self.change_points(witness, points)

    def before_fire(self) -> None:
        """Note what is to be compared after the way home."""
        self.original = identity(self.leeward.ask("vm", "show", "east/web-1"))

    def stop(self) -> None:
        """Stop asking the guest."""
        for poller in self._pollers:
            poller.stop()

    # -- steps -------------------------------------------------------------------------------------

    def start_regions(self) -> None:
        heading(1, "Two regions on this machine, and the service outside both")
        self.leeward.show("up", "--detach", "--regions", "east,west", "--port", str(self.port))

    def create_vm(self) -> None:
        heading(2, "A VM in east: two subnets, two disks in different storage accounts")
        show = self.leeward.show
        place = ("--region", "east", "--resource-group", "web-rg")
        show("resource-group", "create", "web-rg", "--region", "east")
        show(
            "network",
            "create",
            "corp",
            *place,
            "--address-space",
            "10.10.0.0/16",
            "--subnet",
            "front=10.10.1.0/24",
            "--subnet",
            "back=10.10.2.0/24",
        )
        show("storage-account", "create", "websystem", *place)
        show("storage-account", "create", "webdata", *place)
        show("availability-set", "create", "web-as", *place)
        archive = self.guest / "archive.raw"
        with archive.open("wb") as file:
            for _ in range(ARCHIVE_MIB):
                file.write(self.random.randbytes(1 << 20))
        say(f"  (a third disk, archive, holds {ARCHIVE_MIB} MiB that nobody changes)")
        show(
            "vm",
            "create",
            "web-1",
            *place,
            "--vcpus",
            "1",
            "--memory",
            "256M",
            "--disk",
            f"system=websystem,image={self.guest / 'system.raw'}",
            "--disk",
            f"data=webdata,image={self.guest / 'data.raw'}",
            "--disk",
            f"archive=webdata,image={archive}",
            "--nic",
            "front=corp/front",
            "--nic",
            "back=corp/back",
            "--availability-set",
            "web-as",
            "--forward",
            str(GUEST_PORT),
        )

    def protect(self) -> Poller:
        witness = self.witness("east")
        answer = self.wait_for_guest(witness[0])
        say(f"  the guest answers over HTTP: {answer['acknowledged']} records written so far")
        heading(3, "Protect it: one command; the plan first")
        self.leeward.show("protect", "east/web-1", "--to", "west", "--plan")
        before = self.wait_for_guest(witness[0])["acknowledged"]
        self.leeward.show("protect", "east/web-1", "--to", "west")
        after = self.wait_for_guest(witness[0])["acknowledged"]
        say(f"  the guest wrote on meanwhile: records {before} to {after}")
        return witness[1]

    def stream(self) -> list[dict[str, Any]]:
        heading(4, f"Let it stream for {STREAM_SECONDS} s")
        begun = self._health()["replication"]
        time.sleep(STREAM_SECONDS)
        self.leeward.show("status")
        self.leeward.show("recovery-point", "list", "web-1", "--limit", "8")
        points = self.points()
        self.outcome.check(
            "recovery points about every second",
            len(points) >= STREAM_SECONDS // 2,
            f"{len(points)} points",
        )
        replication = self._health()["replication"]
        shipped, written = (
            replication[each] - begun[each] for each in ("bytes_shipped", "bytes_written")
        )
        self.outcome.measured(
            f"in these {STREAM_SECONDS} s", f"guest wrote {mib(written)}, {mib(shipped)} shipped"
        )
        return points

    def burn_east(self, witness: Poller) -> float:
        heading(5, "Region east burns: every process SIGKILLed at once, its directories gone")
        killed, moment = burn(self.directory, "east")
        time.sleep(0.3)
        last = [reading for reading in witness.readings if reading.answered <= moment][-1]
        say(f"  {killed} processes killed; {self.directory}/regions/east is gone")
        say(f"  last record the guest acknowledged to the outside: {last.acknowledged}")
        return moment

    def fail_over(self, witness: Poller, killed_at: float) -> None:
        heading(6, "Fail over to west, to the latest recovery point")
        called = time.time()
        self.leeward.show("failover", "web-1", "--recovery-point", "latest")
        booting = time.time()
        address, _ = self.witness("west")
        self.wait_for_guest(address)
        answered = time.time()
        heading(7, "What survived")
        report = self.check_guest(address)
        surviving = int(report["last_system_at_boot"])
        acknowledged = [r for r in witness.readings if r.answered <= killed_at][-1].acknowledged
        rpo = lost_seconds(witness.readings, surviving=surviving, end=killed_at)
        self.outcome.measured("last record acknowledged before the fire", str(acknowledged))
        self.outcome.measured("last record that survived", str(surviving))
        self.outcome.measured("RPO", f"{rpo:.2f} s")
        self.outcome.measured(
            "RTO",
            f"{answered - called:.2f} s from the call to the guest's HTTP answer, "
            f"of that {answered - booting:.2f} s the guest's own boot",
        )
        self.outcome.check(f"RPO at most {RPO_LIMIT_SECONDS:.0f} s", rpo <= RPO_LIMIT_SECONDS)
        vm = self.leeward.ask("vm", "show", "west/web-1")
        self.outcome.check(
            "it runs in the target resource group, network, subnets and availability set",
            vm["resource_group"] == "web-rg-asr"
            and [(nic["network"], nic["subnet"]) for nic in vm["nics"]]
            == [("corp-asr", "front"), ("corp-asr", "back")]
            and vm["availability_set"] == "web-as-asr",
        )

    def hydrate(self) -> None:
        address, _ = self.witness("west")
        say("  hydrating in the background while the guest runs on …")
        deadline = time.monotonic() + 90
        hydration: dict[str, Any] = {}
        while time.monotonic() < deadline and not hydration.get("done"):
            time.sleep(0.5)
            hydration = self._health().get("hydration") or {}
        before = ask(address, "/counter")
        time.sleep(1.5)
        after = ask(address, "/counter")
        self.outcome.check(
            "hydration ran to its end and the export went away",
            bool(hydration.get("done")),
            mib(hydration.get("bytes_done", 0)),
        )
        self.outcome.check(
            "the guest keeps answering and writing on its own disks",
            before is not None
            and after is not None
            and int(str(after["acknowledged"])) > int(str(before["acknowledged"])),
        )

    def change_points(self, witness: Poller, points: list[dict[str, Any]]) -> None:
        heading(8, "Change the recovery point twice, to points drawn at random")
        current = self.leeward.ask("item", "show", "web-1")["recovery_point"]
        provable = [
            point
            for point in points
            if point["id"] != current and bounds_at(witness.readings, point["time_ns"] / 1e9)
        ]
        for point in self.random.sample(provable, 2):
            self.leeward.show("change-recovery-point", "web-1", point["id"])
            address, _ = self.witness("west")
            self.wait_for_guest(address)
            surviving = int(self.check_guest(address)["last_system_at_boot"])
            bounds = bounds_at(witness.readings, point["time_ns"] / 1e9)
            assert bounds is not None
            self.outcome.check(
                f"{point['id']} holds what the guest had acknowledged at its time",
                bounds.at_least <= surviving <= bounds.at_most,
                f"record {surviving} in [{bounds.at_least}, {bounds.at_most}]",
            )

    # -- asking ------------------------------------------------------------------------------------

    def points(self) -> list[dict[str, Any]]:
        """Return the item's recovery points as JSON."""
        listed: list[dict[str, Any]] = self.leeward.ask("recovery-point", "list", "web-1")
        return listed

    def _health(self) -> dict[str, Any]:
        health: dict[str, Any] = self.leeward.ask("item", "show", "web-1")["health"]
        return health

    def witness(self, region: str) -> tuple[str, Poller]:
        """Return the guest's forwarded address in `region`, and a poller of it that has begun."""
        forward = self.leeward.ask("vm", "show", f"{region}/web-1")["status"]["forwards"][0]
        address = f"{forward['host_address']}:{forward['host_port']}"
        poller = Poller(address)
        poller.start()
        self._pollers.append(poller)
        return address, poller

    def wait_for_guest(self, address: str) -> dict[str, object]:
        """Return the guest's answer once it gives one. Raises: CommandFailed."""
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            answer = ask(address, "/counter")
            if answer is not None:
                return answer
            time.sleep(0.05)
        raise CommandFailed("the guest did not answer over HTTP within 90 s")

    def check_guest(self, address: str) -> dict[str, Any]:
        """Return what the guest says of its disks, having checked it. Raises: CommandFailed."""
        report: dict[str, Any] | None = ask(address, "/check", timeout_seconds=60)
        if report is None:
            raise CommandFailed("the guest did not answer /check within 60 s")
        self.outcome.check("file systems clean", bool(report["filesystems_clean"]))
        self.outcome.check(
            "records 1 to n all present on both disks, no gap",
            bool(report["no_gap"]),
            f"n = {report['last_system_at_boot']}",
        )
        self.outcome.check(
            "data disk never ahead of system disk",
            int(report["last_data_at_boot"]) <= int(report["last_system_at_boot"]),
            f"{report['last_data_at_boot']} ≤ {report['last_system_at_boot']}",
        )
        return report


def identity(machine: dict[str, Any]) -> dict[str, Any]:
    """Return what people and the guest know a VM by."""
    return {
        "name": machine["name"],
        "resource_group": machine["resource_group"],
        "availability_set": machine["availability_set"],
        "nics": machine["nics"],
        "accounts": [(disk["name"], disk["storage_account"]) for disk in machine["disks"]],
    }


def heading(number: int, text: str) -> None:
    """Print the title of a step."""
    say(f"\n{BOLD}{number}. {text}{RESET}")


def mib(count: float) -> str:
    """Return bytes as MiB for people."""
    return f"{count / (1 << 20):.1f} MiB"

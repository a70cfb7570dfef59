"""After the fire: east is built anew, and the VM comes home to it.

Owns: the steps from the commit to the VM's being protected in west once more. Must not know: how
the story began. It types commands and asks the guest, as the story does.
"""

from __future__ import annotations

import time
from typing import Any

from demo.command import CommandFailed
from demo.story import Story, heading, identity, mib


def come_home(story: Story) -> None:
    """The VM is in east again, as it was before the fire, with all that it wrote in west."""
    rebuild_east(story)
    reprotect(story)
    fail_back(story)
    protect_again(story)


def rebuild_east(story: Story) -> None:
    heading(9, "Region east is built anew; the VM in west does not notice")
    story.leeward.show("commit", "web-1")
    address, _ = story.witness("west")
    first = story.wait_for_guest(address)["acknowledged"]
    (story.directory / "regions" / "east").mkdir(mode=0o700)
    story.leeward.show("down")
    story.leeward.show("up", "--detach")
    last = story.wait_for_guest(address)["acknowledged"]
    story.outcome.check(
        "the guest went on while every daemon was restarted",
        int(str(last)) > int(str(first)),
        f"records {first} to {last}",
    )


def reprotect(story: Story) -> None:
    heading(10, "Reprotect it, from west to east: nothing is left there, so everything travels")
    story.leeward.show("reprotect", "web-1")
    _wait_protected(story)
    story.outcome.measured("reprotected into an empty region", f"{_shipped(story)} shipped")


def fail_back(story: Story) -> None:
    heading(11, "Fail back to east, planned: the guest powers off, nothing is lost")
    _, poller = story.witness("west")
    time.sleep(1.0)
    story.leeward.show("failover", "web-1", "--planned")
    acknowledged = poller.readings[-1].acknowledged
    address, _ = story.witness("east")
    story.wait_for_guest(address)
    surviving = int(story.check_guest(address)["last_system_at_boot"])
    story.outcome.check(
        "nothing that was acknowledged is lost",
        surviving >= acknowledged,
        f"{acknowledged} acknowledged in west, {surviving} in east",
    )
    now = identity(story.leeward.ask("vm", "show", "east/web-1"))
    story.outcome.check(
        "it is the VM that burned: name, group, networks, addresses, MACs, storage accounts",
        now == story.original,
        ", ".join(nic["address"] for nic in now["nics"]),
    )


def protect_again(story: Story) -> None:
    heading(12, "Protect it in west once more: now only what differs travels")
    story.leeward.show("commit", "web-1")
    story.leeward.show("reprotect", "web-1")
    _wait_protected(story)
    story.outcome.measured("reprotected where its disks still were", f"{_shipped(story)} shipped")


def _wait_protected(story: Story) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        item = story.leeward.ask("item", "show", "web-1")
        if item["state"] == "protected" and not item["problem"]:
            return
        time.sleep(0.3)
    raise CommandFailed("web-1 was not protected within 60 s")


def _shipped(story: Story) -> str:
    health: dict[str, Any] = story.leeward.ask("item", "show", "web-1")["health"]
    shipped = int(health["replication"]["bytes_shipped"])
    return mib(shipped) if shipped >= 1 << 20 else f"{shipped / 1024:.1f} KiB"

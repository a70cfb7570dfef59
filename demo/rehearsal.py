"""The demo's test failover: while the VM runs and is replicated, a copy of it boots in isolation.

Owns: that part of the story. Must not know: how the copy is isolated; it looks at what its network
namespaces hold and asks the copy over its one forwarded port.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from demo.command import BOLD, CYAN, RESET, say
from demo.poller import Poller, ask
from demo.story import GUEST_PORT, Story


def rehearse(story: Story, witness: Poller) -> None:
    """Tell the test failover: boot, check, clean up. Raises: CommandFailed."""
    say(f"\n{BOLD}Meanwhile, a test failover: a copy boots in west, isolated{RESET}")
    before, last = test_namespaces(), witness.readings[-1].acknowledged
    arguments = ("test-failover", "web-1", "--forward", str(GUEST_PORT))
    say(f"{CYAN}$ leeward {' '.join(arguments)}{RESET}")
    job = story.leeward.ask(*arguments)
    forward = job["result"]["status"]["forwards"][0]
    address = f"{forward['host_address']}:{forward['host_port']}"
    say(f"  a copy of web-1 runs from {job['result']['recovery_point']}, reached at {address} only")
    story.wait_for_guest(address)
    story.check_guest(address)
    made = test_namespaces() - before
    leading_out = [device for name in sorted(made) for device in devices_leading_out(name)]
    story.outcome.check(
        "its networks have the same addresses and no way out",
        bool(made) and not leading_out,
        ", ".join(leading_out) or f"{len(made)} network namespace, bridges and its own taps only",
    )
    item = story.leeward.ask("item", "show", "web-1")
    now = ask(witness.address, "/counter") or {}
    story.outcome.check(
        "web-1 itself writes on and is protected meanwhile",
        int(str(now.get("acknowledged", 0))) > last and item["state"] == "protected",
    )
    story.leeward.show("test-failover-cleanup", "web-1")
    story.outcome.check("nothing of the copy is left", not test_namespaces() & made)


def test_namespaces() -> set[str]:
    """Return the network namespaces of test failovers on this machine."""
    return {path.name for path in Path("/run/netns").glob("lw-t*")}


def devices_leading_out(namespace: str) -> list[str]:
    """Return devices of the namespace through which packets could leave it."""
    shown = subprocess.run(
        ["ip", "-j", "-n", namespace, "link"], capture_output=True, text=True, check=True
    )
    links: list[dict[str, Any]] = json.loads(shown.stdout)
    names = [str(link["ifname"]) for link in links]
    return [name for name in names if name != "lo" and not name.startswith(("br-", "tap"))]

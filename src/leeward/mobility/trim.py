"""A guest asked to discard what its file systems do not use.

Owns: the question to the guest's agent, and what its answer means. Must not know: mirrors, images.
"""

from __future__ import annotations

from pathlib import Path

from leeward.core.errors import HypervisorRefused, Unavailable
from leeward.mobility.guest_agent import AgentError, AgentRefused, GuestAgent

SYNC_SECONDS = 5.0
TRIM_SECONDS = 60.0
_HINT = "run qemu-guest-agent in the guest, with guest-fstrim allowed"


def trim_guest(agent_socket: Path) -> None:
    """Return when every mounted file system of the guest that can has discarded what it does not
    use.

    Raises: HypervisorRefused when none could; Unavailable when the guest's agent does not answer:
    it may still be at it.
    """
    agent = GuestAgent(agent_socket)
    try:
        agent.sync(seconds=SYNC_SECONDS)
        answer = agent.execute("guest-fstrim", seconds=TRIM_SECONDS)
    except AgentRefused as error:
        raise HypervisorRefused(f"the guest does not trim: {error}", hint=_HINT) from error
    except AgentError as error:
        raise Unavailable(f"the guest was asked to trim: {error}", hint=_HINT) from error
    finally:
        agent.close()
    paths = answer.get("paths", [])
    errors = [str(path["error"]) for path in paths if "error" in path]
    if len(errors) == len(paths):
        said = errors[0] if errors else "it has no file system that could"
        raise HypervisorRefused(f"nothing of the guest could be trimmed: {said}")

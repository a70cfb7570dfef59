"""Round `worker`: the worker of an item is gone for good, and another one takes over."""

from __future__ import annotations

import os
import signal
import subprocess

from leeward.client.config import load_config
from leeward.model.recovery import Job
from scenario.rig import PROGRAM, Part, Rig
from scenario.rounds.act import SERVICE, SPARE, WEB, WORKER_WEST, Act, Round
from scenario.rounds.place import gone, protected

SPARE_REGION = "west-spare"
"""What its process says of itself, so that it is not taken for the region's own worker."""


def _begin_worker(rig: Rig) -> None:
    """west has a second worker, which nobody starts again, and it processes web-1."""
    home = rig.directory / SPARE
    home.mkdir(exist_ok=True)
    token = home / "token"
    token.write_text(rig.client.enrolment_token("west").token)
    token.chmod(0o600)
    options = (
        *("--region", "west", "--name", SPARE, "--service", load_config(rig.data).url),
        *("--token-file", str(token), "--data-dir", str(home)),
    )
    with (home / "worker.log").open("ab") as log:
        subprocess.Popen(
            [*PROGRAM, "worker", *options],
            env=os.environ | {"LEEWARD_DATA": str(rig.data), "LEEWARD_REGION": SPARE_REGION},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    rig.wait("the second worker", lambda: _is_heard(rig))
    protected(rig, WEB)


def _is_heard(rig: Rig) -> bool:
    return any(node.name == SPARE and node.is_online for node in rig.client.nodes())


def _signal_spare(rig: Rig, number: int) -> None:
    for pid in rig.pids(Part.WORKER, SPARE_REGION):
        os.kill(pid, number)


def _lost(rig: Rig) -> Job | None:
    """Return the job that nobody asked for: newer than the item."""
    for job in rig.client.jobs(limit=50):
        if job.verb in ("item.change-worker", "item.protect"):
            return job if job.verb == "item.change-worker" else None
    return None


def _end_worker(rig: Rig) -> None:
    """The second worker comes back, lets go of what it has lost, and goes."""
    _signal_spare(rig, signal.SIGCONT)
    gone(rig)
    _signal_spare(rig, signal.SIGTERM)
    rig.wait("its end", lambda: not rig.pids(Part.WORKER, SPARE_REGION))


WORKER = Round(
    name="worker",
    victims=(SERVICE, WORKER_WEST),
    begin=_begin_worker,
    end=_end_worker,
    acts=(
        Act(
            verb="item.change-worker",
            before=lambda rig: _signal_spare(rig, signal.SIGSTOP),
            ask=_lost,
        ),
    ),
)

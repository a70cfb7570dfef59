"""`make demo`: build the guest, tell the story, clean up, say whether it held.

Exit code 0 only if every check held.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from demo.command import BOLD, DIM, GREEN, RED, RESET, CommandFailed, say
from demo.fire import kill_all, processes_of
from demo.homecoming import come_home
from demo.ports import free_port
from demo.rehearsal import rehearse
from demo.story import Story

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Run the demo once. Returns: the exit code."""
    options = parse_arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # who ends it wants it cleaned up
    started = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="leeward-demo-", dir=options.directory))
    story = Story(directory / "data", directory / "guest", free_port(), options.seed)
    try:
        say(f"{BOLD}Leeward: a running VM survives the loss of its region{RESET}")
        say(f"{DIM}everything lies in {directory}; random seed {options.seed}{RESET}")
        say("building the guest from Debian packages …")
        subprocess.run(
            [sys.executable, ROOT / "guest" / "build.py", "--out", story.guest], check=True
        )
        story.run(rehearse)
        come_home(story)
    except (CommandFailed, subprocess.SubprocessError) as error:
        story.outcome.failed.append(str(error))
        say(f"{RED}✗ {error}{RESET}")
        keep_logs(story)
    except KeyboardInterrupt:
        story.outcome.failed.append("interrupted")
    finally:
        story.stop()
        clean_up(story, keep=options.keep)
    return report(story, time.monotonic() - started)


def parse_arguments() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="where to work")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the drawn points")
    parser.add_argument("--keep", action="store_true", help="keep the directory afterwards")
    return parser.parse_args()


def keep_logs(story: Story) -> None:
    """Copy what the daemons wrote to a place that survives the cleaning up, and say where."""
    kept = Path(tempfile.mkdtemp(prefix="leeward-demo-logs-", dir="/var/tmp"))
    for log in story.directory.rglob("*.log"):
        target = kept / log.relative_to(story.directory)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(log, target)
    say(f"the logs are kept in {kept}")


def clean_up(story: Story, *, keep: bool) -> None:
    """End what still runs and remove what was made; say if something would not go."""
    say(f"\n{BOLD}13. Clean up{RESET}")
    burned = story.directory / "burned-east"
    if burned.exists():
        burned.chmod(0o700)
    try:
        story.leeward.show("down", "--vms", timeout_seconds=60)
    except (CommandFailed, subprocess.TimeoutExpired) as error:
        story.outcome.failed.append(f"clean up: {error}")
    left = processes_of(story.directory)
    kill_all(left)
    story.outcome.check("no process left behind", not left, f"{len(left)} left")
    if keep:
        say(f"kept {story.directory.parent}")
    else:
        shutil.rmtree(story.directory.parent, ignore_errors=True)


def report(story: Story, seconds: float) -> int:
    """Print the figures and the verdict. Returns: the exit code."""
    say(f"\n{BOLD}In short{RESET}")
    for what, value in story.outcome.figures:
        say(f"  {what}: {BOLD}{value}{RESET}")
    if story.outcome.failed:
        say(f"{RED}FAILED after {seconds:.0f} s:{RESET}")
        for failure in story.outcome.failed:
            say(f"  {RED}✗{RESET} {failure}")
        return 1
    say(f"{GREEN}every check held{RESET} ({seconds:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())

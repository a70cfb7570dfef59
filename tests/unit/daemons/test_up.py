"""`leeward up` watches on, whatever becomes of what it says."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import cast

from leeward.daemons.children import Child
from leeward.daemons.signals import StopSignal
from leeward.daemons.up import Administration, Up, UpOptions


class Stop:
    """Is set after three looks."""

    def __init__(self) -> None:
        self.looks = 0

    def wait(self, seconds: float) -> bool:
        self.looks += 1
        return self.looks > 3


class Dying:
    """A daemon that has something to say at every look."""

    def __init__(self) -> None:
        self.looks = 0

    def look(self) -> str:
        self.looks += 1
        return "agent east-1 has died; it is started again in 0.5 s"


def test_a_log_on_a_full_disk_ends_no_daemon(tmp_path: Path) -> None:
    def say(sentence: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def administer(url: str) -> Administration:
        raise AssertionError("nobody is asked")

    child = Dying()
    up = Up(UpOptions(data=tmp_path), administer=administer, stop=cast(StopSignal, Stop()), say=say)
    up._children.append(cast(Child, child))
    up._watch()
    assert child.looks == 3
    up._children.clear()
    up.end()

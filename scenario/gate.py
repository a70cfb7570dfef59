"""Where the service waits at each step of a job, so that somebody can be killed right there.

Owns: the socket at which the service (step_gate/sitecustomize.py) asks whether it may go on. Must
not know: jobs, who is killed.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingUnixStreamServer

PLACE = Path(__file__).parent / "step_gate"
SOCKET, NO_UNDO = "LEEWARD_SCENARIO_GATE", "LEEWARD_SCENARIO_NO_UNDO"
AtStep = Callable[[str, str, str], None]
"""Called with job, step and "before" or "after" its action; the service goes on when it returns."""


@contextmanager
def gate(path: Path, at_step: AtStep, *, no_undo: Path | None = None) -> Iterator[None]:
    """Services that are started within the environment that holds meanwhile ask at `path`. no_undo:
    they have the defect that drills leave what they have booted; the file is there once it acted.
    """

    class Asked(StreamRequestHandler):
        def handle(self) -> None:
            with suppress(OSError, ValueError):  # it was killed while it waited
                about = json.loads(self.rfile.readline())
                at_step(about["job"], about["step"], about["when"])
                self.wfile.write(b".")

    with ThreadingUnixStreamServer(str(path), Asked) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, name="gate", daemon=True)
        thread.start()
        before = {name: os.environ.get(name) for name in (SOCKET, NO_UNDO, "PYTHONPATH")}
        os.environ[SOCKET] = str(path)
        os.environ |= {NO_UNDO: str(no_undo)} if no_undo else {}
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(PLACE), before["PYTHONPATH"])))
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                os.environ.update({name: value} if value is not None else {})
            server.shutdown()
            thread.join()

"""docs/operations.md, "On separate machines": every machine a data directory of its own.

Owns: those machines, which are directories here, and their end. Must not know: the page's rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from demo.fire import kill_all, processes_of
from demo.ports import free_port

from scenario.page import Reader

READY_SECONDS = 90.0


def separate_machines(reader: Reader) -> None:
    """A service, an agent and a worker, each on a machine of its own, know each other."""
    port, names = free_port(), ("service", "east-1", "west-worker")
    tunnel = f"127.0.0.1:{free_port()}"
    machines = {name: reader.directory / f"machine-{name}" for name in names}
    for machine in machines.values():
        machine.mkdir()
    before = dict(reader.environment)
    service = machines["service"]
    common = {"LEEWARD_SERVICE__PORT": str(port), "LEEWARD_KEY_FILE": ""}
    try:
        reader.environment.update(common, LEEWARD_DATA=str(service))
        reader.start("leeward serve")
        wait_for("the service", lambda: (service / "service" / "api-token").exists())
        reader.environment |= {
            "LEEWARD_DATA": str(reader.directory / "elsewhere"),
            "LEEWARD_URL": f"http://127.0.0.1:{port}",
            "LEEWARD_TOKEN": (service / "service" / "api-token").read_text().strip(),
        }
        wait_for("an answer", lambda: _answers(reader))
        reader.run("leeward region create east")
        reader.run("leeward region create west")
        tokens = {name: reader.directory / f"token-{name}" for name in names[1:]}
        reader.run("leeward region token east > FILE", names={"FILE": str(tokens["east-1"])})
        reader.run(
            "leeward region token REGION > FILE",
            names={"REGION": "west", "FILE": str(tokens["west-worker"])},
        )
        url = reader.environment["LEEWARD_URL"]
        asking = dict(reader.environment)
        reader.environment = {**before, **common, "LEEWARD_DATA": str(machines["east-1"])}
        reader.start(
            "leeward agent --region east --name east-1 --service URL --token-file FILE "
            "--tunnel 192.0.2.10:4789",
            names={"192.0.2.10:4789": tunnel, "URL": url, "FILE": str(tokens["east-1"])},
        )
        reader.environment = {**before, **common, "LEEWARD_DATA": str(machines["west-worker"])}
        reader.start(
            "leeward worker --region west --name west-worker --service URL --token-file FILE",
            names={"URL": url, "FILE": str(tokens["west-worker"])},
        )
        reader.environment = asking
        wait_for("both nodes", lambda: _status(reader).count("online") == 2)
        reader.run("leeward status", r"east +agent +east-1 +online", r"west-worker +online")
        spent = [name for name, token in tokens.items() if token.exists()]
        reader.findings.check("each token is spent and deleted", not spent, ", ".join(spent))
        reader.aside("leeward resource-group create dr --region east")
        reader.run(
            "leeward storage-account create NAME --region REGION -g GROUP --url URL",
            names={
                "REGION": "east",
                "GROUP": "dr",
                "NAME": "drsystem",
                "URL": f"file://{reader.directory}/machine-store",
            },
        )
    finally:
        reader.environment = before
        reader.end_all()
        for machine in machines.values():
            kill_all(processes_of(machine))


def wait_for(what: str, look: Callable[[], bool], seconds: float = READY_SECONDS) -> None:
    """Return when `look` says so. Raises: AssertionError."""
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.2)


def _status(reader: Reader) -> str:
    return reader.aside("leeward status").stdout


def _answers(reader: Reader) -> bool:
    return reader.aside("leeward status").returncode == 0

"""One Leeward for all scenarios: it takes longer to start than to hurt."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from demo.poller import ask
from demo.ports import free_port
from scenario.rig import Rig, Witness, create_vm, running_rig, small_store

SEED = int(os.environ.get("LEEWARD_SCENARIO_SEED", "1"))
BULK_MIB = 16
"""Written before anybody watches: initial replication shall take a moment."""
_MEASURED = pytest.StashKey[dict[str, str]]()


@pytest.fixture(scope="session")
def rig() -> Iterator[Rig]:
    """Return a running Leeward with regions east and west."""
    with running_rig(free_port()) as rig:
        yield rig


@pytest.fixture(scope="session")
def cache(rig: Rig) -> Iterator[Path]:
    """Return the directory of the cache account that web-1 is protected through."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to give the cache a file system of its own")
    with small_store(rig, "cache") as place:
        yield place


@pytest.fixture(scope="session")
def witness(rig: Rig, cache: Path) -> Iterator[Witness]:
    """Return the witness of web-1, running in east under its workload, not protected yet."""
    create_vm(rig)
    address = rig.wait_guest("east")
    ask(address, f"/write?mb={BULK_MIB}", timeout_seconds=120)
    witness = Witness(address)
    yield witness
    witness.stop()


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Return randomness that LEEWARD_SCENARIO_SEED and the test's name decide."""
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture(scope="session")
def measured(pytestconfig: pytest.Config) -> dict[str, str]:
    """Return where a test notes what it measured; printed at the end of the run."""
    return pytestconfig.stash.setdefault(_MEASURED, {})


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print what was measured."""
    figures = config.stash.get(_MEASURED, {})
    if figures:
        terminalreporter.section(f"measured (seed {SEED})")
        for what, value in figures.items():
            terminalreporter.line(f"{what}: {value}")

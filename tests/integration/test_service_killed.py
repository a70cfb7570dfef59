"""kill -9 of the service at any moment: jobs go on after the restart, commands are not doubled."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.integration.service_rig import (
    Json,
    Operator,
    ServiceProcess,
    World,
    running_service,
    wait_for,
)

from leeward.protocol.messages import Verb

pytestmark = pytest.mark.integration


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServiceProcess]:
    with running_service(tmp_path) as running:
        yield running


class Nemesis:
    """Kills the service at chosen commands, once each, and starts it again before the node goes on:
    the job that waits for the command cannot end without having been killed."""

    def __init__(self, site: World, *, before: set[Verb], after: set[Verb]) -> None:
        """before, after: kill when a node got the command; when it has carried it out, untold."""
        self.kills = 0
        self._service = site.service
        self._lock = threading.Lock()
        for node in site.nodes:
            node.before = self._killer(before)
            node.after = self._killer(after)

    def _killer(self, verbs: set[Verb]) -> Callable[[Verb], None]:
        left = set(verbs)

        def strike(verb: Verb) -> None:
            with self._lock:
                if verb not in left:
                    return
                left.remove(verb)
                self._service.kill()
                self.kills += 1
                self._service.start()

        return strike


def submit(site: World, path: str, body: Json, key: str) -> Json:
    """Return the job, asked for until the service has taken it, under one key."""

    def ask() -> Any:
        with suppress(httpx.HTTPError):
            reply = site.operator.request("POST", path, body, **{"Idempotency-Key": key})
            assert reply.status_code in (202, 503), reply.text
            return reply.json() if reply.status_code == 202 else None
        return None

    job: Json = wait_for(ask, "the job", seconds=60)
    return job


@pytest.mark.timeout(400)
def test_protect_and_failover_go_on_through_kills(service: ServiceProcess) -> None:
    site = World(service)
    try:
        site.add_vm()
        nemesis = Nemesis(
            site,
            before={Verb.REPLICATION_START, Verb.PROCESSING_SEAL},
            after={Verb.PROCESSING_START, Verb.RECOVERY_BOOT},
        )
        body = {"source_region": "east", "vm": "web-1", "target_region": "west"}
        job = submit(site, site.items, body, "protect-once")
        ended = site.operator.ended(job, seconds=90)
        assert ended["state"] == "succeeded", ended
        job = submit(site, f"{site.items}/web-1/failover", {}, "failover-once")
        ended = site.operator.ended(job, seconds=90)
        assert ended["state"] == "succeeded", ended
        wait_for(service.answers, "the service's answer")
        item = site.item()
        assert item["state"] == "failed_over"
        assert item["epoch"] == 2
        wait_for(lambda: Verb.REPLICATION_FENCE in site.source.verbs(), "the fence")
        assert nemesis.kills == 4
    finally:
        site.stop()
    for node in site.nodes:
        assert max(node.carried_out.values()) == 1
    once = (
        Verb.REPLICATION_START,
        Verb.PROCESSING_START,
        Verb.PROCESSING_SEAL,
        Verb.RECOVERY_BOOT,
        Verb.REPLICATION_FENCE,
    )
    asked = Counter(verb for node in site.nodes for verb in node.verbs())
    assert {verb: asked[verb] for verb in once} == dict.fromkeys(once, 1)
    jobs = [job["verb"] for job in all_jobs(service)]
    assert jobs.count("item.protect") == jobs.count("item.failover") == 1


def all_jobs(service: ServiceProcess) -> list[Json]:
    """Return every job of the service."""
    found: list[Json] = Operator(service.url, service.token).get("/jobs")["items"]
    return found


def test_a_stopped_service_takes_up_a_waiting_job(service: ServiceProcess) -> None:
    site = World(service)
    try:
        site.add_vm()
        site.worker.makes_points = False
        job = site.protect()
        wait_for(lambda: site.item()["state"] == "initial_replication", "initial replication")
        service.stop()
        service.start()
        assert site.operator.get(f"/jobs/{job['id']}")["state"] == "running"
        site.worker.makes_points = True
        assert site.operator.done(job)["result"]["recovery_point"]
        assert site.source.verbs().count(Verb.REPLICATION_START) == 1
    finally:
        site.stop()

"""A guest asked from inside its network: there or not, answering rightly or not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer

import pytest
from tests.integration.fabric_rig import rig
from tests.integration.test_fabric_networks import station

from leeward.core.errors import InvalidRequest, Unavailable
from leeward.fabric import namespaces
from leeward.fabric.probes import run_probes
from leeward.model.drills import Finding, Probe, ProbeKind
from leeward.protocol.drills import ProbingSpec
from leeward.protocol.fabric import NetworkSpec

pytestmark = pytest.mark.integration
GUEST = "10.77.0.4"
TCP = Probe(kind=ProbeKind.TCP, port=80, timeout_seconds=1)


class Answers(BaseHTTPRequestHandler):
    """A guest's service that is ready at the second attempt."""

    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(200 if self.asked > 1 else 503)
        self.end_headers()
        self.wfile.write(b'{"ok": true}')

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def network() -> Iterator[NetworkSpec]:
    with rig() as host:
        spec = host.network("p")
        host.driver(is_privileged=True).apply_network(spec)
        yield spec


@pytest.fixture
def guest(network: NetworkSpec) -> Iterator[str]:
    """Give the namespace of a guest, without a service."""
    with ExitStack() as stack:
        yield station(stack, network, "front", GUEST)


def ask(network: NetworkSpec, *probes: Probe, address: str = GUEST) -> tuple[Finding, ...]:
    spec = ProbingSpec(
        run_id="r",
        network_id=network.network_id,
        address=address,
        boot_seconds=1,
        probes=probes,
    )
    return run_probes(spec).findings


def test_services_are_waited_for_and_judged(network: NetworkSpec, guest: str) -> None:
    Answers.asked = 0
    server = namespaces.inside(guest, lambda: TCPServer((GUEST, 80), Answers))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        http = Probe(kind=ProbeKind.HTTP, port=80, path="/check", text='"ok": true')
        boot, right, port = ask(network, http, TCP)
        assert boot.passed
        assert right.passed
        assert port.passed
        assert right.detail == "status 200"
        wrong = Probe(kind=ProbeKind.HTTP, port=80, text="never", timeout_seconds=0.5)
        moved = Probe(kind=ProbeKind.HTTP, port=80, status=301, timeout_seconds=0.5)
        _, wrong_text, wrong_status = ask(network, wrong, moved)
        assert not wrong_text.passed
        assert "'never' is not in the answer" in wrong_text.detail
        assert not wrong_status.passed
        assert "status 200 instead of 301" in wrong_status.detail
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_guest_that_is_up_without_its_service(network: NetworkSpec, guest: str) -> None:
    boot, port = ask(network, TCP)
    assert boot.passed
    assert not port.passed
    assert "refused" in port.detail


def test_a_guest_whose_packet_filter_is_silent_is_up(network: NetworkSpec, guest: str) -> None:
    namespaces.change(guest, ["route add blackhole 10.77.0.1/32"])
    (boot,) = ask(network)
    assert boot.passed
    assert "ARP" in boot.detail


def test_nobody_is_there(network: NetworkSpec) -> None:
    boot, port = ask(network, TCP)
    assert not boot.passed
    assert "not within 1 s" in boot.detail
    assert (port.passed, port.detail) == (False, "not asked")


def test_a_network_that_goes_meanwhile_ends_it(network: NetworkSpec) -> None:
    spec = ProbingSpec(
        run_id="r", network_id=network.network_id, address=GUEST, boot_seconds=60, probes=()
    )
    name = f"lw-{network.network_id}"
    timer = threading.Timer(0.5, namespaces.remove, (name,))
    timer.start()
    with pytest.raises(Unavailable, match="gone"):
        run_probes(spec)
    timer.join()
    with pytest.raises(InvalidRequest, match="no address"):
        ask(network, address="")

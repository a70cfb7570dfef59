"""Asking a guest from inside its network: whether it is there, whether its services answer.

Owns: one attempt after the other until the answer is right or time is up. Must not know: why
anybody asks.
"""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from leeward.core.errors import InvalidRequest, Unavailable
from leeward.fabric import namespaces
from leeward.fabric.networks import namespace_of
from leeward.model.drills import Finding, Probe, ProbeKind
from leeward.protocol.drills import ProbingReport, ProbingSpec

BOOT = "boot"
ATTEMPT_SECONDS = 5.0
PAUSE_SECONDS = 0.2
BODY_BYTES_MAX = 256 * 1024
_ANY_PORT = 9
"""Discard: whether it is open or refused, its host is up."""
_ARP = Path("/proc/thread-self/net/arp")
_ARP_COMPLETE = 0x2

Attempt = Callable[[], str | None]
"""Returns what was seen, None while the answer is not right. Raises OSError likewise."""


def run_probes(spec: ProbingSpec) -> ProbingReport:
    """Return what the guest answered. Raises: Unavailable where the network is none of this host's,
    or goes meanwhile; InvalidRequest for a guest without an address."""
    if not spec.address:
        raise InvalidRequest("the VM has no address that could be asked")
    name = namespace_of(spec.network_id)
    return namespaces.inside(name, lambda: _run(spec, name))


def _run(spec: ProbingSpec, namespace: str) -> ProbingReport:
    port = spec.probes[0].port if spec.probes else _ANY_PORT
    is_up = partial(_is_up, spec.address, port)
    boot = _wait(BOOT, is_up, spec.boot_seconds, namespace)
    findings = [boot]
    for probe in spec.probes:
        if boot.passed:
            attempt = partial(_ask, spec.address, probe)
            findings.append(_wait(probe.name, attempt, probe.timeout_seconds, namespace))
        else:
            findings.append(Finding(name=probe.name, passed=False, detail="not asked"))
    return ProbingReport(findings=tuple(findings))


def _wait(name: str, attempt: Attempt, seconds: float, namespace: str) -> Finding:
    began, last = time.monotonic(), "no answer"
    while True:
        try:
            if (seen := attempt()) is not None:
                took = time.monotonic() - began
                return Finding(name=name, passed=True, took_seconds=took, detail=seen)
        except (OSError, http.client.HTTPException, _WrongAnswer) as error:
            last = str(error) or type(error).__name__
        took = time.monotonic() - began
        if took > seconds:
            detail = f"not within {seconds:g} s: {last}"
            return Finding(name=name, passed=False, took_seconds=took, detail=detail)
        if not namespaces.exists(namespace):
            raise Unavailable(f"network namespace {namespace} is gone")
        time.sleep(PAUSE_SECONDS)


def _is_up(address: str, port: int) -> str | None:
    """Return how one sees that the address is taken by somebody who is up."""
    try:
        socket.create_connection((address, port), timeout=1.0).close()
    except ConnectionRefusedError:
        return f"{address} answers"
    except OSError:
        if _is_neighbour(address):  # its packet filter is silent, it is not
            return f"{address} answers to ARP"
        raise
    return f"{address} answers"


def _is_neighbour(address: str) -> bool:
    rows = [line.split() for line in _ARP.read_text().splitlines()[1:]]
    return any(row[0] == address and int(row[2], 16) & _ARP_COMPLETE for row in rows)


class _WrongAnswer(Exception):
    """The service answers, but not as it should."""


def _ask(address: str, probe: Probe) -> str | None:
    seconds = min(ATTEMPT_SECONDS, probe.timeout_seconds)
    if probe.kind is ProbeKind.TCP:
        socket.create_connection((address, probe.port), timeout=seconds).close()
        return "accepts connections"
    connection = http.client.HTTPConnection(address, probe.port, timeout=seconds)
    try:
        connection.request("GET", probe.path, headers={"User-Agent": "leeward"})
        reply = connection.getresponse()
        body = reply.read(BODY_BYTES_MAX).decode("utf-8", "replace")
    finally:
        connection.close()
    if reply.status != probe.status:
        raise _WrongAnswer(f"status {reply.status} instead of {probe.status}")
    if probe.text not in body:
        raise _WrongAnswer(f"{probe.text!r} is not in the answer {body[:200]!r}")
    return f"status {reply.status}"

"""Invariant 7: a source host makes outbound connections only.

A real agent lives in a network namespace that drops everything inbound, and everything outbound but
connections to the service. It has to protect and replicate a VM all the same, and nothing may have
run into a drop rule meanwhile: neither somebody who needed to come in, nor the agent on its way to
anywhere else.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from demo.fire import kill_all, processes_of
from demo.ports import free_port
from tests.integration.leeward_process import Installation, wait_for

from leeward.client.client import Client
from leeward.client.config import load_config
from leeward.client.rest import Rest
from leeward.core.units import KIB, MIB
from leeward.daemons.places import Places, run_directory, shared_memory_directory

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        os.geteuid() != 0 or not shutil.which("nft"), reason="needs root and nftables"
    ),
]

DISK_BYTES = 8 * MIB
CONNECT_SECONDS = 1.0

RULES = """
table inet guard {{
  counter inbound {{}}
  counter outbound {{}}
  chain input {{
    type filter hook input priority 0; policy drop;
    iif lo accept
    ip saddr {service} tcp sport {port} tcp flags & (syn | ack) != syn accept
    counter name inbound drop
  }}
  chain output {{
    type filter hook output priority 0; policy drop;
    oif lo accept
    ip daddr {service} tcp dport {port} accept
    counter name outbound drop
  }}
}}
"""


def run(*argv: str, stdin: str = "") -> str:
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class WalledHost:
    """A network namespace with one cable to ours, and the rules above."""

    name: str
    address: str
    service: str

    def inside(self, *argv: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.name}", *argv]

    def wall(self, port: int) -> None:
        """From here on only connections to the service's port come through."""
        run(*self.inside("nft", "-f", "-"), stdin=RULES.format(service=self.service, port=port))

    def dropped(self) -> dict[str, int]:
        """Return how many packets each rule has dropped."""
        listed = json.loads(run(*self.inside("nft", "-j", "list", "counters")))["nftables"]
        counters = [entry["counter"] for entry in listed if "counter" in entry]
        return {counter["name"]: counter["packets"] for counter in counters}

    def listeners(self) -> list[str]:
        """Return the TCP and UDP sockets that others could reach."""
        lines = run(*self.inside("ss", "-Hlntu")).splitlines()
        return [line for line in lines if not is_loopback(line.split()[4])]

    def lets_in(self, port: int) -> bool:
        """Say whether a connection from outside comes about, or is at least refused by somebody."""
        with socket.socket() as probe:
            probe.settimeout(CONNECT_SECONDS)
            try:
                probe.connect((self.address, port))
            except TimeoutError:
                return False
            except ConnectionRefusedError:
                return True
        return True


def is_loopback(local: str) -> bool:
    return local.startswith(("127.", "[::1]"))


@contextmanager
def walled_host() -> Iterator[WalledHost]:
    tag = secrets.token_hex(3)
    subnet = f"10.214.{secrets.randbelow(256)}"
    host = WalledHost(f"lwtest-{tag}", address=f"{subnet}.2", service=f"{subnet}.1")
    outer, inner = f"lwt{tag}a", f"lwt{tag}b"
    run("ip", "netns", "add", host.name)
    try:
        # without IPv6 nothing but what somebody asks for is sent
        run(*host.inside("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"))
        run("ip", "link", "add", outer, "type", "veth", "peer", inner, "netns", host.name)
        run("ip", "address", "add", f"{host.service}/30", "dev", outer)
        run("ip", "link", "set", outer, "up")
        run(*host.inside("ip", "address", "add", f"{host.address}/30", "dev", inner))
        run(*host.inside("ip", "link", "set", inner, "up"))
        run(*host.inside("ip", "link", "set", "lo", "up"))
        yield host
    finally:
        run("ip", "netns", "delete", host.name)


class Site(Installation):
    """A service that can be reached from the walled host, and everything in the west."""

    host: WalledHost
    client: Client

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "LEEWARD_SERVICE__HOST": "0.0.0.0"}

    def node(self, role: str, region: str, *, url: str, prefix: list[str]) -> None:
        """Have a node enrolled and running."""
        token = self.data / f"{role}-{region}.token"
        token.write_text(self.client.enrolment_token(region).token)
        name = f"{region}-{role}"
        options = ["--region", region, "--name", name, "--service", url]
        command = [sys.executable, "-m", "leeward.cli.main", role, *options]
        with (self.data / f"{name}.log").open("ab") as log:
            daemon = subprocess.Popen(
                [*prefix, *command, "--token-file", str(token)],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.daemons.append(daemon)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """Service, west, and an agent of east behind the wall."""
    with ExitStack() as stack:
        data = Path(tempfile.mkdtemp(dir="/tmp", prefix="lw-out-"))
        stack.callback(shutil.rmtree, data, ignore_errors=True)
        made = Site(data, free_port())
        made.host = stack.enter_context(walled_host())
        made.host.wall(made.port)
        stack.callback(end, made)
        made.serve()
        made.client = stack.enter_context(Client(Rest(load_config(data))))
        made.client.create_vault("vault")
        for region in ("east", "west"):
            made.client.create_region(region)
        made.node("worker", "west", url=made.url, prefix=[])
        made.node("agent", "west", url=made.url, prefix=[])
        url = f"http://{made.host.service}:{made.port}"
        made.node("agent", "east", url=url, prefix=made.host.inside())
        wait_for(lambda: sum(node.is_online for node in made.client.nodes()) == 3)
        yield made


def end(site: Site) -> None:
    for daemon in site.daemons:
        daemon.terminate()
    for daemon in site.daemons:
        daemon.wait(timeout=60)
    kill_all(processes_of(site.data))  # VM, tap and watchdog outlive the agent, as they should
    for region, name in (("east", "east-agent"), ("west", "west-agent")):
        home = Places(site.data).host(region, name)
        shutil.rmtree(run_directory(home, name).parent)
        shutil.rmtree(shared_memory_directory(home, name))


def protected_vm(site: Site) -> bytes:
    """Have a VM of east replicated to west, streaming; return what is on its disk."""
    content = os.urandom(256 * KIB) + bytes(DISK_BYTES - 256 * KIB)
    image = site.data / "disk.raw"
    image.write_bytes(content)
    place = ("--region", "east", "--resource-group", "rg")
    site.ask("resource-group", "create", "rg", "--region", "east")
    site.ask("storage-account", "create", "sa", *place)
    site.ask("vm", "create", "vm-1", *place, "--memory", "64M", "--disk", f"d=sa,image={image}")
    site.ask("protect", "east/vm-1", "--to", "west")
    return content


def test_invariant_7_a_source_host_needs_outbound_connections_only(site: Site) -> None:
    content = protected_vm(site)
    item = site.client.find_item("vm-1")
    wait_for(lambda: site.client.recovery_points(item))
    copy = site.data / "copy.raw"
    done = site.run("export", "vm-1", "latest", "--disk", "d", "--raw", str(copy))
    assert done.code == 0, done.err
    assert copy.read_bytes() == content
    assert site.host.dropped() == {"inbound": 0, "outbound": 0}
    assert site.host.listeners() == []


def test_invariant_7_nobody_gets_into_a_source_host(site: Site) -> None:
    before = site.host.dropped()
    for port in (22, 80, 8470, site.port):
        assert not site.host.lets_in(port)
    after = site.host.dropped()
    assert after["inbound"] >= before["inbound"] + 4
    assert after["outbound"] == before["outbound"]

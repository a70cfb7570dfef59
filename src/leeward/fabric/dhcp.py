"""DHCP in a subnet: one dnsmasq that hands out the addresses we assigned, and nothing else.

Owns: dnsmasq's command line and host files. Must not know: bridges, VMs' processes. The assignment
is ours, so no lease is kept.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from leeward.fabric import namespaces, processes
from leeward.fabric.namespaces import namespace_path
from leeward.protocol.fabric import NicSpec, SubnetSpec

_locks: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)


def held(home: Path) -> threading.RLock:
    """Return what is held while the server whose directory is `home` is started or stopped.

    Who starts it with what he has read of the network has read it while he holds this.
    """
    return _locks[str(home)]


@dataclass(frozen=True, slots=True, kw_only=True)
class DhcpServer:
    """The server of one subnet. home: its directory."""

    home: Path
    namespace: str
    bridge: str
    subnet: SubnetSpec
    name_server: str = ""

    def ensure_running(self) -> None:
        """Make it serve as the network is now.

        Raises: InvalidRequest when dnsmasq is not installed; Unavailable.
        """
        with held(self.home):
            (self.home / "hosts").mkdir(parents=True, exist_ok=True)
            running = processes.find(_pid_file(self.home))
            if running is not None and not processes.runs_as(running, self._argv()):
                stop_server(self.home)  # another gateway, or NAT is on or off since
            if processes.find(_pid_file(self.home)) is None:
                processes.spawn(
                    ["nsenter", f"--net={namespace_path(self.namespace)}", *self._argv()],
                    pid_file=_pid_file(self.home),
                    log_file=self.home / "dnsmasq.log",
                )

    def assign(self, vm_id: str, host_name: str, nic: NicSpec) -> None:
        """Make the NIC get its address: dnsmasq notices new files by itself. Idempotent."""
        entry = self._entry(vm_id, nic.name)
        line = f"{nic.mac},{nic.address},{host_name},infinite\n"
        if entry.exists() and entry.read_text() == line:
            return
        entry.parent.mkdir(parents=True, exist_ok=True)
        temporary = entry.with_name(f".{entry.name}")  # dnsmasq reads no file that begins so
        temporary.write_text(line)
        temporary.replace(entry)

    def withdraw(self, vm_id: str, nic_name: str) -> None:
        """Make the NIC get no address. Idempotent."""
        entry = self._entry(vm_id, nic_name)
        with held(self.home):
            if entry.exists():
                # it forgets only by starting anew (the signal to reread kills one that is just
                # starting): none may outlive the entry if we are killed in between
                stop_server(self.home)
                entry.unlink()
            if namespaces.exists(self.namespace):  # else it starts when the network is made again
                self.ensure_running()

    def _entry(self, vm_id: str, nic_name: str) -> Path:
        return self.home / "hosts" / f"{vm_id}.{nic_name}"

    def _argv(self) -> list[str]:
        prefix = IPv4Network(self.subnet.prefix)
        return [
            *("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file="),
            *("--port=0", "--no-hosts", "--no-resolv", "--no-ping", "--log-facility=-"),
            # our directories are closed to other users, and it shares its namespace with nobody
            *("--user=root", "--group=root"),
            *("--bind-interfaces", f"--interface={self.bridge}", "--except-interface=lo"),
            # where hosts are joined every server hears every VM: each answers for its own only
            *("--dhcp-authoritative", "--leasefile-ro", "--dhcp-ignore=tag:!known"),
            f"--dhcp-range={prefix.network_address},static,{prefix.netmask},infinite",
            f"--dhcp-hostsdir={self.home / 'hosts'}",
            f"--dhcp-option=option:router,{self.subnet.gateway}",
            *([f"--dhcp-option=option:dns-server,{self.name_server}"] if self.name_server else []),
        ]


def stop_server(home: Path) -> None:
    """Make the server whose directory is `home` not run. Idempotent."""
    with held(home):
        running = processes.find(_pid_file(home))
        if running is not None:
            processes.end(running)
        _pid_file(home).unlink(missing_ok=True)


def _pid_file(home: Path) -> Path:
    return home / "dnsmasq.pid"

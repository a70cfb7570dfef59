"""What packets may do in a network's namespace: between subnets, to the outside, through tunnels.

Owns: the nftables rules of a namespace, replaced as one. Must not know: devices' making. Without
any rule nothing is forwarded between subnets: the namespace does not route.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

from leeward.core.errors import InvalidRequest, Unavailable
from leeward.fabric import namespaces
from leeward.fabric.namespaces import namespace_path
from leeward.protocol.fabric import NetworkSpec

COMMAND_SECONDS = 20.0
OUTSIDE = "outside"
"""The device to the outside of a namespace with address translation."""


def apply_rules(namespace: str, spec: NetworkSpec, *, is_joined: bool, is_new: bool) -> None:
    """Make the namespace's rules those of the network and no others.

    At no moment does it route without them. is_joined: it has tunnels; every host has the gateways'
    addresses for itself, so nobody asks for them through one. is_new: it has no rules yet.
    Raises: InvalidRequest when rules are needed and nft is not installed; Unavailable.
    """
    forwards = spec.is_routed or spec.has_nat
    if not forwards:
        _set_forwarding(namespace, "0")
    is_plain = not (forwards or is_joined)
    if is_plain and (is_new or shutil.which("nft") is None):
        return  # there are none
    lines = [
        f"{verb} table {family} leeward"
        for family in ("inet", "bridge")
        for verb in ("add", "delete")
    ]
    if forwards:
        lines += _forwarding(is_routed=spec.is_routed, has_nat=spec.has_nat)
    if is_joined:
        lines += _joined([subnet.gateway for subnet in spec.subnets])
    _nft(namespace, "\n".join(lines) + "\n")
    if forwards:
        _set_forwarding(namespace, "1")


def _set_forwarding(namespace: str, value: str) -> None:
    namespaces.write_setting(namespace, "ipv4/ip_forward", value)


def _forwarding(*, is_routed: bool, has_nat: bool) -> list[str]:
    rules = []
    if is_routed:
        rules.append('iifname "br-*" oifname "br-*" accept')
    if has_nat:
        rules.append(f'iifname "br-*" oifname "{OUTSIDE}" accept')
        rules.append(f'iifname "{OUTSIDE}" ct state established,related accept')
    lines = [
        "table inet leeward {",
        "chain forward { type filter hook forward priority 0; policy drop;",
        *rules,
        "}",
    ]
    if has_nat:
        lines += [
            "chain outside { type nat hook postrouting priority 100;",
            f'oifname "{OUTSIDE}" masquerade',
            "}",
        ]
    return [*lines, "}"]


def _joined(gateways: Sequence[str]) -> list[str]:
    addresses = ", ".join(sorted(gateways))
    return [
        "table bridge leeward {",
        "chain leaving { type filter hook postrouting priority 0;",
        f'oifname "vx-*" arp operation request arp daddr ip {{ {addresses} }} drop',
        "}",
        "}",
    ]


def _nft(namespace: str, rules: str) -> None:
    if shutil.which("nft") is None:
        raise InvalidRequest(
            "nft (nftables) is not installed: networks that route, reach the outside or span "
            "several hosts need it",
            hint="apt-get install nftables",
        )
    try:
        done = subprocess.run(
            ["nsenter", f"--net={namespace_path(namespace)}", "nft", "-f", "-"],
            input=rules,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable("nft hangs") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise Unavailable(f"nft: {said[0] if said else done.returncode}")

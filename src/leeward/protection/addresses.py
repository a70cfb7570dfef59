"""Address arithmetic of virtual networks: which are valid, which free.

Owns: checking networks and interfaces, and finding the next free address. Must not know: who asks.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from ipaddress import AddressValueError, IPv4Address, IPv4Network, NetmaskValueError
from itertools import chain, islice

from leeward.core.errors import Conflict, InvalidRequest
from leeward.core.ids import check_name
from leeward.model.resources import Subnet, VirtualNetwork

_RESERVED = 3
"""Host addresses at the start of a subnet (gateway and two more) that dynamic ones avoid while
there are others."""
HOSTS_MAX = 16
"""Hosts of a region whose addresses a subnet joined with a bridge out there holds back."""
_BRIDGED_PREFIX_MAX = 26
_DEVICE = re.compile(r"[A-Za-z0-9._-]{1,15}")


def parse_prefix(prefix: str, *, field: str) -> IPv4Network:
    """Return the IPv4 network of a CIDR. Raises: InvalidRequest naming `field`."""
    try:
        return IPv4Network(prefix)
    except (AddressValueError, NetmaskValueError, ValueError) as error:
        raise InvalidRequest(
            f"{field}: {prefix!r} is not an IPv4 prefix", field=field, hint="such as 10.1.0.0/16"
        ) from error


def gateway(subnet: Subnet) -> str:
    """Return the subnet's gateway: its first host address."""
    return str(parse_prefix(subnet.prefix, field="prefix")[1])


def host_address(subnet: Subnet, index: int) -> str:
    """Return what a region's host number `index` has in a subnet joined with a bridge out there:
    the last host addresses, one per host. Raises: Conflict when there are too many hosts."""
    if index >= HOSTS_MAX:
        raise Conflict(
            f"subnet {subnet.name} is joined with bridge {subnet.bridge}: a region can have "
            f"{HOSTS_MAX} hosts then"
        )
    return str(parse_prefix(subnet.prefix, field="prefix")[-2 - index])


def check_network(network: VirtualNetwork) -> None:
    """Return if address space and subnets make sense together. Raises: InvalidRequest."""
    spaces = [parse_prefix(space, field="address_space") for space in network.address_space]
    seen: list[tuple[str, IPv4Network]] = []
    for subnet in network.subnets:
        check_name(subnet.name, field="subnets")
        prefix = parse_prefix(subnet.prefix, field="subnets")
        if prefix.prefixlen > 29:
            raise InvalidRequest(
                f"subnet {subnet.name} is too small", field="subnets", hint="/29 is the smallest"
            )
        _check_bridge(subnet, prefix)
        if not any(prefix.subnet_of(space) for space in spaces):
            raise InvalidRequest(
                f"subnet {subnet.name} ({prefix}) lies outside the network's address space",
                field="subnets",
            )
        for name, other in seen:
            if name == subnet.name or prefix.overlaps(other):
                raise InvalidRequest(
                    f"subnets {name} and {subnet.name} have the same name or overlap",
                    field="subnets",
                )
        seen.append((subnet.name, prefix))


def _check_bridge(subnet: Subnet, prefix: IPv4Network) -> None:
    if not subnet.bridge:
        return
    if not _DEVICE.fullmatch(subnet.bridge):
        raise InvalidRequest(
            f"subnet {subnet.name}: {subnet.bridge!r} cannot be a bridge's name",
            field="subnets",
            hint="at most 15 of letters, digits, '.', '_' and '-'",
        )
    if prefix.prefixlen > _BRIDGED_PREFIX_MAX:
        raise InvalidRequest(
            f"subnet {subnet.name} is too small to be joined with a bridge",
            field="subnets",
            hint=f"/{_BRIDGED_PREFIX_MAX} is the smallest",
        )


def is_in_subnet(subnet: Subnet, address: str) -> bool:
    """Say whether a VM may have that address in the subnet (the gateway's and the hosts' own it may
    not)."""
    try:
        parsed = IPv4Address(address)
    except AddressValueError:
        return False
    prefix = parse_prefix(subnet.prefix, field="prefix")
    if subnet.bridge and parsed >= prefix[-1 - HOSTS_MAX]:
        return False
    return parsed in prefix and parsed not in (prefix[0], prefix[1], prefix[-1])


def check_address(subnet: Subnet, address: str, taken: dict[str, str], *, field: str) -> str:
    """Return `address` unchanged if an interface may take it in the subnet.

    taken: address → who has it. Raises: InvalidRequest when it is not one of the subnet's, Conflict
    when somebody has it.
    """
    if not is_in_subnet(subnet, address):
        raise InvalidRequest(
            f"{field}: {address!r} is not a host address of subnet {subnet.name} ({subnet.prefix})",
            field=field,
        )
    if address in taken:
        raise Conflict(f"{field}: address {address} belongs to {taken[address]}", field=field)
    return address


def next_address(subnet: Subnet, taken: Collection[str]) -> str:
    """Return the lowest free host address of the subnet. Raises: Conflict when it is full."""
    for candidate in _candidates(parse_prefix(subnet.prefix, field="prefix")):
        if str(candidate) not in taken and is_in_subnet(subnet, str(candidate)):
            return str(candidate)
    raise Conflict(f"subnet {subnet.name} ({subnet.prefix}) has no free address left")


def _candidates(prefix: IPv4Network) -> Iterator[IPv4Address]:
    return chain(islice(prefix.hosts(), _RESERVED, None), islice(prefix.hosts(), 1, _RESERVED))

"""Address arithmetic."""

from __future__ import annotations

import pytest

from leeward.core.errors import Conflict, InvalidRequest
from leeward.model.resources import Subnet, VirtualNetwork
from leeward.protection.addresses import check_network, gateway, is_in_subnet, next_address

SMALL = Subnet(name="s", prefix="10.0.0.0/29")


def network(*subnets: tuple[str, str], space: str = "10.0.0.0/16") -> VirtualNetwork:
    return VirtualNetwork(
        region="east",
        name="n",
        resource_group="rg",
        address_space=(space,),
        subnets=tuple(Subnet(name=name, prefix=prefix) for name, prefix in subnets),
    )


def test_every_host_address_but_the_gateways_is_given_once() -> None:
    assert gateway(SMALL) == "10.0.0.1"
    taken: list[str] = []
    for _ in range(5):
        taken.append(next_address(SMALL, taken))
    assert taken == ["10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.2", "10.0.0.3"]
    with pytest.raises(Conflict, match="no free address"):
        next_address(SMALL, taken)


@pytest.mark.parametrize("address", ["10.0.0.0", "10.0.0.1", "10.0.0.7", "10.0.0.8", "x", ""])
def test_not_a_host_address(address: str) -> None:
    assert not is_in_subnet(SMALL, address)


def test_a_sound_network_passes() -> None:
    check_network(network(("a", "10.0.1.0/24"), ("b", "10.0.2.0/24")))


@pytest.mark.parametrize(
    "subnets",
    [
        [("a", "10.1.0.0/24")],
        [("a", "10.0.0.0/24"), ("b", "10.0.0.128/25")],
        [("a", "10.0.0.0/24"), ("a", "10.0.1.0/24")],
        [("a", "10.0.0.1/24")],
        [("a", "fd00::/64")],
        [("a", "10.0.0.0/30")],
        [("A b", "10.0.0.0/24")],
        [("a", "nonsense")],
    ],
    ids=["outside", "overlap", "same name", "host bits", "IPv6", "too small", "name", "nonsense"],
)
def test_an_unsound_network_is_refused(subnets: list[tuple[str, str]]) -> None:
    with pytest.raises(InvalidRequest):
        check_network(network(*subnets))

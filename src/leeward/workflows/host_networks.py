"""What each host of a region is told of a virtual network, and telling it again when that changes.

Owns: which hosts a network spans, and bringing it up to date there: new peers, changed subnets.
Must not know: how a host makes a network. Level-triggered: nothing is lost with a command or with
the process, since what hosts should know is computed anew every second and sent where it differs.
"""

from __future__ import annotations

import hashlib

from leeward.core.codec import to_json, to_plain
from leeward.core.errors import LeewardError
from leeward.model.resources import VirtualMachine, VirtualNetwork
from leeward.observability.log import get_logger
from leeward.protocol.fabric import NetworkSpec
from leeward.protocol.messages import Role, Verb
from leeward.vault.nodes import NodeRecord
from leeward.vault.records import Records
from leeward.vault.resources import ResourceState
from leeward.workflows.bench import Bench, occupants_of_networks
from leeward.workflows.dispatch import Order
from leeward.workflows.specs import NetworkPlace, network_spec
from leeward.workflows.ticking import Ticking

log = get_logger()

TICK_SECONDS = 1.0


def host_network(
    bench: Bench, records: Records, network: VirtualNetwork, agent: NodeRecord
) -> NetworkSpec:
    """Return what that agent is told of the network as things stand.

    Raises: Conflict when a subnet joined with a bridge has more hosts than addresses for them.
    """
    agents = records.nodes.listed(role=Role.AGENT, region=network.region)
    return _spec(bench, network, agent, agents, occupants_of_networks(records, network.region))


def network_order(
    bench: Bench, records: Records, network: VirtualNetwork, agent: NodeRecord
) -> Order:
    """Return the order that makes the network exist on that host as things stand."""
    spec = host_network(bench, records, network, agent)
    return Order(node=agent, verb=Verb.NETWORK_APPLY, arguments=to_plain(spec), key=network.name)


class HostNetworks:
    """Keeps networks up to date on the hosts that have VMs in them. `start` once, `stop` once."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._told: dict[tuple[str, str], str] = {}
        """(node, network id) → digest of what the node was last told."""
        self._ticking = Ticking("host-networks", self.tick, seconds=TICK_SECONDS)

    def start(self) -> None:
        """Changes reach the hosts."""
        self._ticking.start()

    def stop(self) -> None:
        """Nothing is told any more."""
        self._ticking.stop()

    def tick(self) -> None:
        """Hosts that answer are told what has changed since they were last told."""
        with self._bench.vault.read() as records:
            wanted = self._wanted(records)
        orders = []
        for agent, spec in wanted:
            key = (agent.id, spec.network_id)
            digest = hashlib.sha256(to_json(spec)).hexdigest()
            known = self._told.get(key)
            self._told[key] = digest
            # whoever put the first VM there told the host; of hosts that come later it cannot know
            if known != digest and (known is not None or spec.peers):
                orders.append(
                    Order(
                        node=agent,
                        verb=Verb.NETWORK_APPLY,
                        arguments=to_plain(spec),
                        key=spec.network_id,
                    )
                )
        if orders:  # never the same id twice: what was right before may be right again
            step = f"join-{self._bench.clock.now_ns()}"
            self._bench.dispatch.send(orders, job_id="", step=step)

    # ---

    def _wanted(self, records: Records) -> list[tuple[NodeRecord, NetworkSpec]]:
        """Return what every host that answers should know of each network it has VMs in."""
        found = []
        networks = [
            stored.value
            for stored in records.resources.listed(VirtualNetwork)
            if stored.state is ResourceState.READY
        ]
        by_region: dict[str, tuple[list[NodeRecord], list[VirtualMachine]]] = {}
        for network in networks:
            region = network.region
            if region not in by_region:
                agents = records.nodes.listed(role=Role.AGENT, region=region)
                by_region[region] = agents, occupants_of_networks(records, region)
            agents, vms = by_region[region]
            hosts = _hosts_of(network, vms)
            for agent in agents:
                if agent.name in hosts and self._bench.is_heard(agent):
                    spec = self._spec_or_none(network, agent, agents, vms)
                    if spec is not None:
                        found.append((agent, spec))
        return found

    def _spec_or_none(
        self,
        network: VirtualNetwork,
        agent: NodeRecord,
        agents: list[NodeRecord],
        vms: list[VirtualMachine],
    ) -> NetworkSpec | None:
        try:
            return _spec(self._bench, network, agent, agents, vms)
        except LeewardError as error:
            log.warning("network_not_told", network=network.name, error=str(error))
            return None


def _hosts_of(network: VirtualNetwork, vms: list[VirtualMachine]) -> set[str]:
    return {vm.host for vm in vms if any(nic.network == network.name for nic in vm.nics)}


def _spec(
    bench: Bench,
    network: VirtualNetwork,
    agent: NodeRecord,
    agents: list[NodeRecord],
    vms: list[VirtualMachine],
) -> NetworkSpec:
    """agents, vms: of the network's region."""
    hosts = _hosts_of(network, vms)
    names = sorted(each.name for each in agents)
    place = NetworkPlace(
        host=agent.name,
        index=names.index(agent.name),
        peers=tuple(
            each.tunnel
            for each in agents
            if each.name in hosts and each.id != agent.id and each.tunnel
        ),
    )
    return network_spec(bench.installation, network, place)

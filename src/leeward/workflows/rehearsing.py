"""What every test VM has in common, whoever asked for it: where it is, how it boots, its end.

Owns: what a test VM is and that nothing of it is left. Must not know: how a host boots one, what is
done with it meanwhile. The item goes on being replicated; the test VM lives in networks of its own,
with the same addresses and no way out: no tunnel to other hosts, no bridge out there, no address
translation. Or, where that is asked for, in networks of the region that are set aside for tests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from leeward.core.codec import to_plain
from leeward.core.errors import Conflict, Unavailable
from leeward.failover.disks import with_all_disks
from leeward.failover.select import select_point
from leeward.model.recovery import ItemState, RecoveryPoint, Rehearsal, check_is
from leeward.model.resources import Outbound, VirtualMachine, VirtualNetwork
from leeward.protection.rehearsal import choose_places, plan_test_nics
from leeward.protocol.fabric import BootSpec, NetworkSpec, VmSpec
from leeward.protocol.messages import Role, Verb
from leeward.vault.items import ItemRecord
from leeward.vault.nodes import NodeRecord
from leeward.vault.records import Records
from leeward.workflows.bench import Bench, accounts_by_name, check_staying, networks_by_name
from leeward.workflows.dispatch import Order
from leeward.workflows.engine import Json
from leeward.workflows.host_networks import host_network
from leeward.workflows.inventory import load_inventory
from leeward.workflows.monitor import item_target
from leeward.workflows.specs import (
    NetworkPlace,
    network_id,
    network_spec,
    replica_disks,
    vm_id,
    vm_spec,
)

BOOT_SECONDS = 120.0
_TESTABLE = (ItemState.PROTECTED, ItemState.RESYNCING, ItemState.DEGRADED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """Test VMs of one recovery plan or consistency group, the other of which is "": on one host, in
    networks that they share."""

    scope: str
    """Tells their networks from those of others."""
    host: str
    plan: str = ""
    group: str = ""


class Rehearsing:
    """Test VMs, for verbs that have them."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def begin(
        self,
        records: Records,
        record: ItemRecord,
        wanted: str,
        together: Together | None = None,
        network: str = "",
        networks: Mapping[str, str] | None = None,
    ) -> tuple[Rehearsal, RecoveryPoint]:
        """Return where the item's test VM will be and the point it boots from; the item says so
        from now on. together: with whom; None: it stands alone. network: the one set aside for
        tests that it is put into, or network/subnet, or ISOLATED; networks: the same of single
        interfaces. What neither says is as the item is set, normally an isolated copy.

        Raises: NotFound; Conflict while a test VM is there, or the item is not being replicated, or
        the network is not for tests; Unavailable when no host of the target region answers.
        """
        _check_testable(record)
        damaged = self._bench.live.quarantined(record.worker_id, record.item.id)
        points = [p for p in records.points.listed(record.item.id) if p.id not in damaged]
        point = select_point(points, wanted, item=record.item.name)
        rehearsal = self._plan(records, record, point, together)
        item, vm = record.item, record.target_vm
        places = choose_places(vm, item.test_networks, network, networks or {})
        if places:
            rehearsal = self._placed(records, record, rehearsal, places)
        records.items.update(replace(record, item=replace(record.item, rehearsal=rehearsal)))
        return rehearsal, point

    def host_of_all(self, records: Records, members: Sequence[ItemRecord], whose: str) -> str:
        """Return the host that has memory for all of their test VMs. whose: for people. Raises:
        Unavailable, Conflict."""
        first = members[0].target_vm
        all_of_them = replace(
            first,
            name=f"{whose} at once",
            memory_mib=sum(record.target_vm.memory_mib for record in members),
            availability_set="",
        )
        return self._bench.place(records, all_of_them).name

    def boot_order(
        self,
        item_id: str,
        rehearsal: Rehearsal,
        *,
        forwards: tuple[int, ...] = (),
        hydrates: bool = True,
    ) -> Order:
        """Return the order that boots the test VM."""
        with self._bench.vault.read() as records:
            record = records.items.by_id(item_id)
            agent = self._agent(records, rehearsal)
            networks = networks_by_name(records, rehearsal.region)
            accounts = accounts_by_name(records, rehearsal.region)
            set_aside = self._set_aside(records, rehearsal, agent)
        item, vm = with_all_disks(record.item, tested(record.target_vm, rehearsal))
        replicas = replica_disks(item, vm, accounts)
        installation = self._bench.installation
        machine = vm_spec(installation, vm, networks, accounts)
        spec = BootSpec(
            item_id=item.id,
            epoch=item.epoch,
            point_id=rehearsal.recovery_point,
            catalog_url=replicas[0].target_url,
            replicas=replicas,
            vm=replace(_test_vm(machine, vm, rehearsal), forwards=forwards),
            networks=(
                *set_aside,
                *(
                    isolated(installation, networks[name], rehearsal)
                    for name in rehearsal.networks
                    if name not in rehearsal.set_aside
                ),
            ),
            hydrates=hydrates,
            is_varied=item.has_varied_disks,
        )
        return Order(node=agent, verb=Verb.RECOVERY_BOOT, arguments=to_plain(spec))

    def boot_all(
        self, rehearsals: Mapping[str, Rehearsal], *, hydrates: bool = True
    ) -> list[Order]:
        """Return the orders that boot these test VMs. rehearsals: by item."""
        return [
            replace(self.boot_order(item_id, each, hydrates=hydrates), key=each.vm_id)
            for item_id, each in rehearsals.items()
        ]

    def end_orders(self, rehearsal: Rehearsal) -> list[Order]:
        """Return the order after which nothing of the test VM is left: VM, disks, export, and the
        networks that no other test VM is in. A network set aside for tests is not the test VM's:
        it stays on the host while it exists, as it does under any VM. None to a host that
        has been forgotten: it is told nothing any more."""
        with self._bench.vault.read() as records:
            agent = records.nodes.find(Role.AGENT, rehearsal.region, rehearsal.host)
            if agent is None:
                return []
            there = set(networks_by_name(records, rehearsal.region)) & set(rehearsal.set_aside)
        networks = [its_id for name, its_id in rehearsal.networks.items() if name not in there]
        arguments: Json = {"vm_id": rehearsal.vm_id, "networks": networks}
        order = Order(
            node=agent,
            verb=Verb.RECOVERY_DISCARD,
            arguments=arguments,
            key=rehearsal.vm_id,
        )
        return [order]

    def end_all(self, rehearsals: Mapping[str, Rehearsal]) -> list[Order]:
        """Return the orders after which nothing of these test VMs is left. rehearsals: by item."""
        return [order for each in rehearsals.values() for order in self.end_orders(each)]

    def order(self, rehearsal: Rehearsal, verb: Verb, arguments: Json) -> Order:
        """Return an order to the agent of the test VM's host. Raises: Unavailable."""
        with self._bench.vault.read() as records:
            return Order(node=self._agent(records, rehearsal), verb=verb, arguments=arguments)

    def forget(self, item_id: str, rehearsal: Rehearsal, sentence: str) -> Json:
        """The item has that test VM no more; the sentence says why, in its events. One that was
        begun since stays."""
        with self._bench.vault.write() as records:
            record = records.items.find(item_id)
            if record is not None and record.item.rehearsal == rehearsal:
                records.items.update(replace(record, item=replace(record.item, rehearsal=None)))
                self._bench.record_event(
                    records,
                    item_target(record.item.name),
                    "item_test_failover_ended",
                    f"{record.item.name}: {sentence}",
                )
        return {}

    def forget_all(self, rehearsals: Mapping[str, Rehearsal], sentence: str) -> Json:
        """The items have these test VMs no more. rehearsals: by item."""
        for item_id, rehearsal in rehearsals.items():
            self.forget(item_id, rehearsal, sentence)
        return {}

    def record_running(self, item_id: str, rehearsal: Rehearsal, where: str) -> None:
        """The item's events say that its test VM runs, and where, for people."""
        with self._bench.vault.write() as records:
            item = records.items.by_id(item_id).item
            self._bench.record_event(
                records,
                item_target(item.name),
                "item_test_failover",
                f"the test VM of {item.name} runs in {rehearsal.region} from "
                f"{rehearsal.recovery_point}, {where}",
            )

    def _plan(
        self,
        records: Records,
        record: ItemRecord,
        point: RecoveryPoint,
        together: Together | None,
    ) -> Rehearsal:
        """Return where the test VM will be; its host answers. Raises: Unavailable."""
        item, vm = record.item, record.target_vm
        host = together.host if together else self._bench.place(records, vm).name
        scope = together.scope if together else item.id
        names = dict.fromkeys(nic.network for nic in vm.nics)
        return Rehearsal(
            recovery_point=point.id,
            region=item.target_region,
            host=host,
            vm_id=_test_id(vm),
            networks={name: _network_id(scope, name, (item.target_region, host)) for name in names},
            started_ns=self._bench.clock.now_ns(),
            plan=together.plan if together else "",
            group=together.group if together else "",
        )

    def _placed(
        self,
        records: Records,
        record: ItemRecord,
        rehearsal: Rehearsal,
        places: Mapping[str, str],
    ) -> Rehearsal:
        """Return the test with the interfaces that have a place in networks set aside for tests.
        Raises: NotFound, Conflict."""
        region, item = rehearsal.region, record.item
        own = {
            name: address
            for name, address in item.test_addresses.items()
            if places.get(name) == item.test_networks.get(name)
        }
        nics = plan_test_nics(load_inventory(records, [region]), record.target_vm, places, own)
        set_aside = dict.fromkeys(nic.network for nic in nics if nic.name in places)
        for name in set_aside:
            check_staying(records, VirtualNetwork, region, name)
        copies = tuple(dict.fromkeys(nic.network for nic in nics if nic.name not in places))
        installation = self._bench.installation
        ids = {name: rehearsal.networks[name] for name in copies}
        for name in set_aside:
            ids[name] = network_id(installation, region, name, rehearsal.host)
        return replace(rehearsal, networks=ids, nics=nics, copies=copies)

    def _set_aside(
        self, records: Records, rehearsal: Rehearsal, agent: NodeRecord
    ) -> tuple[NetworkSpec, ...]:
        """Return its networks set aside for tests as its host is told of them."""
        return tuple(
            host_network(
                self._bench,
                records,
                records.resources.get(VirtualNetwork, rehearsal.region, name).value,
                agent,
            )
            for name in rehearsal.set_aside
        )

    def _agent(self, records: Records, rehearsal: Rehearsal) -> NodeRecord:
        agent = records.nodes.find(Role.AGENT, rehearsal.region, rehearsal.host)
        if agent is None:
            raise Unavailable(f"host {rehearsal.host} of {rehearsal.region} is not enrolled")
        return agent


def tested(vm: VirtualMachine, rehearsal: Rehearsal) -> VirtualMachine:
    """Return the VM that a failover would make, where its test VM is."""
    return replace(vm, host=rehearsal.host, nics=rehearsal.nics or vm.nics)


def _check_testable(record: ItemRecord) -> None:
    item = record.item
    if item.rehearsal is not None:
        raise Conflict(
            f"{item.name} has a test VM already, from {item.rehearsal.recovery_point}",
            field="item",
            hint=f"`leeward test-failover-cleanup {item.name}` first",
        )
    check_is(item, *_TESTABLE)
    if not record.is_replicating:
        raise Conflict(
            f"{item.name} is not being replicated yet",
            field="state",
            hint=f"wait: `leeward item show {item.name}`",
        )


def _test_id(vm: VirtualMachine) -> str:
    """Return the id of the VM's test VM on its host: at most 40 characters."""
    return f"{vm_id(vm.name)[:26]}-test-{hashlib.sha256(vm.name.encode()).hexdigest()[:6]}"


def _network_id(scope: str, network: str, place_of: tuple[str, str]) -> str:
    """Return 11 characters that name the test copy of the network, of an item or a plan, on the
    host of a region."""
    place = "/".join(("test", scope, network, *place_of))
    return "t" + hashlib.sha256(place.encode()).hexdigest()[:10]


def isolated(installation: str, network: VirtualNetwork, rehearsal: Rehearsal) -> NetworkSpec:
    """Return the network as the test VM sees it: same addresses, nothing behind them."""
    subnets = tuple(replace(subnet, bridge="") for subnet in network.subnets)
    closed = replace(network, subnets=subnets, outbound=Outbound.NONE)
    spec = network_spec(installation, closed, NetworkPlace(host=rehearsal.host))
    return replace(
        spec,
        network_id=rehearsal.networks[network.name],
        subnets=tuple(replace(subnet, tunnel_id=0) for subnet in spec.subnets),
    )


def _test_vm(spec: VmSpec, vm: VirtualMachine, rehearsal: Rehearsal) -> VmSpec:
    """Return the VM in the networks of the test, under the test VM's id."""
    nics = tuple(
        replace(nic, network_id=rehearsal.networks[wanted.network])
        for nic, wanted in zip(spec.nics, vm.nics, strict=True)
    )
    return replace(spec, vm_id=rehearsal.vm_id, nics=nics)

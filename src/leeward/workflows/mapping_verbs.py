"""Network mappings: where VMs of one network come out in another region.

Owns: making, changing and forgetting them. Must not know: protection, which reads them when it
plans and records what was chosen; an item that is protected keeps its own networks.
"""

from __future__ import annotations

from leeward.core.errors import InvalidRequest, NotFound
from leeward.model.recovery import NetworkMapping
from leeward.model.resources import VirtualNetwork
from leeward.protection.rehearsal import check_no_test_vm
from leeward.vault.records import Records
from leeward.workflows.bench import Bench, check_staying
from leeward.workflows.inventory import load_inventory
from leeward.workflows.resource_verbs import mapping_name


class MappingVerbs:
    """All of them take effect at once: the next VM that is protected heeds them."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def listed(self) -> tuple[NetworkMapping, ...]:
        """Return every mapping, by source and target region."""
        with self._bench.vault.read() as records:
            return tuple(stored.value for stored in records.resources.listed(NetworkMapping, ""))

    def put(self, mapping: NetworkMapping, *, is_one_way: bool) -> NetworkMapping:
        """Return the mapping, which is as given from now on; and its reverse, unless `is_one_way`.

        Raises: NotFound, InvalidRequest, Conflict naming the field; then nothing has changed.
        """
        if mapping.source_region == mapping.target_region:
            raise InvalidRequest(
                f"both networks are in region {mapping.source_region}, not in two",
                field="target_region",
            )
        with self._bench.vault.write() as records:
            _check_network(records, mapping.source_region, mapping.source_network, "source_network")
            _check_network(records, mapping.target_region, mapping.target_network, "target_network")
            inventory = load_inventory(records, (mapping.source_region, mapping.target_region))
            for region, network, field in (
                (mapping.source_region, mapping.source_network, "source_network"),
                (mapping.target_region, mapping.target_network, "target_network"),
            ):
                check_no_test_vm(inventory, region, network, field=field)
            for each in (mapping,) if is_one_way else (mapping, _reverse(mapping)):
                name = mapping_name(each)
                records.resources.delete(NetworkMapping, "", name)
                records.resources.insert(each, scope="", name=name)
        return mapping

    def delete(self, source_region: str, source_network: str, target_region: str) -> None:
        """That direction of the mapping is gone. Raises: NotFound."""
        name = f"{source_region}/{source_network}/{target_region}"
        with self._bench.vault.write() as records:
            if records.resources.find(NetworkMapping, "", name) is None:
                raise NotFound(
                    f"network {source_network} of {source_region} is not mapped into "
                    f"{target_region}",
                    hint="`leeward network-mapping list`",
                )
            records.resources.delete(NetworkMapping, "", name)


def _check_network(records: Records, region: str, name: str, field: str) -> None:
    if records.resources.find(VirtualNetwork, region, name) is None:
        raise NotFound(
            f"region {region} has no network {name}",
            field=field,
            hint=f"`leeward network list --region {region}`",
        )
    check_staying(records, VirtualNetwork, region, name)


def _reverse(mapping: NetworkMapping) -> NetworkMapping:
    return NetworkMapping(
        source_region=mapping.target_region,
        source_network=mapping.target_network,
        target_region=mapping.source_region,
        target_network=mapping.source_network,
    )

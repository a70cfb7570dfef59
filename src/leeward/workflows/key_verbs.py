"""A vault's encryption key: which one, who has it, and changing it.

Owns: ids only: keys themselves never come here. Must not know: files, ciphers. New data is
encrypted with the vault's key; what is stored stays readable to hosts that keep the old one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from leeward.core.errors import InvalidRequest
from leeward.model.recovery import AES_256_GCM, Job, Policy, ReplicatedItem, Vault
from leeward.protection.health import FOLLOWING
from leeward.vault.items import ItemRecord
from leeward.vault.jobs import IdempotencyKey
from leeward.vault.nodes import NodeRecord
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.dispatch import Order
from leeward.workflows.engine import Json
from leeward.workflows.item_orders import go_on_processing, go_on_replicating
from leeward.workflows.job import RunningJob
from leeward.workflows.jobs import Jobs
from leeward.workflows.monitor import source_agent

_KEY_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True, kw_only=True)
class UseKeyArguments:
    vault: str
    key_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyUse:
    """One key of a vault. nodes: those that have it; missing: those that need it and have not."""

    key_id: str
    is_current: bool
    nodes: tuple[str, ...]
    missing: tuple[str, ...]


class KeyVerbs:
    """Submits and runs changes of a vault's key."""

    def __init__(self, bench: Bench, jobs: Callable[[], Jobs]) -> None:
        self._bench = bench
        self._jobs = jobs

    def uses(self, vault: str) -> list[KeyUse]:
        """Return the keys that nodes have told of, the vault's own among them. Raises: NotFound."""
        with self._bench.vault.read() as records:
            current = records.resources.get(Vault, "", vault).value.key_id
            nodes = records.nodes.listed()
            needing = self._needing(records, vault)
        told = {node.label: set(self._bench.live.key_ids(node.id)) for node in nodes}
        ids = sorted({current, *(key_id for ids in told.values() for key_id in ids)} - {""})
        return [
            KeyUse(
                key_id=key_id,
                is_current=key_id == current,
                nodes=tuple(sorted(label for label, ids in told.items() if key_id in ids)),
                missing=tuple(sorted(n.label for n in needing if key_id not in told[n.label])),
            )
            for key_id in ids
        ]

    def use(self, vault: str, key_id: str, key: IdempotencyKey | None = None) -> Job:
        """Return the job after which everything new in the vault is encrypted with that key.

        Raises: NotFound; InvalidRequest; Conflict while a node that needs the key has not got it.
        """
        if not _KEY_ID.fullmatch(key_id):
            raise InvalidRequest(
                "that is not the id of a key", field="key_id", hint="16 digits of 0-9 a-f"
            )

        def prepare(records: Records) -> UseKeyArguments:
            found = records.resources.get(Vault, "", vault)
            for node in self._needing(records, vault):
                self._bench.check_key(node, key_id)
            records.resources.update(found, value=replace(found.value, key_id=key_id))
            return UseKeyArguments(vault=vault, key_id=key_id)

        return self._jobs().submit("vault.use-key", f"vault/{vault}", prepare, key)

    def run(self, job: RunningJob) -> Json:
        """Every item of the vault goes on under the key: first who writes last, the worker."""
        arguments = job.arguments(UseKeyArguments)
        job.orders("workers", lambda: self._processing_orders(arguments.vault), dict[str, object])
        job.orders("sources", lambda: self._replication_orders(arguments.vault), dict[str, object])
        return {"vault": arguments.vault, "key_id": arguments.key_id}

    def _processing_orders(self, vault: str) -> list[Order]:
        with self._bench.vault.read() as records:
            return [
                go_on_processing(records, record)
                for record in _running(records, vault)
                if record.worker_id
            ]

    def _replication_orders(self, vault: str) -> list[Order]:
        with self._bench.vault.read() as records:
            return [
                go_on_replicating(records, record, agent)
                for record in _running(records, vault)
                if (agent := source_agent(records, record)) is not None
            ]

    def _needing(self, records: Records, vault: str) -> list[NodeRecord]:
        """Return the nodes of the regions between which the vault's encrypted items lie."""
        regions = {
            region
            for record in records.items.listed(vault=vault)
            if _is_encrypted(records, record.item)
            for region in (record.item.source_region, record.item.target_region)
        }
        return [node for node in records.nodes.listed() if node.region in regions]


def _is_encrypted(records: Records, item: ReplicatedItem) -> bool:
    policy = records.resources.find(Policy, item.vault, item.policy)
    return policy is not None and policy.value.encryption == AES_256_GCM


def _running(records: Records, vault: str) -> list[ItemRecord]:
    return [
        record
        for record in records.items.listed(vault=vault)
        if record.is_replicating
        and record.item.state in FOLLOWING
        and _is_encrypted(records, record.item)
    ]

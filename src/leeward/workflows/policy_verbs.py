"""Replication policies: made, changed, and told at once to whoever follows them.

Owns: that a change reaches workers and agents, silent ones when they come back. Must not know: what
they do with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from leeward.core.ids import check_name
from leeward.model.recovery import Policy, Vault
from leeward.protection.health import FOLLOWING
from leeward.vault.items import ItemRecord
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.dispatch import Order
from leeward.workflows.engine import Json
from leeward.workflows.item_orders import go_on_processing, go_on_replicating
from leeward.workflows.item_specs import item_key_id
from leeward.workflows.job import RunningJob
from leeward.workflows.jobs import Jobs
from leeward.workflows.monitor import source_agent

POLICY_APPLY = "policy.apply"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyArguments:
    vault: str
    policy: str


class PolicyVerbs:
    """Makes and changes policies."""

    def __init__(self, bench: Bench, jobs: Callable[[], Jobs]) -> None:
        self._bench = bench
        self._jobs = jobs

    def put(self, vault: str, policy: Policy) -> Policy:
        """Return the policy, which is as given; a job tells it to the nodes of items that follow
        it. Raises: NotFound; Conflict when it encrypts and a node lacks the key; then nothing has
        changed."""
        check_name(policy.name)

        def prepare(records: Records) -> ApplyArguments:
            self._store(records, vault, policy)
            return ApplyArguments(vault=vault, policy=policy.name)

        with self._bench.vault.read() as records:
            found = records.resources.find(Policy, vault, policy.name)
            is_told = found is not None and found.value != policy
            is_told = is_told and bool(_following(records, vault, policy.name))
        if is_told:
            self._jobs().submit(POLICY_APPLY, f"policy/{vault}/{policy.name}", prepare)
        else:
            with self._bench.vault.write() as records:
                self._store(records, vault, policy)
        return policy

    def run(self, job: RunningJob) -> Json:
        """Every item that follows the policy goes on under it: first its worker, then its
        source. A node that does not answer is told when it comes back."""
        arguments = job.arguments(ApplyArguments)
        job.undo_orders("workers", lambda: self._processing_orders(arguments))
        job.undo_orders("sources", lambda: self._replication_orders(arguments))
        return {"policy": arguments.policy}

    def _store(self, records: Records, vault: str, policy: Policy) -> None:
        records.resources.get(Vault, "", vault)
        found = records.resources.find(Policy, vault, policy.name)
        if found is None:
            records.resources.insert(policy, scope=vault, name=policy.name)
            return
        records.resources.update(found, value=policy)
        for record in _following(records, vault, policy.name):
            check_policy_key(self._bench, records, record)

    def _processing_orders(self, arguments: ApplyArguments) -> list[Order]:
        with self._bench.vault.read() as records:
            return [
                go_on_processing(records, record)
                for record in _following(records, arguments.vault, arguments.policy)
                if record.worker_id
            ]

    def _replication_orders(self, arguments: ApplyArguments) -> list[Order]:
        with self._bench.vault.read() as records:
            return [
                order
                for record in _following(records, arguments.vault, arguments.policy)
                for order in source_orders(records, record)
            ]


def check_policy_key(bench: Bench, records: Records, record: ItemRecord) -> None:
    """Return if the item's nodes have the key that its policy encrypts with, if it does. Raises:
    Conflict."""
    key_id = item_key_id(records, record.item.vault, record.item.policy)
    nodes = [source_agent(records, record)]
    if record.worker_id:
        nodes.append(records.nodes.get(record.worker_id))
    for node in nodes if key_id else ():
        if node is not None:
            bench.check_key(node, key_id)


def source_orders(records: Records, record: ItemRecord) -> list[Order]:
    """Return what tells the item's source how to replicate from now on."""
    agent = source_agent(records, record)
    return [go_on_replicating(records, record, agent)] if agent else []


def _following(records: Records, vault: str, policy: str) -> list[ItemRecord]:
    """Return the items that replicate under the policy now."""
    return [
        record
        for record in records.items.listed(vault=vault)
        if record.item.policy == policy and record.is_replicating and record.item.state in FOLLOWING
    ]

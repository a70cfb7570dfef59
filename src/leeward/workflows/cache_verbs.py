"""Another cache storage account for an item that is being replicated.

Owns: the order of steps, so that no cut is left behind: the source sends nothing while what it has
sent is applied, and goes on in the new cache from there. Must not know: how cuts are sent or
applied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from leeward.core.codec import to_plain
from leeward.core.errors import Conflict, InvalidRequest, LeewardError, NotFound, Unavailable
from leeward.model.recovery import Job
from leeward.model.resources import StorageAccount
from leeward.protection.cache import check_cache_change
from leeward.protection.health import FOLLOWING
from leeward.protocol.messages import Verb
from leeward.vault.items import ItemRecord
from leeward.vault.jobs import IdempotencyKey
from leeward.vault.nodes import NodeRecord
from leeward.vault.records import Records
from leeward.vault.resources import ResourceState
from leeward.workflows.bench import Bench
from leeward.workflows.dispatch import Order
from leeward.workflows.ending import Ending
from leeward.workflows.engine import Json
from leeward.workflows.item_orders import go_on_processing, go_on_replicating
from leeward.workflows.item_specs import processing_spec
from leeward.workflows.job import RunningJob
from leeward.workflows.jobs import Jobs
from leeward.workflows.monitor import find_node, item_target, source_agent
from leeward.workflows.resource_verbs import ResourceVerbs

CACHE_CHANGE = "item.change-cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheArguments:
    """former: of the account that is left."""

    item_id: str
    epoch: int
    region: str
    account: str
    url: str
    former_region: str
    former_account: str
    former_url: str


class CacheVerbs:
    """Submits and runs it."""

    def __init__(self, bench: Bench, jobs: Callable[[], Jobs], resources: ResourceVerbs) -> None:
        self._bench = bench
        self._jobs = jobs
        self._ending = Ending(bench, resources)

    def change(self, vault: str, name: str, account: str, key: IdempotencyKey | None = None) -> Job:
        """Return the job that has the item's cuts go through another account of its source's
        region. Raises: NotFound, InvalidRequest, Conflict, Unavailable; then nothing has changed.
        """

        def prepare(records: Records) -> CacheArguments:
            record = records.items.get(vault, name)
            check_cache_change(record.item)
            region = record.item.source_region
            wanted = _ready_account(records, region, account)
            former = records.resources.get(
                StorageAccount, record.cache_region, record.item.cache_account
            ).value
            if wanted.url.rstrip("/") == former.url.rstrip("/"):
                raise InvalidRequest(
                    f"{name} has its cache there already: {wanted.url}",
                    field="cache_account",
                    hint="name another account",
                )
            for node in self._nodes(records, record):
                if not self._bench.is_heard(node):
                    raise Unavailable(f"{node.label} does not answer", field="cache_account")
            item = replace(record.item, next_cache_account=account)
            records.items.update(replace(record, item=item))
            return CacheArguments(
                item_id=item.id,
                epoch=item.epoch,
                region=region,
                account=account,
                url=wanted.url,
                former_region=former.region,
                former_account=former.name,
                former_url=former.url,
            )

        return self._jobs().submit(CACHE_CHANGE, item_target(name), prepare, key)

    def run(self, job: RunningJob) -> Json:
        """The item has that cache, and nothing in the one before, which goes too if a protection
        made it and nothing else uses it; or all is as it was."""
        arguments = job.arguments(CacheArguments)
        try:
            job.order("hold", lambda: self._hold_order(arguments), dict[str, object])
            job.order("take over", lambda: self._change_order(arguments), dict[str, object])
            job.record_step("record", lambda: self._changed(arguments), dict[str, object])
        except LeewardError:
            job.step("keep", lambda _: self._kept(arguments), dict[str, object], is_undo=True)
            self._go_on(job, arguments, empty=arguments.url)
            raise
        self._go_on(job, arguments, empty=arguments.former_url)
        self._ending.remove_account(job, arguments.former_region, arguments.former_account)
        return {"item_id": arguments.item_id, "cache_account": arguments.account}

    def _go_on(self, job: RunningJob, arguments: CacheArguments, *, empty: str) -> None:
        """The item goes on as the vault says, the source after the worker: it looks into the cache
        for how far that has come. empty: the cache that is not its own."""
        job.undo_orders("worker", lambda: self._worker_orders(arguments))
        job.undo_orders("source", lambda: self._source_orders(arguments))
        # Carried out late it would meet what another change has put there since.
        job.undo_orders("empty", lambda: self._erase_orders(arguments, empty), late=False)

    # --- orders

    def _nodes(self, records: Records, record: ItemRecord) -> tuple[NodeRecord, NodeRecord]:
        """Return the item's source and worker. Raises: NotFound."""
        source, worker = source_agent(records, record), find_node(records, record.worker_id)
        if source is None or worker is None:
            raise NotFound(f"the nodes that replicate {record.item.name} are not enrolled any more")
        return source, worker

    def _hold_order(self, arguments: CacheArguments) -> Order:
        with self._bench.vault.read() as records:
            record = _changing(records, arguments)
            return go_on_replicating(records, record, self._nodes(records, record)[0])

    def _change_order(self, arguments: CacheArguments) -> Order:
        with self._bench.vault.read() as records:
            record = _changing(records, arguments)
            spec = to_plain(processing_spec(records, _with_cache(record, arguments)))
            order = go_on_processing(records, record)
        return replace(order, verb=Verb.CACHE_CHANGE, arguments=spec)

    def _worker_orders(self, arguments: CacheArguments) -> list[Order]:
        with self._bench.vault.read() as records:
            record = _following(records, arguments)
            if record is None or find_node(records, record.worker_id) is None:
                return []
            return [go_on_processing(records, record)]

    def _source_orders(self, arguments: CacheArguments) -> list[Order]:
        with self._bench.vault.read() as records:
            record = _following(records, arguments)
            agent = source_agent(records, record) if record else None
            if record is None or agent is None:
                return []
            return [go_on_replicating(records, record, agent)]

    def _erase_orders(self, arguments: CacheArguments, url: str) -> list[Order]:
        with self._bench.vault.read() as records:
            record = records.items.find(arguments.item_id)
            worker = find_node(records, record.worker_id) if record else None
        about: Json = {"item_id": arguments.item_id, "url": url}
        return [Order(node=worker, verb=Verb.CACHE_ERASE, arguments=about)] if worker else []

    # --- what the vault says then

    def _changed(self, arguments: CacheArguments) -> Json:
        with self._bench.vault.write() as records:
            known = records.items.by_id(arguments.item_id)
            record = _with_cache(known, arguments)
            if record != known:
                _changing(records, arguments)
                records.items.update(record)
                self._bench.record_event(
                    records,
                    item_target(record.item.name),
                    "item_cache_changed",
                    f"the cuts of {record.item.name} go through {arguments.region}/"
                    f"{arguments.account} from now on",
                )
        return {}

    def _kept(self, arguments: CacheArguments) -> Json:
        with self._bench.vault.write() as records:
            record = records.items.find(arguments.item_id)
            if record is not None and record.item.next_cache_account == arguments.account:
                item = replace(record.item, next_cache_account="")
                records.items.update(replace(record, item=item))
        return {}


def _ready_account(records: Records, region: str, name: str) -> StorageAccount:
    stored = records.resources.find(StorageAccount, region, name)
    if stored is None:
        raise NotFound(
            f"there is no storage account {name} in {region}, where the VM is",
            field="cache_account",
            hint=f"`leeward storage-account list --region {region}`",
        )
    if stored.state is not ResourceState.READY:
        raise Conflict(
            f"storage account {name} in {region} is just being {stored.state.value}",
            field="cache_account",
            hint="try again in a few seconds",
        )
    return stored.value


def _following(records: Records, arguments: CacheArguments) -> ItemRecord | None:
    """Return the item if it is replicated on, whatever came between."""
    record = records.items.find(arguments.item_id)
    if record is None or not record.is_replicating or record.item.state not in FOLLOWING:
        return None
    return record


def _changing(records: Records, arguments: CacheArguments) -> ItemRecord:
    """Return the item. Raises: Conflict when a failover or its end has come between."""
    record = _following(records, arguments)
    now = (record.item.epoch, record.item.next_cache_account) if record else None
    if record is None or now != (arguments.epoch, arguments.account):
        raise Conflict("the item is not replicated any more as it was", field="state")
    return record


def _with_cache(record: ItemRecord, arguments: CacheArguments) -> ItemRecord:
    item = replace(record.item, cache_account=arguments.account, next_cache_account="")
    return replace(record, item=item, cache_region=arguments.region)

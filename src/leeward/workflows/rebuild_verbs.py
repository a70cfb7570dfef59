"""Making vaults anew from what target stores hold.

Owns: which records follow from what a worker found. Must not know: catalogs, keys. For the day on
which the service's database is lost; what the vault knows already is never overwritten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from leeward.core.errors import NotFound, Unavailable
from leeward.model.recovery import ItemState, Job
from leeward.model.resources import Region, StorageAccount
from leeward.protocol.messages import Role, Verb
from leeward.protocol.rebuild import AboutItem, FoundItem, FoundItems
from leeward.vault.items import ItemRecord
from leeward.vault.jobs import IdempotencyKey
from leeward.vault.nodes import NodeRecord
from leeward.vault.records import Records
from leeward.vault.resources import Resource
from leeward.workflows.bench import Bench
from leeward.workflows.dispatch import Order
from leeward.workflows.engine import Json
from leeward.workflows.item_orders import go_on_processing
from leeward.workflows.job import RunningJob
from leeward.workflows.jobs import Jobs
from leeward.workflows.monitor import item_target
from leeward.workflows.replica_verbs import is_being_deleted
from leeward.workflows.resource_verbs import Grouped, ResourceVerbs, mapping_name

READ_SECONDS = 1800.0
POINTS_SECONDS = 60.0

AccountUrls = dict[tuple[str, str], str]
"""(region, storage account) → URL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildArguments:
    stores: tuple[str, ...]
    region: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """What became of what was found: names of items made, and sentences on those that were not."""

    items: dict[str, str]
    """Item's id → its name."""
    problems: tuple[str, ...] = ()


class RebuildVerbs:
    """Submits and runs it."""

    def __init__(self, bench: Bench, jobs: Callable[[], Jobs], resources: ResourceVerbs) -> None:
        self._bench = bench
        self._jobs = jobs
        self._resources = resources

    def rebuild(
        self, stores: Sequence[str], *, region: str, key: IdempotencyKey | None = None
    ) -> Job:
        """Return the job that makes known what the stores hold. region: whose worker reads them,
        "": any. Raises: Unavailable without a worker that answers."""

        def prepare(records: Records) -> RebuildArguments:
            self._worker(records, region)
            return RebuildArguments(stores=tuple(stores), region=region)

        return self._jobs().submit("vault.rebuild", "vault", prepare, key)

    def run(self, job: RunningJob) -> Json:
        """Every item found is in its vault, processed by a worker of its target region, with its
        recovery points; what could not be used is named."""
        arguments = job.arguments(RebuildArguments)
        found = job.order(
            "read stores",
            lambda: self._read_order(arguments),
            FoundItems,
            timeout_seconds=READ_SECONDS,
        )
        rebuilt = job.step("record", lambda _: self._record(found), Rebuilt)
        job.orders("storage", lambda: self._account_orders(rebuilt), dict[str, object])
        job.orders("start processing", lambda: self._processing_orders(rebuilt), dict[str, object])
        job.step("recovery points", lambda _: self._wait_points(job, rebuilt), dict[str, object])
        return {"items": sorted(rebuilt.items.values()), "problems": list(rebuilt.problems)}

    # --- steps

    def _worker(self, records: Records, region: str) -> NodeRecord:
        workers = [
            node
            for node in records.nodes.listed(role=Role.WORKER, region=region or None)
            if self._bench.is_heard(node)
        ]
        if not workers:
            where = f"of region {region} " if region else ""
            raise Unavailable(
                f"no worker {where}answers",
                hint="start one in the target region: `leeward worker`",
            )
        return workers[0]

    def _read_order(self, arguments: RebuildArguments) -> Order:
        with self._bench.vault.read() as records:
            worker = self._worker(records, arguments.region)
        urls: Json = {"urls": list(arguments.stores)}
        return Order(node=worker, verb=Verb.STORES_READ, arguments=urls)

    def _record(self, found: FoundItems) -> Rebuilt:
        if not found.items:
            raise NotFound(
                "the stores hold no item's catalog",
                field="from",
                hint="name the target region's storage accounts, above all the system disks'",
            )
        items: dict[str, str] = {}
        problems: list[str] = []
        urls = _account_urls(found)
        for each in found.items:
            problem = each.problem or self._record_item(each, urls)
            if problem:
                problems.append(f"{each.item_id}: {problem}")
            elif each.about is not None:
                items[each.item_id] = each.about.item.name
        return Rebuilt(items=items, problems=tuple(problems))

    def _record_item(self, found: FoundItem, urls: AccountUrls) -> str:
        """Return why the item is not in the vault, "" if it is now."""
        about = found.about
        if about is None:
            return "nothing is known of it"
        item = about.item
        with self._bench.vault.write() as records:
            if records.items.find(item.id) is not None:
                return ""
            if is_being_deleted(records, item.id):
                return "what is stored of it is being deleted"
            others = records.items.listed(vault=item.vault)
            if any(other.item.name == item.name for other in others):
                return f"vault {item.vault} has another item named {item.name}"
            workers = self._bench.answering(records, Role.WORKER, item.target_region)
            if not workers:
                return f"no worker of region {item.target_region} answers"
            for region, name, url in _places(found):
                stored = records.resources.find(StorageAccount, region, name)
                there = stored.value.url if stored is not None else urls[region, name]
                if there != url:
                    return (
                        f"storage account {name} of region {region} is at {there}, but what is "
                        f"stored of the item in that account is at {url}"
                    )
            _insert_resources(records, _moved(about, urls))
            records.items.insert(
                ItemRecord(
                    item=replace(
                        item,
                        state=ItemState.DEGRADED,
                        epoch=found.epoch,
                        problem="rebuilt from its stores",
                    ),
                    target_vm=about.target_vm,
                    cache_region=about.cache_region,
                    worker_id=workers[0].id,
                    is_replicating=True,
                )
            )
            self._bench.record_event(
                records,
                item_target(item.name),
                "item_rebuilt",
                f"{item.name} was found in its stores, with {found.point_count} recovery points",
            )
        return ""

    def _account_orders(self, rebuilt: Rebuilt) -> list[Order]:
        with self._bench.vault.read() as records:
            wanted = {
                (record.item.target_region, mapping.target_account)
                for record in records.items.by_ids(rebuilt.items).values()
                for mapping in record.item.all_disks
            }
        return [
            order
            for region, name in sorted(wanted)
            for order in self._resources.account_orders(region, name, Verb.ACCOUNT_CREATE)
        ]

    def _processing_orders(self, rebuilt: Rebuilt) -> list[Order]:
        """An item that the vault knew, and that is not replicated now, stays as it is."""
        with self._bench.vault.read() as records:
            return [
                go_on_processing(records, record)
                for record in records.items.by_ids(rebuilt.items).values()
                if record.is_replicating and record.worker_id
            ]

    def _wait_points(self, job: RunningJob, rebuilt: Rebuilt) -> Json:
        """Return when the workers have told of every item's points, or it takes too long: they
        still will."""
        clock = self._bench.clock
        deadline = clock.monotonic() + POINTS_SECONDS
        while clock.monotonic() < deadline:
            job.check_cancelled()
            with self._bench.vault.read() as records:
                missing = [i for i in rebuilt.items if records.points.newest(i) is None]
            if not missing:
                break
            clock.sleep(0.2)
        return {}


def _places(found: FoundItem) -> list[tuple[str, str, str]]:
    """Return (region, account, URL) of where the item's disks were found."""
    if found.problem or found.about is None:
        return []
    item = found.about.item
    account_of = {mapping.disk: mapping.target_account for mapping in item.all_disks}
    return [
        (item.target_region, account_of[disk], url)
        for disk, url in found.urls.items()
        if disk in account_of
    ]


def _account_urls(found: FoundItems) -> AccountUrls:
    """Return where each account is now: one is shared by many items, and not each of them has
    something stored there that tells."""
    urls: AccountUrls = {}
    for each in found.items:
        for region, name, url in _places(each):
            urls.setdefault((region, name), url)
    return urls


def _moved(about: AboutItem, urls: AccountUrls) -> AboutItem:
    """Return the item with its accounts where they were found."""
    accounts = tuple(
        replace(account, url=urls.get((account.region, account.name), account.url))
        for account in about.accounts
    )
    return replace(about, accounts=accounts)


def _insert_resources(records: Records, about: AboutItem) -> None:
    """Everything that the item uses is in the vault; what is there already stays as it is."""
    item = about.item
    for region in {item.source_region, item.target_region, about.cache_region}:
        _insert(records, Region(name=region), "", region)
    _insert(records, about.vault, "", about.vault.name)
    _insert(records, about.policy, about.vault.name, about.policy.name)
    made: list[Grouped | StorageAccount] = [
        *about.groups,
        *about.networks,
        *about.sets,
        about.cache,
        *about.accounts,
    ]
    for resource in made:
        _insert(records, resource, resource.region, resource.name)
    group = about.consistency_group
    if group is not None:
        _insert(records, group, group.vault, group.name)
    for mapping in about.mappings:
        _insert(records, mapping, "", mapping_name(mapping))


def _insert(records: Records, resource: Resource, scope: str, name: str) -> None:
    if records.resources.find(type(resource), scope, name) is None:
        records.resources.insert(resource, scope=scope, name=name)

"""Which replicas storage accounts hold, whose they are, and deleting those that are nobody's.

Owns: telling leftovers from what a protected item uses, and the jobs. Must not know: objects; a
worker lists and erases them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from leeward.core.codec import to_plain
from leeward.core.errors import Conflict, NotFound, Unavailable
from leeward.core.ids import check_name
from leeward.model.recovery import Job
from leeward.model.resources import StorageAccount
from leeward.protocol.messages import Role, Verb
from leeward.protocol.replicas import ErasureSpec, Replica, Replicas, StoredItems
from leeward.vault.jobs import IdempotencyKey
from leeward.vault.nodes import NodeRecord
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.dispatch import Order
from leeward.workflows.engine import Json
from leeward.workflows.job import RunningJob
from leeward.workflows.jobs import Jobs

REPLICAS_READ = "storage.replicas"
REPLICA_DELETE = "storage.delete-replica"
READ_SECONDS = 1800.0
ERASE_SECONDS = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadArguments:
    """region, account: "": all."""

    region: str = ""
    account: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteArguments:
    item_id: str
    even_if_held: bool


class ReplicaVerbs:
    """Submits and runs them."""

    def __init__(self, bench: Bench, jobs: Callable[[], Jobs]) -> None:
        self._bench = bench
        self._jobs = jobs

    def read(self, *, region: str, account: str, key: IdempotencyKey | None = None) -> Job:
        """Return the job whose result is what replicas there are. region, account: "": all.

        Raises: NotFound, Unavailable without a worker that answers; then nothing is read.
        """

        def prepare(records: Records) -> ReadArguments:
            arguments = ReadArguments(region=region, account=account)
            if account and not _accounts(records, arguments):
                where = f" in region {region}" if region else ""
                raise NotFound(
                    f"there is no storage account {account}{where}",
                    field="account",
                    hint="`leeward storage-account list`",
                )
            self._workers(records)
            return arguments

        return self._jobs().submit(REPLICAS_READ, "storage", prepare, key)

    def delete(self, item_id: str, *, even_if_held: bool, key: IdempotencyKey | None = None) -> Job:
        """Return the job that erases all that storage accounts have of an item that this service
        does not know. even_if_held: though readers have pinned it.

        Raises: InvalidRequest, Conflict while it is in use; Unavailable without a worker.
        """
        check_name(item_id, field="item_id")

        def prepare(records: Records) -> DeleteArguments:
            check_leftover(records, item_id)
            self._workers(records)
            return DeleteArguments(item_id=item_id, even_if_held=even_if_held)

        return self._jobs().submit(REPLICA_DELETE, f"replica/{item_id}", prepare, key)

    def run_read(self, job: RunningJob) -> Json:
        """What the accounts hold is the result; nothing has changed."""
        return to_plain(self._look(job, job.arguments(ReadArguments)))  # type: ignore[no-any-return]

    def run_delete(self, job: RunningJob) -> Json:
        """Nothing is left of the item in any account that can be read; the catalog went last."""
        arguments = job.arguments(DeleteArguments)
        found = self._look(job, ReadArguments())
        mine = [each for each in found.replicas if each.stored.item_id == arguments.item_id]
        job.step("check", lambda _: self._check(arguments, mine, found.problems), dict[str, object])
        for name, has_catalog in (("erase", False), ("erase catalog", True)):
            places = [each for each in mine if each.stored.has_catalog is has_catalog]
            job.orders(
                name,
                lambda places=places: self._erase_orders(arguments, places),  # type: ignore[misc]
                dict[str, object],
                timeout_seconds=ERASE_SECONDS,
            )
        return {
            "item_id": arguments.item_id,
            "objects": sum(each.stored.objects for each in mine),
            "bytes": sum(each.stored.bytes for each in mine),
            "accounts": [f"{each.region}/{each.account}" for each in mine],
            "problems": list(found.problems),
        }

    # --- steps

    def _look(self, job: RunningJob, wanted: ReadArguments) -> Replicas:
        reports = job.orders(
            "read stores",
            lambda: self._read_orders(wanted),
            StoredItems,
            timeout_seconds=READ_SECONDS,
        )
        return job.step("compare", lambda _: self._compare(wanted, reports), Replicas)

    def _read_orders(self, wanted: ReadArguments) -> list[Order]:
        with self._bench.vault.read() as records:
            regions: dict[str, list[str]] = {}
            for account in _accounts(records, wanted):
                if account.url and account.url not in (
                    urls := regions.setdefault(account.region, [])
                ):
                    urls.append(account.url)
            return [
                Order(
                    node=self._worker(records, region),
                    verb=Verb.REPLICAS_READ,
                    arguments={"urls": list(urls)},
                    key=region,
                )
                for region, urls in sorted(regions.items())
            ]

    def _compare(self, wanted: ReadArguments, reports: list[StoredItems]) -> Replicas:
        stored = {(each.url, each.item_id): each for report in reports for each in report.items}
        problems = {url: why for report in reports for url, why in report.problems.items()}
        with self._bench.vault.read() as records:
            accounts = _accounts(records, wanted)
            users = {
                record.item.id: f"{record.item.vault}/{record.item.name}"
                for record in records.items.listed()
            }
        seen: set[str] = set()
        replicas: list[Replica] = []
        sentences: list[str] = []
        for account in accounts:
            if account.url in seen:  # two accounts of one store: told once
                continue
            seen.add(account.url)
            if account.url in problems:
                sentences.append(f"{account.region}/{account.name}: {problems[account.url]}")
            replicas += [
                Replica(
                    region=account.region,
                    account=account.name,
                    used_by=users.get(item_id, ""),
                    stored=each,
                )
                for (url, item_id), each in stored.items()
                if url == account.url
            ]
        return Replicas(replicas=tuple(replicas), problems=tuple(sentences))

    def _check(
        self, arguments: DeleteArguments, mine: list[Replica], problems: tuple[str, ...]
    ) -> Json:
        """Return if it may be erased, and there is something. Raises: NotFound, Conflict."""
        with self._bench.vault.read() as records:
            check_leftover(records, arguments.item_id)
        if not mine:
            unread = f"; not read: {'; '.join(problems)}" if problems else ""
            raise NotFound(
                f"no storage account has anything of {arguments.item_id}{unread}",
                field="item_id",
                hint="`leeward storage replicas list`",
            )
        held = sum(each.stored.held for each in mine)
        if held and not arguments.even_if_held:
            raise Conflict(
                f"{held} readers have pinned {arguments.item_id} or hold a recovery point of it",
                field="even_if_held",
                hint="end exports and test VMs; if their hosts are lost: --even-if-held",
            )
        return {}

    def _erase_orders(self, arguments: DeleteArguments, places: list[Replica]) -> list[Order]:
        with self._bench.vault.read() as records:
            check_leftover(records, arguments.item_id)
            return [
                Order(
                    node=self._worker(records, each.region),
                    verb=Verb.REPLICA_ERASE,
                    arguments=to_plain(
                        ErasureSpec(
                            item_id=arguments.item_id,
                            url=each.stored.url,
                            even_if_held=arguments.even_if_held,
                        )
                    ),
                    key=each.stored.url,
                )
                for each in places
            ]

    # --- workers

    def _workers(self, records: Records) -> list[NodeRecord]:
        workers = [
            node for node in records.nodes.listed(role=Role.WORKER) if self._bench.is_heard(node)
        ]
        if not workers:
            raise Unavailable("no worker answers", hint="start one: `leeward worker`")
        return workers

    def _worker(self, records: Records, region: str) -> NodeRecord:
        """Return a worker of the region, else any: stores are reached from everywhere, but for
        directories."""
        workers = self._workers(records)
        return next((node for node in workers if node.region == region), workers[0])


def check_leftover(records: Records, item_id: str) -> None:
    """Return if no item of this service has that id. Raises: Conflict."""
    record = records.items.find(item_id)
    if record is None:
        return
    item = record.item
    raise Conflict(
        f"{item_id} is what {item.name} in vault {item.vault} is protected by",
        field="item_id",
        hint=f"`leeward unprotect {item.name} --delete-replica` ends its protection and deletes it",
    )


def is_being_deleted(records: Records, item_id: str) -> bool:
    """Say whether a job is erasing what is stored of the item."""
    return any(
        records.jobs.record(job_id).arguments.get("item_id") == item_id
        for job_id in records.jobs.open_ids(verb=REPLICA_DELETE)
    )


def _accounts(records: Records, wanted: ReadArguments) -> list[StorageAccount]:
    return [
        stored.value
        for stored in records.resources.listed(StorageAccount, wanted.region or None)
        if wanted.account in ("", stored.name)
    ]

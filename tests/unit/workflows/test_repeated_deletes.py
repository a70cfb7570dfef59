"""A deletion whose answer was lost is asked for again, when what it was about may have gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.workflows.replay_rig import Site, site

from leeward.core.errors import NotFound
from leeward.model.recovery import Job, JobState
from leeward.model.resources import StorageAccount, VirtualNetwork
from leeward.vault.jobs import IdempotencyKey

FIRST, SECOND = (IdempotencyKey(key=key, fingerprint="f") for key in ("first", "second"))
Delete = Callable[[Site, IdempotencyKey], Job]


def unprotect(made: Site, key: IdempotencyKey) -> Job:
    return made.service.disabling.disable("main", "web-1", delete_replica=True, key=key)


def delete_vm(made: Site, key: IdempotencyKey) -> Job:
    return made.service.machines.delete("east", "web-1", key)


def delete_network(made: Site, key: IdempotencyKey) -> Job:
    return made.service.resources.delete_real(VirtualNetwork, "east", "spare", key)


def delete_account(made: Site, key: IdempotencyKey) -> Job:
    return made.service.resources.delete_real(StorageAccount, "east", "spare", key)


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as made:
        yield made


@pytest.mark.parametrize("delete", [unprotect, delete_vm, delete_network, delete_account])
def test_a_repeated_deletion_is_the_same_job_though_all_has_gone(
    made: Site, delete: Delete
) -> None:
    if delete is unprotect:
        assert made.run(made.protect()).state is JobState.SUCCEEDED
    elif delete is not delete_vm:
        make_spare(made)
    job = delete(made, FIRST)
    assert delete(made, SECOND).id == job.id  # somebody else's, while it is under way
    assert made.run(job).state is JobState.SUCCEEDED
    assert delete(made, FIRST).id == job.id
    assert delete(made, SECOND).id == job.id
    with pytest.raises(NotFound):
        delete(made, IdempotencyKey(key="third", fingerprint="f"))


def make_spare(made: Site) -> None:
    with made.vault.write() as records:
        network = next(iter(records.resources.listed(VirtualNetwork, "east"))).value
        account = next(iter(records.resources.listed(StorageAccount, "east"))).value
        for spare in (replace(network, name="spare"), replace(account, name="spare")):
            records.resources.insert(spare, scope="east", name="spare")

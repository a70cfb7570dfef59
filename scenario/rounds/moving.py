"""Rounds of an item that moves: there and back, from another point, given up and found again."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from leeward.cli.vaults import DEFAULT_VAULT
from leeward.model.recovery import ItemState, Job
from leeward.model.resources import (
    StorageAccount,
)
from scenario.rig import Rig, write_byte
from scenario.rounds.act import (
    AGENT_EAST,
    AGENT_WEST,
    IN_WEST,
    SERVICE,
    WEB,
    WORKER_EAST,
    WORKER_WEST,
    Act,
    Round,
)
from scenario.rounds.place import (
    are,
    describe_drill,
    do,
    gone,
    moved_gone,
    placed,
    protect,
    protected,
    unprotect,
)


def _planned(rig: Rig) -> Job | None:
    return rig.client.planned_failover(rig.item(), recovery_point="latest", power_off_seconds=1)


def fail_over(rig: Rig) -> Job | None:
    return rig.client.failover(rig.item(), "latest")


COMMIT = Act(
    victims=(SERVICE,),
    verb="item.commit",
    ask=lambda rig: rig.client.commit(rig.item()),
    holds=lambda rig: are(rig, ItemState.COMMITTED),
)
REHEARSING = (SERVICE, AGENT_WEST, WORKER_WEST)
THERE_AND_BACK = Round(
    name="there-and-back",
    victims=(SERVICE, AGENT_EAST, AGENT_WEST, WORKER_WEST, WORKER_EAST),
    begin=lambda rig: placed(rig, WEB),
    end=gone,
    acts=(
        Act(verb="item.protect", ask=protect, holds=lambda r: are(r, ItemState.PROTECTED)),
        Act(
            verb="item.test-failover",
            ask=lambda rig: rig.client.test_failover(rig.item(), "latest", forwards=()),
            running=(1, 1),
            victims=REHEARSING,
        ),
        Act(
            verb="item.test-failover-cleanup",
            victims=REHEARSING,
            ask=lambda rig: rig.client.clean_up_test_failover(rig.item()),
            holds=lambda rig: rig.item().rehearsal is None,
        ),
        Act(
            verb="item.drill",
            before=describe_drill,
            ask=lambda rig: rig.client.drills.run(rig.item()),
            holds=lambda rig: rig.item().rehearsal is None,
            may_fail=True,
            victims=REHEARSING,
        ),
        Act(verb="item.planned-failover", ask=_planned, running=IN_WEST),
        replace(COMMIT, running=IN_WEST),
        Act(
            verb="item.reprotect",
            ask=lambda rig: rig.client.reprotect(rig.item()),
            holds=lambda rig: are(rig, ItemState.PROTECTED),
            running=IN_WEST,
        ),
        Act(verb="item.failover", ask=fail_over),
        COMMIT,
        Act(verb="item.disable", ask=unprotect, holds=lambda r: not r.client.items(DEFAULT_VAULT)),
    ),
)


def _change_point(rig: Rig) -> Job | None:
    item = rig.item()
    oldest = rig.client.recovery_points(item)[-1]
    return rig.client.change_recovery_point(item, oldest.id)


def _begin_moved(rig: Rig) -> None:
    """web-1 has failed over, and there is another recovery point than the one it runs from."""
    protected(rig, WEB)
    write_byte(rig, 4096, b"x")
    rig.wait("a second recovery point", lambda: len(rig.points()) > 1)
    do(rig, f"{WEB} fails over", fail_over)


MOVED = Round(
    name="moved",
    victims=(SERVICE, AGENT_WEST, WORKER_WEST),
    begin=_begin_moved,
    end=lambda rig: moved_gone(rig, WEB),
    acts=(
        Act(verb="item.change-recovery-point", ask=_change_point, running=IN_WEST),
        replace(COMMIT, running=IN_WEST),
        Act(
            verb="item.undo-commit",
            ask=lambda rig: rig.client.undo_commit(rig.item()),
            holds=lambda rig: are(rig, ItemState.FAILED_OVER),
            running=IN_WEST,
        ),
    ),
)


def _rebuild(rig: Rig) -> Job | None:
    stores = [account.url for account in rig.client.list(StorageAccount, "west")]
    return rig.client.rebuild_vaults(stores, region="west")


def _stored(rig: Rig) -> list[str]:
    """Return the items of which west has something."""
    places = (rig.data / "regions" / "west" / "storage").glob("*/objects/items/*")
    return sorted(path.name for path in places if any(each.is_file() for each in path.rglob("*")))


def _delete_stored(rig: Rig) -> Job | None:
    left = _stored(rig)
    return rig.client.delete_replica(left[0], even_if_held=True) if left else None


KEEP_REPLICA = Act(
    verb="item.disable",
    ask=partial(unprotect, delete=False),
    holds=lambda rig: not rig.client.items(DEFAULT_VAULT) and _stored(rig),
)
KEPT = Round(
    name="kept",
    victims=(SERVICE, AGENT_EAST, AGENT_WEST, WORKER_WEST),
    begin=lambda rig: protected(rig, WEB),
    end=gone,
    acts=(
        KEEP_REPLICA,
        Act(
            verb="storage.replicas",
            ask=lambda rig: rig.client.read_replicas("west", ""),
            victims=(SERVICE, WORKER_WEST),
        ),
        Act(verb="vault.rebuild", ask=_rebuild, holds=lambda rig: rig.points()),
        replace(KEEP_REPLICA, victims=(SERVICE,)),
        Act(
            verb="storage.delete-replica",
            ask=_delete_stored,
            holds=lambda rig: not _stored(rig),
            victims=(SERVICE, WORKER_WEST),
        ),
    ),
)

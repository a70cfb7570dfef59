"""Rounds of an item that stays: what is changed of it, and of its VM while a guest runs."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

from leeward.cli.vaults import DEFAULT_VAULT
from leeward.model.recovery import AES_256_GCM, Job, Policy
from leeward.model.resources import (
    Disk,
    StorageAccount,
)
from scenario.rig import GUEST_PORT, Rig, guest_images
from scenario.rounds.act import ACCOUNT, AGENT_EAST, GROUP, SERVICE, WEB, WORKER_WEST, Act, Round
from scenario.rounds.machines import DISK_ACTS, REMOVE_DISK
from scenario.rounds.place import create, do, gone, machine, newest_job, place, protect

SPARE = "spare"


def _begin_item(rig: Rig) -> None:
    """web-1 is protected, encrypted with the first of the vault's two keys; its cache may move."""
    place(rig)
    spare = StorageAccount(region="east", name=SPARE, resource_group=GROUP)
    do(rig, "a spare storage account", lambda _: rig.client.put(spare))
    keys = sorted(key.key_id for key in rig.client.vault_keys(DEFAULT_VAULT))
    do(rig, "the vault has a key", lambda _: rig.client.use_vault_key(DEFAULT_VAULT, keys[0]))
    rig.client.put_policy(DEFAULT_VAULT, Policy(name="secret", encryption=AES_256_GCM))
    do(rig, f"{WEB} is created", create)
    do(rig, f"{WEB} is protected", partial(protect, policy="secret"))


def _end_item(rig: Rig) -> None:
    gone(rig)
    rig.client.delete_policy(DEFAULT_VAULT, "secret")


def _other_cache(rig: Rig) -> Job | None:
    """The two accounts take turns."""
    item = rig.item()
    other = ACCOUNT if item.cache_account == SPARE else SPARE
    return rig.client.update_item(item, {"cache_account": other})


def _other_key(rig: Rig) -> Job | None:
    (other,) = [key.key_id for key in rig.client.vault_keys(DEFAULT_VAULT) if not key.is_current]
    return rig.client.use_vault_key(DEFAULT_VAULT, other)


def _other_policy(rig: Rig) -> Job | None:
    policy = rig.client.policy(DEFAULT_VAULT, "secret")
    since_ns = time.time_ns()
    other = "lz4" if policy.compression == "zstd" else "zstd"
    rig.client.put_policy(DEFAULT_VAULT, replace(policy, compression=other))
    return newest_job(rig, "policy.apply", since_ns)


ITEM = Round(
    name="item",
    victims=(SERVICE, AGENT_EAST, WORKER_WEST),
    begin=_begin_item,
    end=_end_item,
    acts=(
        Act(verb="item.update", ask=lambda rig: rig.client.update_item(rig.item(), {"vcpus": 2})),
        Act(verb="item.change-cache", ask=_other_cache),
        Act(verb="policy.apply", ask=_other_policy),
        Act(verb="vault.use-key", ask=_other_key),
        Act(
            verb="item.recovery-point",
            ask=lambda rig: rig.client.create_recovery_point(rig.item()),
        ),
        Act(verb="item.scrub", ask=lambda rig: rig.client.scrub(rig.item(), dry_run=False)),
        Act(verb="item.compact", ask=lambda rig: rig.client.compact(rig.item(), dry_run=False)),
    ),
)


def _begin_guest(rig: Rig) -> None:
    place(rig)
    with guest_images(rig) as guest:
        vm = replace(
            machine(WEB),
            memory_mib=192,
            disks=(
                Disk(name="system", storage_account=ACCOUNT, image=str(guest / "system.raw")),
                Disk(name="data", storage_account=ACCOUNT, image=str(guest / "data.raw")),
            ),
            forwards=(GUEST_PORT,),
        )
        do(rig, f"{WEB} is created", lambda _: rig.client.put(vm))
    do(rig, f"{WEB} is protected", protect)
    rig.wait_guest("east")


GUEST = Round(
    name="guest",
    victims=(SERVICE, AGENT_EAST, WORKER_WEST),
    begin=_begin_guest,
    end=gone,
    acts=(
        Act(verb="vm.trim", ask=lambda rig: rig.client.trim_machine("east", WEB)),
        *DISK_ACTS,
        REMOVE_DISK,
    ),
)

"""Generations of dirty bitmaps: what was written since when, on every disk of a VM at once.

Owns: their names, adding, merging, listing and removing them. Must not know: when a generation may
go (mobility/generations.py), or what its bits are read for (mobility/sweep.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from leeward.core.units import GIB, KIB, TIB
from leeward.qemu.nodes import BlockNode
from leeward.qemu.session import QmpSession

_NAME = re.compile(r"lw-(\d+)-(\d+)")
_OURS = re.compile(r"lw-(\d+)-(\d+|sweep)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """Bitmap `lw-<epoch>-<number>` on every disk of the VM.

    is_trustworthy: it is on all disks, records, and QEMU vouches for it: every write since it was
    added has its bit set.
    """

    epoch: int
    number: int
    is_trustworthy: bool
    dirty_bytes: int


def generation_name(epoch: int, number: int) -> str:
    return f"lw-{epoch}-{number}"


def sweep_name(epoch: int) -> str:
    """The name of the merged, disabled bitmap that a sweep reads."""
    return f"lw-{epoch}-sweep"


def granularity_for(size_bytes: int) -> int:
    """Return bytes per bit: 4 KiB to 64 KiB, so that one bitmap of a disk up to 1 TiB takes at
    most 8 MiB of QEMU's memory."""
    if size_bytes <= 64 * GIB:
        return 4 * KIB
    return 16 * KIB if size_bytes <= TIB else 64 * KIB


def list_generations(disks: Sequence[BlockNode]) -> tuple[Generation, ...]:
    """Return every generation that any of the VM's disk nodes has, by epoch and number."""
    found = {
        (int(match[1]), int(match[2]))
        for disk in disks
        for bitmap in disk.bitmaps
        if (match := _NAME.fullmatch(bitmap.name))
    }
    return tuple(_generation(disks, *key) for key in sorted(found))


def _generation(disks: Sequence[BlockNode], epoch: int, number: int) -> Generation:
    bitmaps = [disk.bitmap(generation_name(epoch, number)) for disk in disks]
    return Generation(
        epoch=epoch,
        number=number,
        is_trustworthy=all(
            bitmap is not None and bitmap.is_recording and not bitmap.is_inconsistent
            for bitmap in bitmaps
        ),
        dirty_bytes=sum(bitmap.dirty_bytes for bitmap in bitmaps if bitmap is not None),
    )


def add_generation(
    session: QmpSession, disks: Sequence[BlockNode], *, epoch: int, number: int
) -> None:
    """Have the generation record on all disks from one moment at which nothing was in flight.

    The transaction drains: every write the guest issued before it has reached source and tap; every
    later one sets its bit. (Plain block-dirty-bitmap-add does not, and loses writes in flight.)
    Where the image can hold it, it survives a clean exit of QEMU. After any other QEMU finds it
    inconsistent, or not at all if it was never stored.
    """
    session.transaction(
        [
            {
                "type": "block-dirty-bitmap-add",
                "data": {
                    "node": disk.name,
                    "name": generation_name(epoch, number),
                    "granularity": granularity_for(disk.size_bytes),
                    "persistent": disk.keeps_bitmaps,
                },
            }
            for disk in disks
        ]
    )


def add_missing(
    session: QmpSession, disks: Sequence[BlockNode], *, epoch: int, number: int
) -> None:
    """Have the generation record on these disks as well: from now on, where it did not."""
    name = generation_name(epoch, number)
    missing = [disk for disk in disks if disk.bitmap(name) is None]
    if missing:
        add_generation(session, missing, epoch=epoch, number=number)


def merge_generations(
    session: QmpSession,
    disks: Sequence[BlockNode],
    *,
    epoch: int,
    numbers: Iterable[int],
    others: Sequence[str] = (),
) -> None:
    """Have on every disk a disabled bitmap `sweep_name`, the union of those generations, and of the
    bitmaps called `others`, so far.

    Disabled, because QEMU refuses to export an enabled one read-only and locks it when it exports
    it writable. One of an earlier sweep is replaced.
    """
    remove_sweep(session, disks, epoch=epoch)  # not below: QEMU removes at a transaction's end
    name = sweep_name(epoch)
    names = [*others, *(generation_name(epoch, number) for number in numbers)]
    actions: list[dict[str, object]] = []
    for disk in disks:
        add = {
            "node": disk.name,
            "name": name,
            "granularity": granularity_for(disk.size_bytes),
            "disabled": True,
        }
        merge = {"node": disk.name, "target": name, "bitmaps": names}
        actions += [_action("add", add), _action("merge", merge)]
    session.transaction(actions)


def remove_generations(
    session: QmpSession, disks: Sequence[BlockNode], *, epoch: int, numbers: Iterable[int]
) -> None:
    """Make those generations not exist on any disk, all at once."""
    _remove(session, disks, {generation_name(epoch, number) for number in numbers})


def remove_sweep(session: QmpSession, disks: Sequence[BlockNode], *, epoch: int) -> None:
    """Make the merged bitmap of a sweep not exist. Idempotent; its exports must be gone."""
    _remove(session, disks, {sweep_name(epoch)})


def remove_all(session: QmpSession, disks: Sequence[BlockNode]) -> None:
    """Make no bitmap of ours exist on these disks, of whatever epoch."""
    names = {one.name for disk in disks for one in disk.bitmaps if _OURS.fullmatch(one.name)}
    _remove(session, disks, names)


def drain(session: QmpSession, disks: Sequence[BlockNode]) -> None:
    """Return when everything the guest had issued has reached source and tap."""
    data = {"node": disks[0].name, "name": "lw-drain"}
    session.transaction([_action("add", data), _action("remove", data)])


def _remove(session: QmpSession, disks: Sequence[BlockNode], names: set[str]) -> None:
    actions = [
        _action("remove", {"node": disk.name, "name": bitmap.name})
        for disk in disks
        for bitmap in disk.bitmaps
        if bitmap.name in names
    ]
    if actions:
        session.transaction(actions)


def _action(verb: str, data: Mapping[str, object]) -> dict[str, object]:
    return {"type": f"block-dirty-bitmap-{verb}", "data": dict(data)}

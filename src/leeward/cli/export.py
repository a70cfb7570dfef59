"""`leeward export`: a recovery point's disk out of the target's stores, by this very process.

Owns: where the stores are, as the service says or the caller does. One of the two verbs that do
not go through the service for their bytes: they must work when there is none.
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

from leeward.cli import output
from leeward.cli.output import Format
from leeward.cli.session import connect
from leeward.core.errors import NotFound, Unavailable
from leeward.core.units import format_bytes
from leeward.export.offline import FoundPoint, export_to_raw, find_point, serve_foreground
from leeward.model.resources import StorageAccount


def find(
    item: str, point: str, stores: list[str], data_dir: Path | None, vault: str | None
) -> FoundPoint:
    """Return the recovery point, found in `stores`, or in those the service names."""
    if stores:
        return find_point(stores, item, point)
    try:
        with connect(data_dir) as client:
            known = client.find_item(item, vault)
            accounts = {mapping.target_account for mapping in known.all_disks}
            urls = [
                client.get(StorageAccount, known.target_region, name).url
                for name in sorted(accounts)
            ]
    except Unavailable as error:
        raise Unavailable(
            error.message, hint="without a service, name the target's stores with --store URL"
        ) from error
    return find_point(urls, known.id, point)


def serve(found: FoundPoint, disk: str, socket: Path, chosen: Format) -> None:
    """The point's disks are served on `socket` until Ctrl-C or SIGTERM."""
    _check_disk(found, disk)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())

    def ready() -> None:
        uri = f"nbd+unix:///{disk}?socket={socket.absolute()}"
        if chosen is Format.JSON:
            output.print_json({"recovery_point": found.point.id, "disk": disk, "uri": uri})
        else:
            output.say(f"{found.point.id}: {uri}\nread-only, until Ctrl-C")

    serve_foreground(found, socket.absolute(), stop=stop, on_ready=ready)


def write(found: FoundPoint, disk: str, file: Path, chosen: Format) -> None:
    """`file` is the disk as it was."""
    _check_disk(found, disk)
    progress = _Progress(disk, is_quiet=chosen is Format.JSON or not sys.stderr.isatty())
    size = export_to_raw(found, disk, file, progress=progress)
    progress.end()
    if chosen is Format.JSON:
        output.print_json(
            {
                "recovery_point": found.point.id,
                "disk": disk,
                "file": str(file.absolute()),
                "size_bytes": size,
            }
        )
    else:
        output.say(f"{file}: {disk} at {found.point.id}, {format_bytes(size)}")


class _Progress:
    """One line on standard error, written over."""

    def __init__(self, disk: str, *, is_quiet: bool) -> None:
        self._disk = disk
        self._is_quiet = is_quiet

    def __call__(self, done: int, total: int) -> None:
        if not self._is_quiet:
            share = f"{done / total:4.0%}" if total else ""
            line = f"  {self._disk} {share} {format_bytes(done)} of {format_bytes(total)}"
            sys.stderr.write(f"\r{line:<60}")
            sys.stderr.flush()

    def end(self) -> None:
        """Leave the line."""
        if not self._is_quiet:
            sys.stderr.write("\n")


def _check_disk(found: FoundPoint, disk: str) -> None:
    names = [replica.disk for replica in found.replicas]
    if disk not in names:
        raise NotFound(
            f"{found.point.id} has no disk {disk}", field="disk", hint=f"it has {', '.join(names)}"
        )

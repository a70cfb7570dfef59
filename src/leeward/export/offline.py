"""Recovery points with nothing but the target's stores at hand: found, written out, served.

Owns: finding an item in stores somebody names. Must not know: vault, service, agents. Behind
`leeward export`, for the day on which only the target storage is left.
"""

from __future__ import annotations

import fcntl
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from leeward.core.errors import Conflict, InvalidRequest, LeewardError, NotFound, Unavailable
from leeward.export.config import ExportConfig
from leeward.export.copying import FAR_WORKERS, NEAR_WORKERS, Progress, copy_data
from leeward.export.patience import Patience
from leeward.export.points import Nobody, PointExports, open_devices
from leeward.model.recovery import RecoveryPoint
from leeward.nbd.server import NbdServer
from leeward.protocol.fabric import ReplicaDisk
from leeward.replica.catalog import Catalog
from leeward.replica.disk import PointDisk, open_point
from leeward.replica.host_keys import open_keyed
from leeward.replica.log_place import has_object, newest_object

READ_AHEAD_THREADS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPoint:
    """A recovery point and all that is needed to read it."""

    item_id: str
    point: RecoveryPoint
    catalog_url: str
    replicas: tuple[ReplicaDisk, ...]


def list_points(store_urls: Sequence[str], item_id: str) -> tuple[RecoveryPoint, ...]:
    """Return the item's recovery points, oldest first; of an item that was reprotected those of the
    newer direction that has any. Raises: as `find_point`."""
    return _find_catalogs(store_urls, item_id)[0][1].points


def find_point(store_urls: Sequence[str], item_id: str, wanted: str) -> FoundPoint:
    """Return the item's recovery point of that id, or its newest for "latest" and
    "latest-app-consistent".

    store_urls: the target's object stores, in any order; they may lie elsewhere now than they did
    when they were written. A disk whose replica is in none of them is looked for where the catalog
    says. Of an item that was reprotected, stores of both directions may be among them.
    Raises: NotFound; Unavailable when a store that is needed cannot be reached.
    """
    catalogs = _find_catalogs(store_urls, item_id)
    catalog_url, catalog = next(
        (found for found in catalogs if _has_point(found[1], wanted)), catalogs[0]
    )
    point = catalog.find_point(wanted)
    replicas = [
        ReplicaDisk(
            disk=disk,
            size_bytes=size_bytes,
            target_url=_find_replica(store_urls, catalog, disk, point),
        )
        for disk, size_bytes in catalog.disk_sizes(point).items()
    ]
    return FoundPoint(
        item_id=item_id, point=point, catalog_url=catalog_url, replicas=tuple(replicas)
    )


def export_to_raw(
    found: FoundPoint, disk: str, file: Path, *, progress: Progress = lambda done, total: None
) -> int:
    """Make `file` the disk as it was, a raw image with holes where it has no data; return its size.

    It appears under its name when it is whole and durable. Raises: Conflict if it exists;
    InvalidRequest without its directory; NotFound; Unavailable, also when it cannot be written;
    DataIntegrity.
    """
    if file.exists():
        raise _exists(file)
    if not file.parent.is_dir():
        raise InvalidRequest(f"there is no directory {file.parent}", field="raw")
    with _open_disk(found, disk) as source, _written_whole(file) as target:
        copy_data(source, target, progress, workers=_workers(found, disk))
        return source.size_bytes


@contextmanager
def _written_whole(file: Path) -> Iterator[int]:
    """Yield a descriptor of an empty file that becomes `file`, durably, unless there is an error.

    Raises: Conflict when somebody else has made, or makes, `file`; Unavailable.
    """
    temporary = file.with_name(f"{file.name}.partial")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _lock(descriptor, file)
            try:
                os.ftruncate(descriptor, 0)
                yield descriptor
                os.fsync(descriptor)
                _name(temporary, file)
            finally:
                temporary.unlink(missing_ok=True)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise Unavailable(f"cannot write {file}: {error.strerror}") from error


def _lock(descriptor: int, file: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Conflict(f"{file} is being written by another export", field="raw") from None


def _name(temporary: Path, file: Path) -> None:
    """Give the file its name, durably, without taking it from another one."""
    try:
        os.link(temporary, file)
    except FileExistsError:
        raise _exists(file) from None
    except OSError:  # a file system without links
        if file.exists():
            raise _exists(file) from None
        temporary.rename(file)
    directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _exists(file: Path) -> Conflict:
    return Conflict(f"{file} exists already", field="raw", hint="choose another name")


def serve_foreground(
    found: FoundPoint,
    socket_path: Path,
    *,
    stop: threading.Event,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve the point's disks over NBD on a unix socket, export name = disk, until `stop` is set.

    on_ready: called once every disk can be read. The socket is gone afterwards.
    Raises: Conflict if the path exists; Unavailable; as `find_point`.
    """
    config = ExportConfig(
        export_id="foreground",
        socket=str(socket_path),
        catalog_url=found.catalog_url,
        item_id=found.item_id,
        point_id=found.point.id,
        replicas=found.replicas,
    )
    patience = Patience()
    with ThreadPoolExecutor(READ_AHEAD_THREADS) as executor, _bound(socket_path) as listener:
        exports = PointExports(
            config, open_devices, patience=patience, executor=executor, watcher=Nobody()
        )
        server = NbdServer(listener, exports)
        thread = threading.Thread(target=server.serve_forever, name="nbd-accept")
        thread.start()
        try:
            for name in exports:
                exports[name]
            on_ready()
            stop.wait()
        finally:
            patience.give_up()
            server.stop()
            thread.join()
            exports.close()
            socket_path.unlink(missing_ok=True)


def _find_catalogs(store_urls: Sequence[str], item_id: str) -> list[tuple[str, Catalog]]:
    """Return the item's catalogs and where they are, those with points and the newest first."""
    problem: LeewardError | None = None
    found: list[tuple[str, Catalog]] = []
    for url in store_urls:
        try:
            catalog = Catalog.open(open_keyed(url), item_id)
        except Unavailable as error:
            problem = error
            continue
        if catalog.version:
            found.append((url, catalog))
    if found:
        return sorted(found, key=lambda each: (bool(each[1].points), each[1].epoch), reverse=True)
    raise problem or NotFound(
        f"no store named holds the catalog of item {item_id}",
        field="store",
        hint="name the target region's stores, and the item by its id: a folder below items/ there",
    )


def _has_point(catalog: Catalog, wanted: str) -> bool:
    try:
        catalog.find_point(wanted)
    except NotFound:
        return False
    return True


def _find_replica(
    store_urls: Sequence[str], catalog: Catalog, disk: str, point: RecoveryPoint
) -> str:
    """Return the URL of the store that holds the disk's replica."""
    wanted = newest_object(catalog, disk, point)
    recorded = catalog.disk_urls.get(disk)
    candidates = list(dict.fromkeys([*store_urls, *([recorded] if recorded else [])]))
    problem = ""
    for url in candidates:
        try:
            if wanted is None or has_object(open_keyed(url), wanted):
                return url
        except (Unavailable, InvalidRequest) as error:
            problem = error.message
    sentence = f"no store named holds the replica of disk {disk}"
    if problem:
        raise Unavailable(f"{sentence}, but not all could be asked: {problem}", field="store")
    raise NotFound(sentence, field="store")


def _open_disk(found: FoundPoint, disk: str) -> PointDisk:
    for replica in found.replicas:
        if replica.disk == disk:
            stores = {disk: open_keyed(replica.target_url)}
            catalog = open_keyed(found.catalog_url)
            return open_point(
                catalog, stores, found.item_id, found.point.id, cache_bytes=0, threads=1
            )[disk]
    names = ", ".join(replica.disk for replica in found.replicas)
    raise NotFound(f"the recovery point has no disk {disk}", field="disk", hint=f"it has {names}")


def _workers(found: FoundPoint, disk: str) -> int:
    urls = [replica.target_url for replica in found.replicas if replica.disk == disk]
    return NEAR_WORKERS if urls[0].startswith("file:") else FAR_WORKERS


def _bound(path: Path) -> socket.socket:
    """Return a listening socket. Raises: Conflict if somebody has the path; Unavailable."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen()
    except OSError as error:
        listener.close()
        if path.exists():
            raise Conflict(f"{path} exists already", field="nbd") from error
        raise Unavailable(f"cannot listen on {path}: {error.strerror or error}") from error
    return listener

"""What guest-impact compares with: incremental cuts by dirty bitmap, once a second.

Owns: the peer's cycle, QEMU's pull-mode backup as libvirt's `backup-begin` does it. Per cycle one
transaction begins a new bitmap, freezes the old one and starts a copy-before-write job into a
scratch file, so that the cut holds still; then every dirty extent is read out over NBD. The peer is
flattered: what it has read is thrown away, not compressed, shipped or stored.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Mapping

from bench.common import Invalid
from bench.path import Guest
from bench.sides import DISK
from leeward.core.errors import LeewardError
from leeward.core.units import GIB, MIB
from leeward.nbd.client import NbdClient
from leeward.nbd.wire import STATE_DIRTY
from leeward.qemu.nbd_exports import ensure_export, remove_export
from leeward.qemu.session import QmpSession

CYCLE_SECONDS = 1.0
END_SECONDS = 10.0
NODE = f"disk-{DISK}"
NAME = "peer"
"""Of the scratch node, the job and the export."""


class BitmapPeer:
    """Protects the guest by bitmap cycles within `with`. Bitmaps have QEMU's own granularity."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._scratch = guest.nbd_socket.with_name("scratch.qcow2")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._failure = ""
        self.cycles = 0
        self.longest_seconds = 0.0

    def __enter__(self) -> BitmapPeer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure or not self.cycles:
            raise Invalid(f"the bitmap peer did not work: {self._failure or 'no cycle ended'}")

    def _run(self) -> None:
        session = self._guest.session()
        try:
            session.execute("block-dirty-bitmap-add", {"node": NODE, "name": "peer-0"})
            while not self._stop.is_set():
                began = time.monotonic()
                self._cycle(session, self.cycles)
                self.cycles += 1
                self._stop.wait(max(0.0, began + CYCLE_SECONDS - time.monotonic()))
                self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)
            left = {"node": NODE, "name": f"peer-{self.cycles}"}
            session.execute("block-dirty-bitmap-remove", left)
        except LeewardError as error:
            self._failure = str(error)
        finally:
            session.close()

    def _cycle(self, session: QmpSession, number: int) -> None:
        old: dict[str, object] = {"node": NODE, "name": f"peer-{number}"}
        self._add_scratch(session)
        job = {"job-id": NAME, "device": NODE, "target": NAME, "sync": "none"}
        session.transaction(
            [
                _action("block-dirty-bitmap-add", {"node": NODE, "name": f"peer-{number + 1}"}),
                _action("block-dirty-bitmap-disable", old),
                _action("blockdev-backup", job),
            ]
        )
        ensure_export(session, NAME, node=NAME, name=NAME, bitmap=str(old["name"]))
        try:
            self._read_out(f"qemu:dirty-bitmap:{old['name']}")
        finally:
            remove_export(session, NAME)
            with session.expect("BLOCK_JOB_CANCELLED") as ended:
                session.execute("block-job-cancel", {"device": NAME})
                ended.wait(timeout_seconds=END_SECONDS)
            session.execute("blockdev-del", {"node-name": NAME})
            session.execute("block-dirty-bitmap-remove", old)

    def _add_scratch(self, session: QmpSession) -> None:
        create = ["qemu-img", "create", "-q", "-f", "qcow2", str(self._scratch)]
        subprocess.run([*create, str(self._guest.disk_bytes)], check=True)
        file = {"driver": "file", "filename": str(self._scratch)}
        node: dict[str, object] = {"driver": "qcow2", "node-name": NAME, "file": file}
        session.execute("blockdev-add", {**node, "backing": NODE})

    def _read_out(self, context: str) -> None:
        with NbdClient.connect(self._guest.nbd_socket, NAME, (context,)) as client:
            dirty: list[tuple[int, int]] = []
            for at in range(0, client.size_bytes, GIB):
                offset = at
                for length, flags in client.block_status(at, min(GIB, client.size_bytes - at)):
                    if flags & STATE_DIRTY:
                        dirty += [
                            (start, min(MIB, offset + length - start))
                            for start in range(offset, offset + length, MIB)
                        ]
                    offset += length
            for _ in client.pread_many(dirty):
                if self._stop.is_set():
                    return


def _action(kind: str, data: Mapping[str, object]) -> dict[str, object]:
    return {"type": kind, "data": data}

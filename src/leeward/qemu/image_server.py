"""Reading a disk image of any format while no VM has it: qemu-nbd behind a unix socket.

Owns: that process, which ends with its one client. Must not know: whose image it is.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leeward.core.errors import InvalidRequest, LeewardError, Unavailable
from leeward.core.units import MIB
from leeward.nbd.client import NbdClient
from leeward.nbd.wire import BASE_ALLOCATION, STATE_ZERO

START_SECONDS = 20.0
END_SECONDS = 10.0
_READ_BYTES = MIB
_EXPORT = "image"


class ServedImage:
    """The content of an image. Used by one thread."""

    def __init__(self, client: NbdClient) -> None:
        self._client = client

    @property
    def size_bytes(self) -> int:
        return self._client.size_bytes

    def extents(self, offset: int, length: int) -> list[tuple[int, bool]]:
        """Return [(length, whether there may be data), ...] of a range. Raises: Unavailable."""
        found = self._client.block_status_all(offset, length)[BASE_ALLOCATION]
        return [(count, not flags & STATE_ZERO) for count, flags in found]

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` with the bytes from `offset` on. Raises: Unavailable."""
        for start in range(0, len(view), _READ_BYTES):
            self._client.read_into(offset + start, view[start : start + _READ_BYTES])


@contextmanager
def serve_image(path: Path, image_format: str, run_dir: Path) -> Iterator[ServedImage]:
    """Give the image's content. Raises: Unavailable, InvalidRequest without qemu-nbd."""
    with tempfile.TemporaryDirectory(prefix="image-", dir=run_dir) as directory:
        socket = Path(directory, "s")
        process = _start(path, image_format, socket)
        try:
            with _connect(socket, process) as client:
                yield ServedImage(client)
        finally:
            process.terminate()
            try:
                process.communicate(timeout=END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


def _start(path: Path, image_format: str, socket: Path) -> subprocess.Popen[bytes]:
    """Without --persistent: it ends by itself when its client goes, with a killed agent too."""
    options = ("--read-only", "--format", image_format, "--cache", "writeback")
    argv = ("qemu-nbd", *options, "--socket", str(socket), "--export-name", _EXPORT, str(path))
    try:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    except FileNotFoundError as error:
        raise InvalidRequest("qemu-nbd is not installed") from error


def _connect(socket: Path, process: subprocess.Popen[bytes]) -> NbdClient:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return NbdClient.connect(socket, _EXPORT, (BASE_ALLOCATION,))
        except LeewardError as error:
            if process.poll() is not None:
                said = process.stderr.read().decode("utf-8", "replace") if process.stderr else ""
                raise Unavailable(f"qemu-nbd: {said.strip() or 'ended at once'}") from error
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)

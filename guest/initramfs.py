"""The guest's initramfs: busybox, e2fsck, QEMU's guest agent, modules, the scripts in files/.

Owns: what is in it and the cpio format. Must not know: disks. Same input, same bytes.
"""

from __future__ import annotations

from pathlib import Path

from packages import BuildFailed

FILES = Path(__file__).resolve().parent / "files"
MODULES = (
    *("virtio_pci", "virtio_blk", "virtio_net", "virtio-rng", "virtio_console"),
    *("button", "evdev"),
)
DIRECTORIES = (
    *("bin", "dev", "etc", "lib", "lib/modules", "lib64", "proc", "run", "sys"),
    *("system", "data"),
)
LOADER = "ld-linux-x86-64.so.2"
LIBRARIES = (
    *("libc.so.6", "libm.so.6", "libglib-2.0.so.0", "libgmodule-2.0.so.0", "libnuma.so.1"),
    *("libpcre2-8.so.0", "libudev.so.1", "liburing.so.2"),
)
"""What the guest agent is linked with."""

DIRECTORY, FILE, SYMLINK, DEVICE = 0o040755, 0o100755, 0o120777, 0o020600


def build(root: Path, kernel: str) -> bytes:
    """Return the archive. `root` holds the unpacked packages, `kernel` is the release name."""
    archive = Cpio()
    for name in DIRECTORIES:
        archive.add(name, DIRECTORY)
    archive.add("dev/console", DEVICE, device=(5, 1))
    archive.add("bin/busybox", FILE, (root / "bin/busybox").read_bytes())
    archive.add("bin/sh", SYMLINK, b"busybox")
    archive.add("bin/e2fsck", FILE, (root / "sbin/e2fsck.static").read_bytes())
    archive.add("bin/qemu-ga", FILE, (root / "usr/sbin/qemu-ga").read_bytes())
    archive.add(f"lib64/{LOADER}", FILE, library(root, LOADER))
    for name in LIBRARIES:
        archive.add(f"lib/{name}", FILE, library(root, name))
    for script in sorted(FILES.iterdir()):
        archive.add(script.name, FILE, script.read_bytes())
    _add_modules(archive, root, kernel)
    return archive.finish()


def build_minimal(root: Path, kernel: str, init: bytes) -> bytes:
    """Return an archive with nothing but busybox, the modules and that script as /init."""
    archive = Cpio()
    for name in ("bin", "dev", "lib", "lib/modules", "proc", "root", "sys"):
        archive.add(name, DIRECTORY)
    archive.add("dev/console", DEVICE, device=(5, 1))
    archive.add("bin/busybox", FILE, (root / "bin/busybox").read_bytes())
    archive.add("bin/sh", SYMLINK, b"busybox")
    archive.add("init", FILE, init)
    _add_modules(archive, root, kernel)
    return archive.finish()


def _add_modules(archive: Cpio, root: Path, kernel: str) -> None:
    modules = in_load_order(root / "lib/modules" / kernel)
    for path in modules:
        archive.add(f"lib/modules/{path.name}", FILE, path.read_bytes())
    order = "".join(f"{path.name}\n" for path in modules)
    archive.add("lib/modules/order", FILE, order.encode())


def library(root: Path, name: str) -> bytes:
    """Return the content of a shared library of the unpacked packages."""
    for directory in ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64"):
        path = root / directory / name
        if path.is_file():
            return path.read_bytes()
    raise BuildFailed(f"no unpacked package has {name}")


def in_load_order(directory: Path) -> list[Path]:
    """Return the files of MODULES, each after those it needs."""
    available = {path.stem.replace("-", "_"): path for path in directory.rglob("*.ko")}
    ordered: list[Path] = []

    def visit(name: str) -> None:
        path = available.get(name.replace("-", "_"))
        if path is None or path in ordered:  # built into the kernel, or already there
            return
        for needed in requirements(path):
            visit(needed)
        ordered.append(path)

    for name in MODULES:
        visit(name)
    return ordered


def requirements(module: Path) -> list[str]:
    """Return the names of the modules that `module` says it depends on."""
    content = module.read_bytes()
    start = content.index(b"\0depends=") + len(b"\0depends=")
    names = content[start : content.index(b"\0", start)].decode()
    return [name for name in names.split(",") if name]


class Cpio:
    """A "newc" archive in the making; every time stamp is 0."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def add(
        self, name: str, mode: int, data: bytes = b"", *, device: tuple[int, int] = (0, 0)
    ) -> None:
        """Append one entry. Parents come before their children."""
        self._inode += 1
        path = name.encode() + b"\0"
        fields = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._parts += [_padded(header + path), _padded(data)]

    def finish(self) -> bytes:
        """Return the archive with its trailer."""
        self.add("TRAILER!!!", 0)
        return b"".join(self._parts)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)

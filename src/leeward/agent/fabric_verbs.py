"""Fabric verbs: storage accounts, networks and VMs of this host, by the fabric driver.

Owns: what a storage account is on a host. Must not know: QEMU, replication. One of the verb sets
of an agent.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from leeward.core.errors import Conflict, InvalidRequest, Unavailable
from leeward.fabric.driver import FabricDriver
from leeward.object_store.file import create_file_store
from leeward.object_store.open import open_store
from leeward.protocol.fabric import (
    AccountSpec,
    DiskAddition,
    DiskGrowth,
    DiskOfVm,
    NetworkSpec,
    VmSize,
    VmSpec,
    VmStatus,
)


class FabricVerbs:
    """The verbs `account.*`, `network.*` and `vm.*`, each idempotent."""

    def __init__(self, driver: FabricDriver, storage_root: Path) -> None:
        self._driver = driver
        self._storage_root = storage_root

    def create_account(self, spec: AccountSpec) -> None:
        """The account's disk directory exists, and its object store where that is a directory.

        Raises: InvalidRequest when its URL is none of a store, before anything is made.
        """
        try:
            open_store(spec.url)
        except InvalidRequest as error:
            raise InvalidRequest(
                f"storage account {spec.name}: {error.message}", field="url", hint=error.hint
            ) from error
        try:
            if spec.disk_directory:
                _absolute(spec.disk_directory, "disk_directory").mkdir(parents=True, exist_ok=True)
            store = _store_directory(spec)
            if store is not None:
                create_file_store(store)
        except OSError as error:
            raise Unavailable(
                f"storage account {spec.name}: cannot make {error.filename}: {error.strerror}"
            ) from error

    def delete_account(self, spec: AccountSpec) -> None:
        """The account's directories are gone, with every object; nothing outside is touched.

        A directory the account was given by its maker stays: others may have been given the same.
        Raises: Conflict while disk images lie in it.
        """
        disks = Path(spec.disk_directory) if spec.disk_directory else None
        if disks is not None and disks.is_dir() and any(disks.iterdir()):
            raise Conflict(
                f"storage account {spec.name} still holds disk images in {disks}",
                hint="delete the VMs whose disks lie there first",
            )
        for directory in (disks, _store_directory(spec)):
            if directory is not None and self._is_own(spec.name, directory):
                shutil.rmtree(directory, ignore_errors=True)
                if directory.exists():
                    raise Unavailable(f"storage account {spec.name}: cannot remove {directory}")
                with suppress(OSError):  # the account's own directory, once nothing lies in it
                    directory.parent.rmdir()

    def apply_network(self, spec: NetworkSpec) -> None:
        """The network exists on this host as `spec` says."""
        self._driver.apply_network(spec)

    def delete_network(self, network_id: str) -> None:
        """The network is gone from this host."""
        self._driver.delete_network(network_id)

    def create_vm(self, spec: VmSpec) -> VmStatus:
        """The VM exists; it runs unless it existed already. The reply tells its disks' sizes."""
        status = self._driver.create_vm(spec)
        sizes = {node.disk: node.size_bytes for node in self._driver.disk_nodes(spec.vm_id)}
        return replace(status, disk_sizes=sizes)

    def start_vm(self, vm_id: str) -> VmStatus:
        """The VM runs."""
        return self._driver.start_vm(vm_id)

    def stop_vm(self, vm_id: str, *, force: bool) -> VmStatus:
        """The VM does not run."""
        return self._driver.stop_vm(vm_id, force=force)

    def change_vm(self, size: VmSize) -> VmStatus:
        """The stopped VM starts with that size next."""
        return self._driver.change_vm(
            size.vm_id, vcpus=size.vcpus, memory_mib=size.memory_mib, forwards=size.forwards
        )

    def add_disk(self, addition: DiskAddition) -> VmStatus:
        """The VM has one more disk. The reply tells all its disks' sizes."""
        return self._driver.add_disk(addition.vm_id, addition.disk)

    def unplug_disk(self, target: DiskOfVm) -> None:
        """The VM's guest sees the disk no more."""
        self._driver.unplug_disk(target.vm_id, target.disk)

    def remove_disk(self, target: DiskOfVm) -> None:
        """The disk is gone with its image."""
        self._driver.remove_disk(target.vm_id, target.disk)

    def grow_disk(self, growth: DiskGrowth) -> VmStatus:
        """The disk is so large. The reply tells all disks' sizes."""
        return self._driver.grow_disk(growth.vm_id, growth.disk, growth.size_bytes)

    def delete_vm(self, vm_id: str) -> None:
        """The VM and the disks made for it are gone."""
        self._driver.delete_vm(vm_id)

    def _is_own(self, account: str, directory: Path) -> bool:
        home = self._storage_root.resolve() / account
        return directory.resolve() in (home / "objects", home / "disks")


def _absolute(text: str, field: str) -> Path:
    path = Path(text)
    if not path.is_absolute():
        raise InvalidRequest(f"{field}: {text!r} is not an absolute path", field=field)
    return path


def _store_directory(spec: AccountSpec) -> Path | None:
    """Return the directory of a file:// account, else None."""
    parts = urlsplit(spec.url)
    return _absolute(unquote(parts.path), "url") if parts.scheme == "file" else None

"""Routes of virtual machines.

Owns: their paths, and showing a VM's live status beside it. Must not know: hosts.
"""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Response

from leeward.api import region_bodies
from leeward.api.access import KeyOf, ServiceOf, VersionOf
from leeward.api.region_routes import shown
from leeward.api.replies import NamePart, accepted, page, versioned
from leeward.core.codec import to_plain
from leeward.model.recovery import Job
from leeward.model.resources import PowerState, Region, VirtualMachine
from leeward.protocol.fabric import VmStatus
from leeward.protocol.messages import Role
from leeward.vault.records import Records
from leeward.vault.resources import Stored
from leeward.workflows.service import Service
from leeward.workflows.specs import vm_id

router = APIRouter(tags=["virtual machines"])

_BASE = "/regions/{region}/virtual-machines"


@router.get(_BASE)
def list_machines(service: ServiceOf, region: NamePart) -> Response:
    """The region's virtual machines and how they are now."""
    with service.bench.vault.read() as records:
        records.resources.get(Region, "", region)
        stored = records.resources.listed(VirtualMachine, region)
        return page([_shown(service, records, each) for each in stored])


@router.get(_BASE + "/{name}", response_model=VirtualMachine)
def get_machine(service: ServiceOf, region: NamePart, name: NamePart) -> Response:
    """A virtual machine; `status` is how it is now, null before its host has spoken."""
    with service.bench.vault.read() as records:
        stored = records.resources.get(VirtualMachine, region, name)
        return versioned(_shown(service, records, stored), stored.version)


@router.put(_BASE + "/{name}", status_code=HTTPStatus.ACCEPTED, response_model=Job)
def put_machine(
    service: ServiceOf,
    key: KeyOf,
    region: NamePart,
    name: NamePart,
    body: region_bodies.VirtualMachineBody,
) -> Response:
    """The virtual machine is being made and started (202), or exists just so (200)."""
    job = service.machines.create(body.resource(region, name), key)
    return accepted(job) if job else get_machine(service, region, name)


@router.patch(_BASE + "/{name}", status_code=HTTPStatus.ACCEPTED, response_model=Job)
def patch_machine(
    service: ServiceOf,
    key: KeyOf,
    version: VersionOf,
    region: NamePart,
    name: NamePart,
    body: region_bodies.VirtualMachineChangeBody,
) -> Response:
    """The stopped virtual machine is being given another size."""
    with service.bench.vault.read() as records:
        vm = records.resources.get(VirtualMachine, region, name).value
    return accepted(service.changes.change_machine(body.size(vm), version, key))


@router.delete(_BASE + "/{name}", status_code=HTTPStatus.ACCEPTED, response_model=Job)
def delete_machine(service: ServiceOf, key: KeyOf, region: NamePart, name: NamePart) -> Response:
    """The virtual machine and its disks are being removed; refused while an item needs it."""
    return accepted(service.machines.delete(region, name, key))


@router.post(_BASE + "/{name}/start", status_code=HTTPStatus.ACCEPTED, response_model=Job)
def start_machine(service: ServiceOf, key: KeyOf, region: NamePart, name: NamePart) -> Response:
    """The virtual machine is being started."""
    return accepted(service.machines.start(region, name, key))


@router.post(_BASE + "/{name}/stop", status_code=HTTPStatus.ACCEPTED, response_model=Job)
def stop_machine(
    service: ServiceOf,
    key: KeyOf,
    region: NamePart,
    name: NamePart,
    body: region_bodies.StopBody | None = None,
) -> Response:
    """The virtual machine is being stopped; with `force` the guest is not asked."""
    force = body.force if body else False
    return accepted(service.machines.stop(region, name, force=force, key=key))


@router.post(_BASE + "/{name}/trim", status_code=HTTPStatus.ACCEPTED, response_model=Job)
def trim_machine(service: ServiceOf, key: KeyOf, region: NamePart, name: NamePart) -> Response:
    """The guest is asked to discard what it does not use; that space is given back."""
    return accepted(service.trims.trim(region, name, key))


@router.post(_BASE + "/{name}/disks", status_code=HTTPStatus.ACCEPTED, response_model=Job)
def add_disk(
    service: ServiceOf, key: KeyOf, region: NamePart, name: NamePart, body: region_bodies.DiskBody
) -> Response:
    """The virtual machine is being given one more disk, replicated where the machine is."""
    return accepted(service.disks.add(region, name, body.disk(), key))


@router.patch(_BASE + "/{name}/disks/{disk}", status_code=HTTPStatus.ACCEPTED, response_model=Job)
def grow_disk(
    service: ServiceOf,
    key: KeyOf,
    region: NamePart,
    name: NamePart,
    disk: NamePart,
    body: region_bodies.DiskSizeBody,
) -> Response:
    """The disk is being made larger, and its replica with it."""
    return accepted(service.disks.grow(region, name, disk, body.size_bytes, key))


@router.delete(_BASE + "/{name}/disks/{disk}", status_code=HTTPStatus.ACCEPTED, response_model=Job)
def remove_disk(
    service: ServiceOf, key: KeyOf, region: NamePart, name: NamePart, disk: NamePart
) -> Response:
    """The disk is being taken from the virtual machine and deleted; recovery points keep it."""
    return accepted(service.disks.remove(region, name, disk, key))


def _shown(service: Service, records: Records, stored: Stored[VirtualMachine]) -> dict[str, object]:
    vm = stored.value
    agent = records.nodes.find(Role.AGENT, vm.region, vm.host)
    status = service.bench.live.vm(agent.id, vm_id(vm.name)) if agent else None
    if status is not None and agent is not None and not service.bench.is_heard(agent):
        status = VmStatus(vm_id=status.vm_id, power=PowerState.UNKNOWN)  # it was so long ago
    return shown(stored) | {"status": to_plain(status)}

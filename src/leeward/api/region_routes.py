"""Routes of regions, nodes, and the resources around VMs.

Owns: their paths. Must not know: their rules, those are the verbs'.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from http import HTTPStatus

from fastapi import APIRouter, Request, Response

from leeward.api import bodies, region_bodies
from leeward.api.access import KeyOf, ServiceOf, VersionOf
from leeward.api.replies import IdPart, NamePart, accepted, gone, page, reply, versioned
from leeward.core.codec import to_plain
from leeward.model.resources import (
    AvailabilitySet,
    Region,
    ResourceGroup,
    StorageAccount,
    VirtualNetwork,
)
from leeward.protection.health import SILENT_SECONDS
from leeward.vault.resources import R, Stored
from leeward.workflows.group_verbs import GroupContents
from leeward.workflows.resource_verbs import Grouped
from leeward.workflows.service import Service

router = APIRouter(tags=["regions"])

_TOKEN_SECONDS = 3600

_KIND_OF_PATH: dict[str, type[Grouped]] = {
    "resource-groups": ResourceGroup,
    "networks": VirtualNetwork,
    "storage-accounts": StorageAccount,
    "availability-sets": AvailabilitySet,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """A node as the API shows it. last_seen_ns 0: not since the service started."""

    id: str
    role: str
    region: str
    name: str
    last_seen_ns: int
    is_online: bool
    enrolled_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenView:
    """A one-time enrolment token, shown this once."""

    token: str
    region: str
    expires_ns: int


def shown(stored: Stored[R]) -> dict[str, object]:
    """Return a resource as the API shows it."""
    plain: dict[str, object] = to_plain(stored.value)
    return plain | {"provisioning_state": stored.state.value}


# --- regions


@router.get("/regions")
def list_regions(service: ServiceOf) -> Response:
    """Every region."""
    with service.bench.vault.read() as records:
        return page([shown(stored) for stored in records.resources.listed(Region)])


@router.get("/regions/{region}", response_model=Region)
def get_region(service: ServiceOf, region: NamePart) -> Response:
    """One region."""
    with service.bench.vault.read() as records:
        return reply(shown(records.resources.get(Region, "", region)))


@router.put("/regions/{region}", response_model=Region)
def put_region(service: ServiceOf, region: NamePart, body: bodies.EmptyBody) -> Response:
    """The region exists."""
    return reply(service.resources.create_region(region))


@router.delete("/regions/{region}", status_code=HTTPStatus.NO_CONTENT)
def delete_region(service: ServiceOf, region: NamePart) -> Response:
    """The region is gone; refused while anything is in it."""
    service.resources.delete_region(region)
    return gone()


@router.post("/regions/{region}/enrolment-tokens", response_model=TokenView)
def make_token(
    request: Request,
    service: ServiceOf,
    key: KeyOf,
    region: NamePart,
    body: region_bodies.EnrolmentTokenBody,
) -> Response:
    """A fresh token that enrols one node of the region within an hour; with an Idempotency-Key
    the same one again."""
    token = secrets.token_hex(32)
    if key is not None:  # derived, so that it can be told again without having been stored
        secret = request.app.state.token.encode()
        token = hmac.new(secret, f"{region}/{key.key}".encode(), hashlib.sha256).hexdigest()
    expires_ns = service.bench.clock.now_ns() + _TOKEN_SECONDS * 10**9
    with service.bench.vault.write() as records:
        records.resources.get(Region, "", region)
        records.nodes.add_token(token, region=region, expires_ns=expires_ns)
    return reply(TokenView(token=token, region=region, expires_ns=expires_ns), HTTPStatus.CREATED)


# --- nodes


@router.get("/nodes")
def list_nodes(service: ServiceOf) -> Response:
    """Every agent and worker, and when it was last heard."""
    with service.bench.vault.read() as records:
        nodes = records.nodes.listed()
    live = service.bench.live
    return page(
        [
            NodeView(
                id=node.id,
                role=node.role.value,
                region=node.region,
                name=node.name,
                last_seen_ns=live.last_seen_ns(node.id),
                is_online=live.last_seen_ns(node.id) > 0
                and live.silent_seconds(node.id) <= SILENT_SECONDS,
                enrolled_ns=node.enrolled_ns,
            )
            for node in nodes
        ]
    )


@router.delete("/nodes/{node}", status_code=HTTPStatus.NO_CONTENT)
def delete_node(service: ServiceOf, node: IdPart, with_vms: bool = False) -> Response:
    """The node is not enrolled any more; refused while it answers or is needed. `with_vms`: the VMs
    that were on it are forgotten, too."""
    service.nodes.forget(node, with_vms=with_vms)
    return gone()


# --- resources around VMs


def _list(service: Service, kind: type[Grouped], region: str) -> Response:
    with service.bench.vault.read() as records:
        records.resources.get(Region, "", region)
        return page([shown(stored) for stored in records.resources.listed(kind, region)])


def _get(service: Service, kind: type[Grouped], region: str, name: str) -> Response:
    with service.bench.vault.read() as records:
        stored = records.resources.get(kind, region, name)
    return versioned(shown(stored), stored.version)


def _put(service: Service, resource: ResourceGroup | VirtualNetwork | AvailabilitySet) -> Response:
    is_new = service.resources.create(resource)
    with service.bench.vault.read() as records:
        stored = records.resources.get(type(resource), resource.region, resource.name)
    return reply(shown(stored), HTTPStatus.CREATED if is_new else HTTPStatus.OK)


def _add_readers(path: str, kind: type[Grouped]) -> None:
    """GET of a list and of one: alike for every kind."""

    def list_resources(service: ServiceOf, region: NamePart) -> Response:
        return _list(service, kind, region)

    def get_resource(service: ServiceOf, region: NamePart, name: NamePart) -> Response:
        return _get(service, kind, region, name)

    noun = path.replace("-", " ")
    base = f"/regions/{{region}}/{path}"
    router.get(base, summary=f"The region's {noun}", name=f"list {noun}")(list_resources)
    router.get(f"{base}/{{name}}", summary=f"One of the {noun}", name=f"get {noun}")(get_resource)


for _path, _kind in _KIND_OF_PATH.items():
    _add_readers(_path, _kind)


@router.put("/regions/{region}/resource-groups/{name}", response_model=ResourceGroup)
def put_resource_group(
    service: ServiceOf, region: NamePart, name: NamePart, body: region_bodies.ResourceGroupBody
) -> Response:
    """The resource group exists."""
    return _put(service, body.resource(region, name))


@router.put("/regions/{region}/networks/{name}", response_model=VirtualNetwork)
def put_network(
    service: ServiceOf, region: NamePart, name: NamePart, body: region_bodies.NetworkBody
) -> Response:
    """The virtual network exists; hosts make it real when a VM needs it there."""
    return _put(service, body.resource(region, name))


@router.patch("/regions/{region}/networks/{name}", response_model=VirtualNetwork)
def patch_network(
    service: ServiceOf,
    key: KeyOf,
    version: VersionOf,
    region: NamePart,
    name: NamePart,
    body: region_bodies.NetworkChangeBody,
) -> Response:
    """The virtual network is being changed on its hosts (202), or is so already (200)."""
    with service.bench.vault.read() as records:
        network = records.resources.get(VirtualNetwork, region, name).value
    job = service.changes.change_network(body.changed(network), version, key)
    return accepted(job) if job else _get(service, VirtualNetwork, region, name)


@router.patch("/regions/{region}/availability-sets/{name}", response_model=AvailabilitySet)
def patch_availability_set(
    service: ServiceOf,
    version: VersionOf,
    region: NamePart,
    name: NamePart,
    body: region_bodies.AvailabilitySetChangeBody,
) -> Response:
    """The availability set is changed; VMs stay where they are, later ones are placed by it."""
    service.changes.change_set(region, name, fault_domains=body.fault_domains, version=version)
    return _get(service, AvailabilitySet, region, name)


@router.put("/regions/{region}/availability-sets/{name}", response_model=AvailabilitySet)
def put_availability_set(
    service: ServiceOf, region: NamePart, name: NamePart, body: region_bodies.AvailabilitySetBody
) -> Response:
    """The availability set exists."""
    return _put(service, body.resource(region, name))


@router.put("/regions/{region}/storage-accounts/{name}", response_model=StorageAccount)
def put_storage_account(
    service: ServiceOf,
    key: KeyOf,
    region: NamePart,
    name: NamePart,
    body: region_bodies.StorageAccountBody,
) -> Response:
    """The storage account is being made (202), or exists (200)."""
    job = service.resources.create_account(body.resource(region, name), key)
    return accepted(job) if job else _get(service, StorageAccount, region, name)


@router.get("/regions/{region}/resource-groups/{name}/contents", response_model=GroupContents)
def get_group_contents(service: ServiceOf, region: NamePart, name: NamePart) -> Response:
    """What would go with the resource group, and what outside of it needs something in it."""
    return reply(service.groups.contents(region, name))


@router.delete("/regions/{region}/resource-groups/{name}", status_code=HTTPStatus.NO_CONTENT)
def delete_resource_group(
    service: ServiceOf,
    key: KeyOf,
    region: NamePart,
    name: NamePart,
    with_contents: bool = False,
) -> Response:
    """The resource group is gone, refused while anything is in it; or, `with_contents`, it is being
    removed with all of it (202), refused while anything outside needs something in it."""
    if with_contents:
        return accepted(service.groups.delete(region, name, key))
    service.resources.delete(ResourceGroup, region, name)
    return gone()


@router.delete("/regions/{region}/availability-sets/{name}", status_code=HTTPStatus.NO_CONTENT)
def delete_availability_set(service: ServiceOf, region: NamePart, name: NamePart) -> Response:
    """The availability set is gone; refused while it has members."""
    service.resources.delete(AvailabilitySet, region, name)
    return gone()


@router.delete("/regions/{region}/networks/{name}", status_code=HTTPStatus.ACCEPTED)
def delete_network(service: ServiceOf, key: KeyOf, region: NamePart, name: NamePart) -> Response:
    """The network is being removed; refused while it is used."""
    return accepted(service.resources.delete_real(VirtualNetwork, region, name, key))


@router.delete("/regions/{region}/storage-accounts/{name}", status_code=HTTPStatus.ACCEPTED)
def delete_storage_account(
    service: ServiceOf, key: KeyOf, region: NamePart, name: NamePart
) -> Response:
    """The storage account is being removed, with all that is in it; refused while it is used."""
    return accepted(service.resources.delete_real(StorageAccount, region, name, key))

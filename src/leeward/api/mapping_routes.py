"""Routes of network mappings.

Owns: their paths. Must not know: their rules, those are the verbs'.
"""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Response

from leeward.api import bodies
from leeward.api.access import ServiceOf
from leeward.api.replies import NamePart, gone, page, reply
from leeward.model.recovery import NetworkMapping

router = APIRouter(tags=["network mappings"])
_ONE = "/network-mappings/{source_region}/{source_network}/{target_region}"


@router.get("/network-mappings")
def list_mappings(service: ServiceOf) -> Response:
    """Every mapping, each direction by itself."""
    return page(service.mappings.listed())


@router.put(_ONE, response_model=NetworkMapping)
def put_mapping(
    service: ServiceOf,
    source_region: NamePart,
    source_network: NamePart,
    target_region: NamePart,
    body: bodies.NetworkMappingBody,
) -> Response:
    """The source network's VMs come out in that network of the target region."""
    mapping = NetworkMapping(
        source_region=source_region,
        source_network=source_network,
        target_region=target_region,
        target_network=body.target_network,
    )
    return reply(service.mappings.put(mapping, is_one_way=body.one_way))


@router.delete(_ONE, status_code=HTTPStatus.NO_CONTENT)
def delete_mapping(
    service: ServiceOf, source_region: NamePart, source_network: NamePart, target_region: NamePart
) -> Response:
    """That direction of the mapping is gone."""
    service.mappings.delete(source_region, source_network, target_region)
    return gone()

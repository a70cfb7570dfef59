"""Routes of consistency groups.

Owns: their paths. Must not know: how points come to be shared.
"""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Response

from leeward.api import bodies
from leeward.api.access import KeyOf, ServiceOf
from leeward.api.replies import NamePart, accepted, page, reply
from leeward.model.groups import GroupStanding
from leeward.model.recovery import Job

router = APIRouter(tags=["consistency groups"])

_GROUPS = "/vaults/{vault}/consistency-groups"


@router.get(_GROUPS)
def list_groups(service: ServiceOf, vault: NamePart) -> Response:
    """The vault's consistency groups and how they do."""
    return page(service.consistency.listed(vault))


@router.get(_GROUPS + "/{name}", response_model=GroupStanding)
def get_group(service: ServiceOf, vault: NamePart, name: NamePart) -> Response:
    """One consistency group and how it does."""
    return reply(service.consistency.standing(vault, name))


@router.put(_GROUPS + "/{name}", status_code=HTTPStatus.ACCEPTED, response_model=Job)
def put_group(
    service: ServiceOf,
    key: KeyOf,
    vault: NamePart,
    name: NamePart,
    body: bodies.ConsistencyGroupBody,
) -> Response:
    """The group is as given; its workers are being told."""
    return accepted(service.consistency.put(vault, name, body.items, key))


@router.delete(_GROUPS + "/{name}", status_code=HTTPStatus.ACCEPTED, response_model=Job)
def delete_group(service: ServiceOf, key: KeyOf, vault: NamePart, name: NamePart) -> Response:
    """The group is gone, its items and their points stay; its workers are being told."""
    return accepted(service.consistency.delete(vault, name, key))


@router.get(_GROUPS + "/{name}/shared-points")
def list_points(service: ServiceOf, vault: NamePart, name: NamePart) -> Response:
    """The group's shared recovery points, newest first: those that all members have."""
    return page(list(service.consistency.points(vault, name)))


@router.post(_GROUPS + "/{name}/failover", status_code=HTTPStatus.ACCEPTED, response_model=Job)
def fail_over(
    service: ServiceOf,
    key: KeyOf,
    vault: NamePart,
    name: NamePart,
    body: bodies.GroupFailoverBody,
) -> Response:
    """All items of the group are being failed over to one shared point."""
    return accepted(service.group_moves.failover(vault, name, body.recovery_point, key))


@router.post(
    _GROUPS + "/{name}/change-recovery-point", status_code=HTTPStatus.ACCEPTED, response_model=Job
)
def change_point(
    service: ServiceOf, key: KeyOf, vault: NamePart, name: NamePart, body: bodies.GroupChangeBody
) -> Response:
    """All VMs of the failed-over group are being started anew from another shared point."""
    return accepted(service.group_moves.change(vault, name, body.recovery_point, key))


@router.post(_GROUPS + "/{name}/test-failover", status_code=HTTPStatus.ACCEPTED, response_model=Job)
def start_test(
    service: ServiceOf, key: KeyOf, vault: NamePart, name: NamePart, body: bodies.GroupFailoverBody
) -> Response:
    """Test VMs of all the group's items are being booted from one shared point, in isolated
    networks that they share; replication goes on."""
    return accepted(service.group_tests.start(vault, name, body.recovery_point, key))


@router.post(
    _GROUPS + "/{name}/test-failover-cleanup", status_code=HTTPStatus.ACCEPTED, response_model=Job
)
def clean_up_test(service: ServiceOf, key: KeyOf, vault: NamePart, name: NamePart) -> Response:
    """Every trace of the group's test is being removed."""
    return accepted(service.clean_ups.clean_up_group(vault, name, key))

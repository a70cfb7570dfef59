"""Routes of what storage accounts hold.

Owns: their paths. Must not know: whose replica is whose, that is the verbs'.
"""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Response

from leeward.api import bodies
from leeward.api.access import KeyOf, ServiceOf
from leeward.api.replies import IdPart, accepted
from leeward.model.recovery import Job

router = APIRouter(tags=["storage"])


@router.post("/storage/replicas", status_code=HTTPStatus.ACCEPTED, response_model=Job)
def read_replicas(service: ServiceOf, key: KeyOf, body: bodies.ReplicasBody) -> Response:
    """What each storage account has of which item is being read; the job's result says it."""
    return accepted(service.replicas.read(region=body.region, account=body.account, key=key))


@router.post(
    "/storage/replicas/{item_id}/delete", status_code=HTTPStatus.ACCEPTED, response_model=Job
)
def delete_replica(
    service: ServiceOf, key: KeyOf, item_id: IdPart, body: bodies.DeleteReplicaBody
) -> Response:
    """All that storage accounts have of an item that nothing protects any more is being erased."""
    return accepted(service.replicas.delete(item_id, even_if_held=body.even_if_held, key=key))

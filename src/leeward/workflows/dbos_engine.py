"""The durable engine on DBOS, with SQLite or PostgreSQL under it.

Owns: everything DBOS. Must not know: what jobs do. DBOS is one per process, so is this engine; only
the service process may launch it, since two with one executor id would run steps twice. A step's
result that a full disk does not take waits until there is space: the step has happened, and a job
cut short there could neither go on nor undo what it did.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime

from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, SetWorkflowID

from leeward.core.errors import Unavailable
from leeward.vault.full_disk import space_awaited
from leeward.workflows.engine import Body, Json
from leeward.workflows.signals import ServiceStopping

_APPLICATION = "leeward"
_EXECUTOR = "service"
"""Fixed: the next process recovers what this one leaves behind."""
_SCHEMA = "1"
"""Raised by hand when a verb's steps change so that half-done jobs could not be replayed."""
_PAGE = 500
_UNDER_WAY = frozenset({"PENDING", "ENQUEUED", "DELAYED"})

_lock = threading.Lock()
_body: Body | None = None


class _DbosSteps:
    def run(self, name: str, action: Callable[[], Json]) -> Json:
        def act() -> Json:
            with space_awaited(None):
                return action()

        with space_awaited(_check_running):
            return DBOS.run_step({"name": name}, act)


@DBOS.workflow(name="leeward-job", max_recovery_attempts=None)
def _run_job(job_id: str) -> None:
    assert _body is not None, "launched before it runs"
    _body(job_id, _DbosSteps())


def _check_running() -> None:
    if _body is None:  # nobody waits any more: the job goes on from here at the next start
        raise ServiceStopping


class DbosEngine:
    """The process's one DBOS instance."""

    def __init__(self, database_url: str) -> None:
        self._config: DBOSConfig = {
            "name": _APPLICATION,
            "system_database_url": database_url,
            "executor_id": _EXECUTOR,
            "application_version": _SCHEMA,
            "serializer": DBOSPortableJSONSerializer(),
            "log_level": "WARNING",
        }
        self._is_launched = False

    def launch(self, body: Body) -> None:
        global _body
        with _lock:
            if _body is not None:
                raise Unavailable("this process already runs a workflow engine")
            _body = body
        logging.getLogger("dbos").propagate = False
        try:
            DBOS(config=self._config)
            self._is_launched = True
            DBOS.launch()
        except Exception as error:  # DBOS lets its database driver's errors through
            self.close()
            raise Unavailable(f"the workflow engine cannot start: {error}") from error

    def start(self, job_id: str) -> bool:
        try:
            known = DBOS.get_workflow_status(job_id)
            if known is not None:
                return known.status in _UNDER_WAY
            with SetWorkflowID(job_id):
                DBOS.start_workflow(_run_job, job_id)
            return True
        except Exception as error:  # as above
            raise Unavailable(f"the workflow engine cannot start a job: {error}") from error

    def forget(self, *, ended_before_ns: int) -> None:
        before = datetime.fromtimestamp(ended_before_ns / 1e9, UTC).isoformat()
        ended = DBOS.list_workflows(
            completed_before=before, limit=_PAGE, load_input=False, load_output=False
        )
        if ended:
            DBOS.delete_workflows([status.workflow_id for status in ended])

    def close(self) -> None:
        global _body
        if self._is_launched:
            self._is_launched = False
            DBOS.destroy(workflow_completion_timeout_sec=0)
        with _lock:
            _body = None

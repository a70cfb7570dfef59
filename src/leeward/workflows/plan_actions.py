"""Actions of recovery plans, each one step of a run.

Owns: how a script, a call, an approval and a wait for a port are carried out. Must not know: the
order of a plan. A step may be carried out twice when the service is killed on the way: scripts and
receivers of calls are told the run's id.
"""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException

from leeward.core.codec import to_json, to_plain
from leeward.core.errors import Conflict, InvalidRequest, Unavailable
from leeward.model.plans import ActionKind, PlanAction, PlanApproval, RecoveryPlan
from leeward.model.resources import VirtualMachine
from leeward.protocol.fabric import PortSpec, ScriptSpec
from leeward.protocol.messages import Role, Verb
from leeward.vault.items import ItemRecord
from leeward.vault.records import Records
from leeward.workflows.bench import Bench
from leeward.workflows.dispatch import Order
from leeward.workflows.engine import Json
from leeward.workflows.job import RunningJob, StepProgress
from leeward.workflows.rehearsing import tested as tested_machine
from leeward.workflows.specs import network_id

_SLACK_SECONDS = 30.0
_LOOK_SECONDS = 1.0


def approval_key(job_id: str) -> str:
    """Return the signal's key for approvals of that run."""
    return f"approval:{job_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionPlace:
    """Where in a run an action is: of which plan and group, and whether it is only a test."""

    plan: RecoveryPlan
    group: str
    is_test: bool = False


class PlanActions:
    """Carries actions out."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def carry_out(self, job: RunningJob, step: str, action: PlanAction, place: ActionPlace) -> None:
        """The action has ended well, as the run's step of that name. Raises: LeewardError."""
        context, plan = self._context(job, place, action), place.plan
        match action.kind:
            case ActionKind.SCRIPT:
                job.order(
                    step,
                    lambda: self._script_order(job, step, action, context, plan),
                    dict[str, object],
                    timeout_seconds=action.timeout_seconds + _SLACK_SECONDS,
                )
            case ActionKind.WAIT_PORT:
                job.order(
                    step,
                    lambda: self._port_order(job, step, action, place),
                    dict[str, object],
                    timeout_seconds=action.timeout_seconds + _SLACK_SECONDS,
                )
            case ActionKind.HTTP:
                job.step(step, lambda told: _call(action, context, told), dict[str, object])
            case ActionKind.APPROVAL:
                job.step(
                    step,
                    lambda told: self._wait_approved(job, step, action, told),
                    dict[str, object],
                )

    def _context(self, job: RunningJob, place: ActionPlace, action: PlanAction) -> Json:
        """Return what scripts and receivers of calls are told."""
        plan, group = place.plan, place.group
        return {
            "plan": plan.name,
            "vault": plan.vault,
            "job": job.record.id,
            "group": group,
            "action": action.name,
            "is_test": place.is_test,
            "items": [name for each in plan.groups if each.name == group for name in each.items],
        }

    # --- orders to agents

    def _script_order(
        self, job: RunningJob, step: str, action: PlanAction, context: Json, plan: RecoveryPlan
    ) -> Order:
        with self._bench.vault.read() as records:
            region = where_to(records, plan)
            agents = self._bench.answering(records, Role.AGENT, region)
        if not agents:
            raise Unavailable(f"no agent of region {region} answers")
        spec = ScriptSpec(
            run_id=_run_id(job, step),
            script=action.script,
            context={**context, "region": region},
            timeout_seconds=action.timeout_seconds,
        )
        first = min(agents, key=lambda agent: agent.name)
        return Order(node=first, verb=Verb.SCRIPT_RUN, arguments=to_plain(spec))

    def _port_order(
        self, job: RunningJob, step: str, action: PlanAction, place: ActionPlace
    ) -> Order:
        with self._bench.vault.read() as records:
            record = records.items.get(place.plan.vault, action.item)
            vm, tested = self._machine(records, record, place)
            agent = self._bench.agent_of(records, vm)
        nic = next((nic for nic in vm.nics if nic.address), None)
        if nic is None:
            raise InvalidRequest(f"{vm.name} has no address to wait for")
        real = network_id(self._bench.installation, vm.region, nic.network, vm.host)
        spec = PortSpec(
            run_id=_run_id(job, step),
            network_id=tested.get(nic.network, real),
            address=nic.address,
            port=action.port,
            timeout_seconds=action.timeout_seconds,
        )
        return Order(node=agent, verb=Verb.PORT_WAIT, arguments=to_plain(spec))

    def _machine(
        self, records: Records, record: ItemRecord, place: ActionPlace
    ) -> tuple[VirtualMachine, dict[str, str]]:
        """Return the VM that is meant and, of a test VM, the ids of its networks by name. Raises:
        NotFound, Conflict."""
        item, rehearsal = record.item, record.item.rehearsal
        if not place.is_test:
            name = item.target_vm or item.source_vm
            found = records.resources.get(VirtualMachine, item.target_region, name)
            return found.value, {}
        if rehearsal is None:
            raise Conflict(f"{item.name} has no test VM any more")
        return tested_machine(record.target_vm, rehearsal), rehearsal.networks

    # --- approvals

    def _wait_approved(
        self, job: RunningJob, step: str, action: PlanAction, progress: StepProgress
    ) -> Json:
        deadline = self._bench.clock.monotonic() + action.timeout_seconds
        with self._bench.signals.listen(approval_key(job.record.id)) as listener:
            while True:
                job.check_cancelled()
                with self._bench.vault.read() as records:
                    found = records.resources.find(PlanApproval, job.record.id, step)
                if found is not None:
                    comment = found.value.comment
                    progress.report(detail=f"approved{': ' + comment if comment else ''}")
                    return {"comment": comment}
                if self._bench.clock.monotonic() > deadline:
                    raise Conflict(
                        f"{step}: nobody approved within {action.timeout_seconds:g} s",
                        hint="resume the plan to be asked again",
                    )
                progress.report(detail=action.message or "waits for approval")
                listener.wait(_LOOK_SECONDS)


def where_to(records: Records, plan: RecoveryPlan) -> str:
    """Return the region that the plan's items fail over to. Raises: NotFound."""
    first = next(name for group in plan.groups for name in group.items)
    region: str = records.items.get(plan.vault, first).item.target_region
    return region


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A call goes where the plan says and nowhere else."""

    def redirect_request(self, *_: object) -> None:
        return None


def _call(action: PlanAction, context: Json, progress: StepProgress) -> Json:
    """Return the answer's status, which is 2xx. Raises: Unavailable, Conflict."""
    request = urllib.request.Request(
        action.url,
        data=to_json(context),
        headers={
            "Content-Type": "application/json",
            "User-Agent": "leeward",
            "Leeward-Test": "true" if context["is_test"] else "false",
        },
        method="POST",
    )
    opener = urllib.request.build_opener(_NoRedirects)
    try:
        with opener.open(request, timeout=action.timeout_seconds) as reply:
            status = int(reply.status)
    except urllib.error.HTTPError as error:
        with error:
            raise Conflict(f"{action.url} answered {error.code} {error.reason}") from error
    except (OSError, HTTPException, ValueError) as error:
        raise Unavailable(f"{action.url} does not answer: {error}") from error
    progress.report(detail=f"{status}")
    return {"status": status}


def _run_id(job: RunningJob, step: str) -> str:
    digest = hashlib.sha256(f"{job.record.id} {step}".encode()).hexdigest()
    return f"run-{digest[:16]}"

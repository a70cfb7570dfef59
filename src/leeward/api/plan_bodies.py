"""Request bodies about recovery plans.

Owns: their shape and the OpenAPI text that comes of it. Must not know: what is done with them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from leeward.api.bodies import Body
from leeward.model.plans import (
    ACTION_SECONDS,
    APPROVAL_SECONDS,
    ActionKind,
    PlanAction,
    PlanGroup,
    PlanOptions,
    RecoveryPlan,
)


class PlanActionBody(Body):
    name: str
    kind: Literal["script", "http", "approval", "wait-port"]
    script: str = Field(default="", description="name in the target agents' scripts directory")
    url: str = Field(default="", description="where the context is posted", max_length=2000)
    message: str = Field(default="", max_length=1000)
    item: str = Field(default="", description="whose VM's port is waited for")
    port: int = 0
    timeout_seconds: float | None = Field(
        default=None, description="default: a minute, approvals a day"
    )

    def action(self) -> PlanAction:
        """Return the action that is asked for."""
        kind = ActionKind(self.kind)
        default = APPROVAL_SECONDS if kind is ActionKind.APPROVAL else ACTION_SECONDS
        given = self.model_dump(exclude={"kind", "timeout_seconds"})
        seconds = default if self.timeout_seconds is None else self.timeout_seconds
        return PlanAction(kind=kind, timeout_seconds=seconds, **given)


class PlanGroupBody(Body):
    name: str
    items: tuple[str, ...] = Field(default=(), max_length=500)
    after: tuple[str, ...] = Field(default=(), max_length=50)
    pre: tuple[PlanActionBody, ...] = Field(default=(), max_length=50)
    post: tuple[PlanActionBody, ...] = Field(default=(), max_length=50)

    def group(self) -> PlanGroup:
        """Return the group that is asked for."""
        return PlanGroup(
            name=self.name,
            items=self.items,
            after=self.after,
            pre=tuple(body.action() for body in self.pre),
            post=tuple(body.action() for body in self.post),
        )


PlanPoint = Annotated[
    Literal["latest", "latest-processed", "latest-app-consistent", "latest-shared"],
    Field(
        description="latest-shared: items of a consistency group go to the newest point that it "
        "shares, others to latest-processed"
    ),
]


class RecoveryPlanBody(Body):
    groups: tuple[PlanGroupBody, ...] = Field(max_length=50)

    def plan(self, vault: str, name: str) -> RecoveryPlan:
        """Return the plan that is asked for."""
        groups = tuple(body.group() for body in self.groups)
        return RecoveryPlan(name=name, vault=vault, groups=groups)


class RunPlanBody(Body):
    planned: bool = Field(default=False, description="shut the sources down first, lose nothing")
    recovery_point: PlanPoint = "latest"

    def options(self) -> PlanOptions:
        """Return how the plan is run."""
        return PlanOptions(**self.model_dump())


class TestPlanBody(Body):
    recovery_point: PlanPoint = "latest"


class ApproveBody(Body):
    action: str = Field(default="", description="empty: whichever it waits for")
    comment: str = Field(default="", max_length=1000)

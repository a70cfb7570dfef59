"""Whether a recovery plan makes sense, and whether it can be run now.

Owns: every reason to refuse one, each a sentence. Must not know: where plans or items are stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import urlsplit

from leeward.core.errors import Conflict, InvalidRequest
from leeward.core.ids import check_name
from leeward.model.plans import ActionKind, PlanAction, PlanGroup, PlanOptions, RecoveryPlan
from leeward.model.recovery import ItemState, ReplicatedItem

NAME_LENGTH_MAX = 24
"""Of groups and actions: step names are made of two."""
GROUPS_MAX = 50
ITEMS_MAX = 500
SECONDS_MAX = 7 * 86400.0
DONE = frozenset({ItemState.FAILED_OVER, ItemState.COMMITTED})
_READY = frozenset({ItemState.PROTECTED, ItemState.RESYNCING, ItemState.DEGRADED})


def check_plan(plan: RecoveryPlan, items: Mapping[str, ReplicatedItem]) -> None:
    """Return if the plan makes sense. items: the vault's, by name. Raises: InvalidRequest."""
    check_name(plan.name)
    _check_names([group.name for group in plan.groups], "group", "groups")
    if not plan.groups:
        raise InvalidRequest("a plan needs at least one group", field="groups")
    if len(plan.groups) > GROUPS_MAX:
        raise InvalidRequest(f"a plan has at most {GROUPS_MAX} groups", field="groups")
    _check_items(plan, items)
    ordered = order_groups(plan)
    reached: set[str] = set()
    for group in ordered:
        reached.update(group.items)
        _check_names([action.name for action in (*group.pre, *group.post)], "action", group.name)
        for action in group.pre:
            _check_action(group, action, reached - set(group.items))
        for action in group.post:
            _check_action(group, action, reached)


def order_groups(plan: RecoveryPlan) -> tuple[PlanGroup, ...]:
    """Return the groups as they are run: in the plan's order, but behind those they name in
    `after`. Raises: InvalidRequest when they wait for each other or for one that is not there."""
    names = {group.name for group in plan.groups}
    for group in plan.groups:
        for other in group.after:
            if other not in names:
                raise InvalidRequest(
                    f"group {group.name} comes after {other}, which the plan does not have",
                    field=f"groups.{group.name}.after",
                )
    left, ordered, through = list(plan.groups), [], set[str]()
    while left:
        following = next((group for group in left if through.issuperset(group.after)), None)
        if following is None:
            circle = ", ".join(group.name for group in left)
            raise InvalidRequest(
                f"the groups {circle} wait for each other: none of them could be first",
                field="groups",
                hint="take one name out of one group's `after`",
            )
        left.remove(following)
        ordered.append(following)
        through.add(following.name)
    return tuple(ordered)


def find_obstacles(plan: RecoveryPlan, items: Mapping[str, ReplicatedItem]) -> tuple[str, ...]:
    """Return why the plan cannot be run now, a sentence each. Items that have failed over already
    are no obstacle: they are passed over."""
    obstacles = []
    for name in plan_items(plan):
        item = items.get(name)
        if item is None:
            obstacles.append(f"{name} is not protected any more: take it out of the plan")
        elif item.state not in _READY | DONE:
            obstacles.append(f"{name} is {item.state.value.replace('_', ' ')}")
    try:
        _check_directions([items[name] for name in plan_items(plan) if name in items])
    except InvalidRequest as error:
        obstacles.append(str(error))
    if not obstacles and all(items[name].state in DONE for name in plan_items(plan)):
        obstacles.append("everything in it has failed over already")
    return tuple(obstacles)


def find_test_obstacles(
    names: Iterable[str], items: Mapping[str, ReplicatedItem]
) -> tuple[str, ...]:
    """Return why these of a vault's items cannot have test VMs now, a sentence each."""
    obstacles = []
    for name in names:
        item = items.get(name)
        if item is None:
            obstacles.append(f"{name} is not protected any more: take it out")
        elif item.state not in _READY:
            obstacles.append(f"{name} is {item.state.value.replace('_', ' ')}")
        elif item.rehearsal is not None:
            obstacles.append(f"{name} has a test VM already")
    return tuple(obstacles)


def check_testable(plan: RecoveryPlan, items: Mapping[str, ReplicatedItem]) -> None:
    """Return if the plan can be tested now. Raises: Conflict with every reason against it."""
    obstacles = find_test_obstacles(plan_items(plan), items)
    if obstacles:
        raise Conflict(
            f"plan {plan.name} cannot be tested: {'; '.join(obstacles)}",
            field="state",
            hint=f"`leeward recovery-plan test-cleanup {plan.name}` or `leeward "
            "test-failover-cleanup ITEM` takes test VMs away",
        )


def check_options(options: PlanOptions) -> None:
    """Return if a plan can be run so. Raises: InvalidRequest."""
    if options.planned and options.recovery_point != "latest":
        raise InvalidRequest(
            f"recovery_point: a planned failover loses nothing, {options.recovery_point} would",
            field="recovery_point",
            hint="leave the recovery point out, or run the plan without planning",
        )


def check_runnable(plan: RecoveryPlan, items: Mapping[str, ReplicatedItem]) -> None:
    """Return if the plan can be run now. Raises: Conflict with every reason against it."""
    obstacles = find_obstacles(plan, items)
    if obstacles:
        raise Conflict(
            f"plan {plan.name} cannot be run: {'; '.join(obstacles)}",
            field="state",
            hint=f"`leeward recovery-plan dry-run {plan.name}` tells when it can",
        )


def plan_items(plan: RecoveryPlan) -> Iterator[str]:
    """Yield every item of the plan, in its groups' order."""
    for group in plan.groups:
        yield from group.items


def _check_items(plan: RecoveryPlan, items: Mapping[str, ReplicatedItem]) -> None:
    counts = Counter(plan_items(plan))
    if not counts:
        raise InvalidRequest("the plan has no items", field="groups")
    if len(counts) > ITEMS_MAX:
        raise InvalidRequest(f"a plan has at most {ITEMS_MAX} items", field="groups")
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise InvalidRequest(
            f"{', '.join(twice)}: more than once in the plan; each VM fails over once",
            field="groups",
        )
    missing = [name for name in counts if name not in items]
    if missing:
        raise InvalidRequest(
            f"vault {plan.vault} does not protect {', '.join(missing)}",
            field="groups",
            hint="`leeward item list` shows what it protects",
        )
    _check_directions([items[name] for name in counts])


def _check_directions(items: list[ReplicatedItem]) -> None:
    directions: dict[tuple[str, str], list[str]] = {}
    for item in items:
        directions.setdefault((item.source_region, item.target_region), []).append(item.name)
    if len(directions) > 1:
        told = "; ".join(
            f"{', '.join(names)} from {source} to {target}"
            for (source, target), names in directions.items()
        )
        raise InvalidRequest(
            f"its items go different ways: {told}",
            field="groups",
            hint="make one plan for each direction",
        )


def _check_names(names: list[str], kind: str, field: str) -> None:
    for name in names:
        check_name(name, field=field)
        if len(name) > NAME_LENGTH_MAX:
            raise InvalidRequest(
                f"{kind} {name}: its name is longer than {NAME_LENGTH_MAX} characters", field=field
            )
    for name, count in Counter(names).items():
        if count > 1:
            raise InvalidRequest(f"two are named {name}: {kind}s need different names", field=field)


def _check_action(group: PlanGroup, action: PlanAction, reached: set[str]) -> None:
    field = f"groups.{group.name}.{action.name}"
    if not 0 < action.timeout_seconds <= SECONDS_MAX:
        raise InvalidRequest(
            f"{field}: timeout_seconds must be in (0, {SECONDS_MAX:.0f}]", field=field
        )
    if action.kind is ActionKind.SCRIPT and (
        not action.script or "/" in action.script or action.script.startswith(".")
    ):
        raise InvalidRequest(
            f"{field}: {action.script!r} is not the name of a script",
            field=field,
            hint="put the file into the scripts directory of the target's agents and give its name",
        )
    parts = urlsplit(action.url)
    if action.kind is ActionKind.HTTP and (
        parts.scheme not in ("http", "https") or not parts.netloc
    ):
        raise InvalidRequest(f"{field}: {action.url!r} is not an http(s) URL", field=field)
    if action.kind is not ActionKind.WAIT_PORT:
        return
    if not 0 < action.port < 65536:
        raise InvalidRequest(f"{field}: port {action.port} is not in 1 to 65535", field=field)
    if action.item not in reached:
        raise InvalidRequest(
            f"{field}: {action.item or 'no item'} has not failed over by then",
            field=field,
            hint="name an item of this group (after its VMs) or of an earlier one",
        )

"""Consistency groups as typed calls.

Owns: their paths. Must not know: terminals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from leeward.model.groups import GroupStanding, SharedPoint
from leeward.model.recovery import Job

if TYPE_CHECKING:
    from leeward.client.rest import Rest


@dataclass(frozen=True, slots=True)
class _Groups:
    items: tuple[GroupStanding, ...]


@dataclass(frozen=True, slots=True)
class _Points:
    items: tuple[SharedPoint, ...]


class ConsistencyGroups:
    """The consistency groups of one service. Every call raises as the service refuses."""

    def __init__(self, rest: Rest) -> None:
        self._rest = rest

    def listed(self, vault: str) -> tuple[GroupStanding, ...]:
        """Return the vault's groups and how they do."""
        path = f"/vaults/{quote(vault, safe='')}/consistency-groups"
        return self._rest.get(path).parse(_Groups).items

    def get(self, vault: str, name: str) -> GroupStanding:
        """Return a group and how it does. Raises: NotFound."""
        return self._rest.get(_path(vault, name)).parse(GroupStanding)

    def put(self, vault: str, name: str, items: tuple[str, ...]) -> Job:
        """Return the job after which the workers know the group as it is from now on."""
        return self._rest.put(_path(vault, name), {"items": list(items)}).parse(Job)

    def delete(self, vault: str, name: str) -> Job:
        """Return the job after which the workers know that the group is gone."""
        return self._rest.delete(_path(vault, name)).parse(Job)

    def points(self, vault: str, name: str) -> tuple[SharedPoint, ...]:
        """Return the group's shared points, newest first."""
        return self._rest.get(_path(vault, name, "shared-points")).parse(_Points).items

    def failover(self, vault: str, name: str, recovery_point: str) -> Job:
        """Return the job that fails all the group's items over to one shared point."""
        body: dict[str, object] = {"recovery_point": recovery_point}
        return self._rest.post(_path(vault, name, "failover"), body).parse(Job)

    def change_point(self, vault: str, name: str, recovery_point: str) -> Job:
        """Return the job that starts all VMs of the failed-over group from another shared point."""
        body: dict[str, object] = {"recovery_point": recovery_point}
        return self._rest.post(_path(vault, name, "change-recovery-point"), body).parse(Job)

    def test_failover(self, vault: str, name: str, recovery_point: str) -> Job:
        """Return the job that boots test VMs of all the group's items from one shared point."""
        body: dict[str, object] = {"recovery_point": recovery_point}
        return self._rest.post(_path(vault, name, "test-failover"), body).parse(Job)

    def clean_up_test(self, vault: str, name: str) -> Job:
        """Return the job that removes every trace of the group's test."""
        return self._rest.post(_path(vault, name, "test-failover-cleanup"), {}).parse(Job)


def _path(vault: str, name: str, *parts: str) -> str:
    return "/" + "/".join(
        quote(part, safe="") for part in ("vaults", vault, "consistency-groups", name, *parts)
    )

"""Every verb that the service registers is killed at every step on real QEMU, too.

`make scenario NAME=kill-everywhere` does it; what it covers is compared here with the service's own
table, so that a new verb is not forgotten.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from scenario.rounds import ROUNDS, choose_rounds, verbs_of

from leeward.workflows.service import open_service


def test_every_verb_is_an_act_of_a_round(tmp_path: Path) -> None:
    service = open_service(tmp_path)
    registered = set(service._verbs())
    service.stop()
    missing = sorted(registered - verbs_of(ROUNDS))
    assert not missing, f"add an Act to a round in scenario/rounds for {', '.join(missing)}"
    unknown = sorted(verbs_of(ROUNDS) - registered)
    assert not unknown, f"the service has no verb {', '.join(unknown)}"


def test_verbs_and_rounds_are_chosen_by_name() -> None:
    (chosen,) = choose_rounds("vm.trim")
    assert (chosen[0].name, sorted(chosen[1])) == ("guest", ["vm.trim"])
    (chosen,) = choose_rounds("machines")
    assert chosen[1] == verbs_of([chosen[0]])
    assert [each.name for each, _ in choose_rounds("")] == [each.name for each in ROUNDS]
    assert len(choose_rounds("worker, network.*")) == 2


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"VERBS: no round or verb is called vm\.fly"):
        choose_rounds("machines,vm.fly")

"""Whoever names a scenario gets one: what scenarios share is none."""

from __future__ import annotations

import importlib

from scenario.__main__ import _names


def test_every_name_is_a_scenario_that_runs() -> None:
    names = _names()
    assert {"tutorial", "kill-everywhere", "plan"} <= set(names)
    for name in names:
        assert callable(importlib.import_module(f"scenario.{name.replace('-', '_')}").run)


def test_what_scenarios_share_has_no_name() -> None:
    assert not {"rig", "page", "pair", "gate", "nemesis", "operations-hands"} & set(_names())

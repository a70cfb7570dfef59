"""The durable engine where its disk is full: a real DBOS on a real SQLite."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from leeward.vault.database import sqlite_url
from leeward.workflows.dbos_engine import DbosEngine
from leeward.workflows.engine import Json, Steps

GUARD_SECONDS = 120


class SmallDisk:
    """Databases of this process grow no more while it is full."""

    def __init__(self) -> None:
        self.is_full = False
        self.was_full = threading.Event()

    def before(self, connection: Any, cursor: Any, *_: object) -> None:
        pages = cursor.execute("PRAGMA page_count").fetchone()[0] if self.is_full else 1 << 30
        cursor.execute(f"PRAGMA max_page_count = {pages}")

    def failed(self, context: sa.engine.ExceptionContext) -> None:
        if "disk is full" in str(context.original_exception):
            self.was_full.set()


def test_a_step_whose_result_finds_no_space_is_not_lost(tmp_path: Path) -> None:
    disk, ended = SmallDisk(), threading.Event()
    acted: list[str] = []
    seen: list[object] = []

    def boot() -> Json:
        acted.append("boot")
        disk.is_full = True
        return {"value": "x" * 300_000}

    def record() -> Json:
        acted.append("record")
        return {}

    def body(job_id: str, steps: Steps) -> None:
        try:
            seen.append(len(str(steps.run("boot", boot)["value"])))
            seen.append(steps.run("record", record))
        except Exception as error:
            seen.append(error)
        ended.set()

    listeners = (("before_cursor_execute", disk.before), ("handle_error", disk.failed))
    for name, listener in listeners:
        sa.event.listen(sa.engine.Engine, name, listener)
    engine = DbosEngine(sqlite_url(tmp_path / "workflows.sqlite"))
    try:
        engine.launch(body)
        assert engine.start("job-1")
        assert disk.was_full.wait(GUARD_SECONDS)
        disk.is_full = False
        assert ended.wait(GUARD_SECONDS)
    finally:
        disk.is_full = False
        engine.close()
        for name, listener in listeners:
            sa.event.remove(sa.engine.Engine, name, listener)
    assert seen == [300_000, {}]
    assert acted == ["boot", "record"]

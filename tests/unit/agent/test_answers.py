"""The journal of answers: carried out once means once, across restarts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from leeward.agent import answers
from leeward.agent.answers import AnswerJournal
from leeward.core.errors import Unavailable
from leeward.protocol.messages import CommandResult


def result(name: str) -> CommandResult:
    return CommandResult(command_id=name, ok=True, result={"of": name})


def test_answer_survives_restart_and_is_still_to_be_told(tmp_path: Path) -> None:
    journal = AnswerJournal(tmp_path / "answers")
    journal.record(result("a"))
    journal.record(result("b"))
    journal.told("a")
    journal.close()
    again = AnswerJournal(tmp_path / "answers")
    assert again.answer_to("a") == result("a")
    assert again.untold() == [result("b")]
    again.close()


def test_told_answer_is_told_again_when_asked(tmp_path: Path) -> None:
    journal = AnswerJournal(tmp_path / "answers")
    journal.record(result("a"))
    journal.told("a")
    journal.ask_again("a")
    journal.ask_again("never heard of")
    assert journal.untold() == [result("a")]
    journal.close()


def test_line_torn_by_a_crash_is_ignored_and_the_file_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    journal = AnswerJournal(path)
    journal.record(result("a"))
    journal.close()
    with path.open("ab") as file:
        file.write(b'{"result": {"command_id": "b", "ok"')
    again = AnswerJournal(path)
    again.record(result("c"))
    again.close()
    last = AnswerJournal(path)
    assert [each.command_id for each in last.untold()] == ["a", "c"]
    last.close()


def test_a_line_that_a_full_disk_cut_short_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    journal = AnswerJournal(tmp_path / "answers")
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda fd, data: write(fd, data[:20]))
        with pytest.raises(Unavailable, match="No space left"):
            journal.record(result("a"))
    journal.record(result("b"))
    assert [each.command_id for each in journal.untold()] == ["a", "b"]
    journal.close()
    again = AnswerJournal(tmp_path / "answers")
    assert again.untold() == [result("b")]
    again.close()


def test_file_is_rewritten_before_it_grows_without_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "TOLD_KEPT", 10)
    path = tmp_path / "answers"
    journal = AnswerJournal(path)
    for number in range(300):
        journal.record(result(f"c{number}"))
        journal.told(f"c{number}")
    assert journal.answer_to("c299") == result("c299")
    assert len(path.read_bytes().splitlines()) < 300
    journal.close()


def test_a_full_disk_does_not_keep_a_node_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be the one that is told to delete something."""
    path = tmp_path / "answers"
    journal = AnswerJournal(path)
    journal.record(result("a"))
    journal.close()
    with path.open("ab") as file:
        file.write(b'{"result": {"command_id": "torn')

    def refuse(path: Path, data: bytes) -> None:
        raise Unavailable(f"cannot write {path}: No space left on device")

    with monkeypatch.context() as full:
        full.setattr(answers, "write_file", refuse)
        again = AnswerJournal(path)
    assert again.untold() == [result("a")]
    again.record(result("b"))
    again.close()
    last = AnswerJournal(path)
    assert last.untold() == [result("a"), result("b")]
    last.close()


def test_an_answer_that_comes_after_the_end_gets_into_nobody_elses_file(tmp_path: Path) -> None:
    journal = AnswerJournal(tmp_path / "answers")
    number = journal._descriptor
    journal.close()
    other = os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT)
    try:
        assert other == number, "the kernel gives the lowest number that is free"
        with pytest.raises(Unavailable, match="ending"):
            journal.record(result("late"))
        assert not (tmp_path / "other").read_bytes()
    finally:
        os.close(other)

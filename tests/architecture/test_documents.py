"""The documentation: links lead somewhere, decisions are numbered once, nothing foreign gets in."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRACKED = [
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    if (ROOT / name).is_file()
]
PAGES = [path for path in TRACKED if path.suffix == ".md"]
TEST = re.compile(r"\b(tests/[\w/]+(?:\.py)?)(?:::(\w+))?")
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = [match[1] for match in LINK.finditer(page.read_text())]
    broken = [
        target
        for target in targets
        if "://" not in target and not (page.parent / target).resolve().exists()
    ]
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_that_a_page_names_exist(page: Path) -> None:
    for path, function in TEST.findall(page.read_text()):
        assert (ROOT / path).exists(), path
        if function:
            assert f"def {function}" in (ROOT / path).read_text(), function


def test_decisions_are_numbered_once() -> None:
    numbers = [path.name[:4] for path in (ROOT / "docs" / "decisions").glob("*.md")]
    assert len(numbers) == len(set(numbers))
    assert all(number.isdigit() for number in numbers)


def test_lock_files_hold_hashes_and_no_addresses() -> None:
    for name in ("requirements.txt", "requirements-dev.txt"):
        text = (ROOT / name).read_text()
        assert "--hash=sha256:" in text
        assert "://" not in text


def test_no_path_of_a_workplace_in_the_tree() -> None:
    homes = re.compile(r"/(?:home|Users|work)/[A-Za-z]")
    guilty = [
        str(path.relative_to(ROOT))
        for path in TRACKED
        if path.suffix in {".py", ".md", ".toml", ".txt", "", ".json"}
        and path != Path(__file__).resolve()
        and homes.search(path.read_text(errors="replace"))
    ]
    assert not guilty

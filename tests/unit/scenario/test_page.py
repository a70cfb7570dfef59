"""A page's commands, with an operator's own names: each is run, or named with the reason."""

from __future__ import annotations

import re

from scenario.operations_not_run import NOT_RUN
from scenario.page import ROOT, commands_of, files_of, filled

PAGE = """
Text with `leeward item show ITEM` and `qemu-img info`.

```
leeward failover web-1   # a comment
leeward protect east/web-1 \\
    --to west
```

```toml
[[groups]]
name = "leeward run not"
```
"""


def test_commands_are_found_in_blocks_and_sentences() -> None:
    assert commands_of(PAGE) == (
        "leeward failover web-1",
        "leeward protect east/web-1 --to west",
        "leeward item show ITEM",
    )
    assert files_of(PAGE) == ('[[groups]]\nname = "leeward run not"\n',)


def test_names_are_replaced_whole() -> None:
    assert filled("show ITEM ITEMS web-1", {"ITEM": "db", "web-1": "x"}) == "show db ITEMS x"


def test_every_command_of_the_operations_page_is_run_or_named_with_the_reason() -> None:
    source = "".join(
        (ROOT / "scenario" / f"{name}.py").read_text()
        for name in ("operations", "operations_hands", "operations_machines")
    )
    run = re.sub(r'"\s*"', "", source)
    page = commands_of((ROOT / "docs" / "operations.md").read_text())
    assert [each for each in page if each not in NOT_RUN and f'"{each}"' not in run] == []
    assert [each for each in NOT_RUN if each not in page] == [], "no longer on the page"

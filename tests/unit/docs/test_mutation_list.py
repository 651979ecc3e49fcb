"""The table of planted mistakes in docs/durability.md is the list in tests/sim/mutations.py, line by line."""

from __future__ import annotations

import re
import sys

import pytest
from documents import ROOT


def rows(text: str) -> list[tuple[str, str, str]]:
    section = text.partition("## Planted mistakes")[2].partition("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|$", section, re.M)


def test_the_table_is_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "tests" / "sim"), *sys.path])
    from mutations import all_mutations

    expected = [(one.name, one.what, one.check) for one in all_mutations()]
    assert rows((ROOT / "docs" / "durability.md").read_text()) == expected

"""The text of the pages: links lead somewhere, metrics, reasons, conditions and messages that it names exist."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from documents import PAGES, ROOT


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_lead_somewhere() -> None:
    count = 0
    for page in PAGES:
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            if target.startswith(("http://", "https://")):
                continue
            file, _, anchor = target.partition("#")
            other = (page.parent / file).resolve() if file else page
            assert other.is_file(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(other), f"{page.name}: {target}; there are {sorted(anchors(other))}"
            count += 1
    assert count > 20


def test_every_page_is_reachable_from_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    missing = [page.name for page in PAGES[1:] if f"docs/{page.name}" not in text]
    assert not missing


def test_the_readme_opens_with_the_two_commands() -> None:
    code = [line.split("#")[0].strip() for line in (ROOT / "README.md").read_text().splitlines() if line[:4] == "    "]
    assert code[:2] == ["make up", "make test"]


def test_metrics_named_exist() -> None:
    """Names are made in one piece, or as curve_chunkserver_<name> from a table, with _total added by the library."""
    sources = [p.read_text() for part in ("storage_daemon", "operator", "csi") for p in (ROOT / part).rglob("*.py")]
    code = "\n".join(sources)
    named = {name for page in PAGES for name in re.findall(r"`(curve_[a-z_]+)`", page.read_text())}
    named -= {"curve_storage", "curve_operator", "curve_csi"}
    assert len(named) > 25
    for name in named:
        gauge = name.removeprefix("curve_chunkserver_")
        spellings = [f'"{name}"', f'"{name.removesuffix("_total")}"', *([f'"{gauge}": ('] if gauge != name else [])]
        assert any(spelling in code for spelling in spellings), name


def test_reasons_are_all_explained() -> None:
    source = (ROOT / "storage_daemon" / "curve_storage" / "mds" / "health.py").read_text()
    codes = set(re.findall(r'Reason\(\s*"(\w+)"', source))
    assert len(codes) >= 12
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    assert not {code for code in codes if f"| `{code}` |" not in text}
    section = text.partition("## The cluster is degraded or unavailable")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.M)) == codes


def test_conditions_named_exist() -> None:
    code = "".join(path.read_text() for path in (ROOT / "operator" / "curve_operator").glob("*.py"))
    text = (ROOT / "docs" / "operations.md").read_text()
    named = text.partition("the conditions ")[2].partition("Changes of them")[0]
    found = re.findall(r"`(\w+)`", named)
    assert len(found) > 8
    assert not [name for name in found if f'"{name}"' not in code]


MESSAGES = [
    "the etcd program was not found",
    "the volume host mounts FUSE and needs root",
    "the path is too long for Unix sockets",
    "has ended; the last it logged:",
    "waited in vain for",
    "unknown parameter",
    "is no value of parameter",
    "the volume is attached to node",
    "in use by one pod already",
    "it is left alone",
    "waiting for the keeper",
    "not a file system",
]


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_quoted_are_the_programs(message: str) -> None:
    assert message in (ROOT / "docs" / "troubleshooting.md").read_text()
    code = [p for part in ("storage_daemon", "operator", "csi") for p in (ROOT / part).rglob("*.py")]
    assert any(message in path.read_text() for path in code)


def _word_absent(pattern: str) -> Callable[[str], bool]:
    return lambda text: re.search(pattern, text) is None


def test_no_places_of_one_machine() -> None:
    absent = _word_absent(r"/work/|/root/|localhost:\d|/home/\w")
    assert all(absent(page.read_text()) for page in PAGES)
    assert not absent("see /root/x")

"""The pages, their fenced blocks, and the shell commands in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
SHELL = ("sh", "bash", "shell", "console")

_ASSIGNMENT = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*=")
_SUBSTITUTION = re.compile(r"\$\(([^()]*)\)")
_FENCE = re.compile(r"^ *```")


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page.name}:{self.line}"


@dataclass(frozen=True)
class Command:
    """mention: in running text, where arguments may be left out."""

    where: str
    words: tuple[str, ...]
    mention: bool = False

    def __str__(self) -> str:
        return f"{self.where} {shlex.join(self.words)}"


def blocks(page: Path) -> list[Block]:
    """Fenced blocks, and indented ones without a language."""
    found: list[Block] = []
    language, start, lines = "", 0, []
    inside = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if _FENCE.match(line):
            if inside:
                found.append(Block(page, start, language, "\n".join(lines) + "\n"))
            else:
                language, start, lines = line.strip().strip("`"), number + 1, []
            inside = not inside
        elif inside:
            lines.append(line)
    assert not inside, f"{page.name}: a fenced block is not closed"
    return found


def commands(block: Block) -> list[Command]:
    """Simple commands of a shell block, those in $( ) too, without assignments in front."""
    found = []
    for number, line in enumerate(block.text.splitlines(), block.line):
        pending = [line]
        while pending:
            text = pending.pop()
            pending += _SUBSTITUTION.findall(text)
            for words in split(_SUBSTITUTION.sub("SUBSTITUTED", text)):
                found.append(Command(f"{block.page.name}:{number}", words))
    return found


def split(line: str) -> list[tuple[str, ...]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    for word in lexer:
        if word and set(word) <= set("|&;()"):
            parts.append([])
        else:
            parts[-1].append(word)
    result = []
    for words in parts:
        while words and _ASSIGNMENT.match(words[0]):
            words.pop(0)
        if words:
            result.append(tuple(words))
    return result


def inline_commands(page: Path) -> list[Command]:
    """`curve …` and the like in running text, where it is one whole command."""
    text = re.sub(r"```.*?```", lambda match: "\n" * match.group(0).count("\n"), page.read_text(), flags=re.S)
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", line):
            if "…" in code or "[" in code:
                continue
            if code.split(" ")[0] in ("curve", "make", "kubectl", "helm", "python") and " " in code:
                found.extend(Command(f"{page.name}:{number}", words, mention=True) for words in split(code))
    return found


def all_commands() -> list[Command]:
    found = []
    for page in PAGES:
        for block in blocks(page):
            if block.language in SHELL:
                found += commands(block)
        found += inline_commands(page)
    return found

"""What the kernel says is mounted: the lines of /proc/PID/mountinfo (proc(5))."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """device: (major, minor) as in `st_dev` of the files; root: the part of the file system that is mounted; source:
    as it was given to mount(2); options: of this mount; super_options: of the file system."""

    device: tuple[int, int]
    root: str
    target: Path
    filesystem: str
    source: str
    options: frozenset[str]
    super_options: frozenset[str]

    @property
    def read_only(self) -> bool:
        return "ro" in self.options or "ro" in self.super_options

    @property
    def number(self) -> int:
        """The device as `st_dev` has it."""
        return os.makedev(*self.device)


def parse(text: str) -> list[Mount]:
    """The mounts in the kernel's order: a later one on the same target hides an earlier. Lines that are none are
    passed over."""
    found = []
    for line in text.splitlines():
        left, separator, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if not separator or len(fields) < 6 or len(tail) < 3:
            continue
        major, _, minor = fields[2].partition(":")
        if not (major.isdecimal() and minor.isdecimal()):
            continue
        found.append(
            Mount(
                (int(major), int(minor)), _unescape(fields[3]), Path(_unescape(fields[4])), tail[0],
                _unescape(tail[1]), frozenset(fields[5].split(",")), frozenset(tail[2].split(",")),
            )
        )  # fmt: skip
    return found


def mounts(process: int | str = "self") -> list[Mount]:
    """The mounts in the namespace of a process. Raises OSError when it has ended."""
    return parse(Path(f"/proc/{process}/mountinfo").read_text(errors="surrogateescape"))


def visible(target: str | Path, table: Iterable[Mount]) -> Mount | None:
    """The mount seen exactly at `target`, out of `table`."""
    wanted = Path(os.path.normpath(target))
    found = None
    for mount in table:
        if mount.target == wanted:
            found = mount
    return found


def _unescape(text: str) -> str:
    """The kernel writes space, tab, newline and backslash as octal numbers."""
    return _ESCAPE.sub(lambda match: chr(int(match.group(1), 8)), text)

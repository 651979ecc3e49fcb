"""What the benchmarks take and leave alike: lists of names as arguments, a table on the console, figures as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def some_of(known: Collection[str]) -> Callable[[str], list[str]]:
    """The type of an argument: names out of `known`, comma-separated, none where it is empty."""

    def parse(text: str) -> list[str]:
        names = [name for part in text.split(",") if (name := part.strip())]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(known)}")
        return names

    return parse


def columns(titles: Sequence[str], *, left: Collection[str]) -> Table:
    """An empty table; columns not named in `left` are figures, aligned to the right."""
    out = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for title in titles:
        out.add_column(title, justify="left" if title in left else "right", no_wrap=True)
    return out


def console(width: int) -> Console:
    """width: characters, where the output is no terminal."""
    return Console(width=None if sys.stdout.isatty() else width, highlight=False)


def write(path: Path, figures: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=2) + "\n")

"""Tables for people; JSON and YAML for programs, both from the same plain data."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import yaml
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message
from rich.console import Console
from rich.table import Table
from rich.text import Text

from curve_storage.units import format_size


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


@dataclass(frozen=True)
class Column:
    """cell: the text for one row, which is a plain dict."""

    title: str
    cell: Callable[[dict[str, Any]], str | Text]
    right: bool = False


def plain(message: Message) -> dict[str, Any]:
    """A message as plain data: all fields present, numbers as numbers, enums as lower-case words, times in ISO form."""
    result: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        name, out = field.name, _value(field, value)
        if name.endswith("_ms") and name not in ("session_ttl_ms", "oldest_inflight_ms", "stall_ms"):
            name, out = name.removesuffix("_ms"), iso(int(value))
        result[name] = out
    return result


def _value(field: Any, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return dict(value)
    if field.is_repeated:
        return [_single(field, item) for item in value]
    return _single(field, value)


def _single(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return plain(value)
    if field.enum_type is not None:
        return enum_word(field.enum_type, value)
    return value.hex() if isinstance(value, bytes) else value


def enum_word(enum: EnumDescriptor, number: int) -> str:
    """DISK_STATE_NORMAL of DiskState → "normal"."""
    known = enum.values_by_number.get(number)
    if known is None:
        return str(number)
    prefix = "".join(f"_{c}" if c.isupper() else c.upper() for c in enum.name).lstrip("_") + "_"
    return str(known.name).removeprefix(prefix).lower()


def iso(milliseconds: int) -> str | None:
    """Times of the MDS: milliseconds since 1970; 0 is "never"."""
    if not milliseconds:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def console() -> Console:
    """For standard output: not cut at 80 columns when it goes into a pipe."""
    return Console(width=None if sys.stdout.isatty() else 200, highlight=False, soft_wrap=not sys.stdout.isatty())


def show(data: Any, format: Format, render: Callable[[Console], None]) -> None:
    """`data` as JSON or YAML, or whatever `render` prints."""
    match format:
        case Format.JSON:
            print(json.dumps(data, indent=2))
        case Format.YAML:
            print(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), end="")
        case Format.TABLE:
            render(console())


def show_rows(rows: Sequence[dict[str, Any]], columns: Sequence[Column], format: Format, *, empty: str) -> None:
    def render(out: Console) -> None:
        if rows:
            out.print(table(rows, columns))
        else:
            out.print(empty)

    show(list(rows), format, render)


def table(rows: Sequence[dict[str, Any]], columns: Sequence[Column]) -> Table:
    result = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for column in columns:
        result.add_column(column.title, justify="right" if column.right else "left", no_wrap=True)
    for row in rows:
        result.add_row(*(column.cell(row) for column in columns))
    return result


def show_fields(data: dict[str, Any], fields: Sequence[tuple[str, str]], format: Format) -> None:
    """One object: a label and a text per line."""

    def render(out: Console) -> None:
        width = max(len(label) for label, _ in fields)
        for label, text in fields:
            if text:
                out.print(f"[bold]{label:<{width}}[/bold]  ", end="")
                out.print(Text(text))

    show(data, format, render)


def size(value: int) -> str:
    return format_size(value) if value else "0"


def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"


HEALTH_STYLE = {
    "healthy": "bold green",
    "online": "green",
    "normal": "green",
    "degraded": "bold yellow",
    "unstable": "yellow",
    "stalled": "bold yellow",
    "formatting": "yellow",
    "full": "bold yellow",
    "unavailable": "bold red",
    "offline": "red",
    "error": "bold red",
    "fenced": "bold red",
    "failed": "bold red",
}


def word(text: str) -> Text:
    """A state, in its colour."""
    return Text(text, style=HEALTH_STYLE.get(text, ""))

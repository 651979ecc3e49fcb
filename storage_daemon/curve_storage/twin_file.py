"""A small JSON file with a checksum, kept twice: one rotten bit in either loses nothing.

`<name>` and `<name>.copy` hold the same bytes; each is replaced atomically by the caller's writer, `<name>` first. An
intact `<name>` counts; the copy counts only where `<name>` is damaged. It may then be one change older, which is so
only after a crash between the two writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crc32c import crc32c

CHECKSUM = "crc32c"


def encode(body: dict[str, Any]) -> bytes:
    text = json.dumps(body, sort_keys=True)
    return json.dumps({**body, CHECKSUM: crc32c(text.encode())}, indent=1).encode()


def decode(data: bytes) -> dict[str, Any]:
    """The body without its checksum. Raises ValueError for anything that is not exactly what was written."""
    body = json.loads(data)
    if not isinstance(body, dict) or CHECKSUM not in body:
        raise ValueError("not an object with a checksum")
    del body[CHECKSUM]
    if encode(body) != data:
        raise ValueError("the checksum does not match")
    return body


def copy_of(path: Path) -> Path:
    return path.with_name(path.name + ".copy")


def save(path: Path, body: dict[str, Any], write: Callable[[Path, bytes], None]) -> None:
    """write: replaces one file atomically and durably. Raises what it raises."""
    data = encode(body)
    write(path, data)
    write(copy_of(path), data)


def load(path: Path, write: Callable[[Path, bytes], None]) -> tuple[dict[str, Any], list[str]]:
    """The body, and a sentence for each file that was damaged or missing and is written anew from the other.

    Raises FileNotFoundError when neither exists, ValueError when there is no intact one, OSError from reading."""
    found: dict[str, Any] | None = None
    broken: dict[Path, str] = {}
    absent = 0
    for each in (path, copy_of(path)):
        try:
            data = each.read_bytes()
            body = decode(data)
        except FileNotFoundError:
            absent += 1
            broken[each] = "is missing"
            continue
        except ValueError as error:
            broken[each] = f"is damaged ({error})"
            continue
        if found is None:
            found = body
        elif body != found:
            broken[each] = "is older"
    if absent == 2:
        raise FileNotFoundError(2, "No such file or directory", str(path))
    if found is None:
        raise ValueError("; ".join(f"{each.name} {what}" for each, what in broken.items()))
    for each in broken:
        write(each, encode(found))
    return found, [f"{each} {what}; it was written anew from its copy" for each, what in broken.items()]

"""Rules of names and paths in the namespace. Pure."""

from __future__ import annotations

from curve_storage.errors import InvalidArgument
from curve_storage.mds.config import MdsConfig
from curve_storage.units import format_size

MAX_NAME = 255
MAX_PATH = 4096
RECYCLE_NAME = "RecycleBin"


def split(path: str) -> list[str]:
    """The names of an absolute path, [] for "/". Raises InvalidArgument naming the rule that it breaks."""

    def bad(why: str) -> InvalidArgument:
        return InvalidArgument(f"{path[:80]!r} is not a path of a volume: {why}", todo="Write it like /team/volume")

    if not path.startswith("/"):
        raise bad("it must start with /")
    if len(path.encode()) > MAX_PATH:
        raise bad(f"it is longer than {MAX_PATH} bytes")
    names = path.strip("/").split("/") if path.strip("/") else []
    for name in names:
        if not name:
            raise bad("a name in it is empty")
        if name in (".", ".."):
            raise bad("'.' and '..' are not names")
        if len(name.encode()) > MAX_NAME:
            raise bad(f"a name in it is longer than {MAX_NAME} bytes")
        if any(ord(char) < 32 or ord(char) == 127 for char in name):
            raise bad("control characters are not allowed in names")
    return names


def split_new(path: str) -> list[str]:
    """Like split, for something to be made: the root and the recycle bin are taken."""
    names = split(path)
    if not names:
        raise InvalidArgument("the root directory always exists", where=path, todo="Give a name: /volume")
    if names[0] == RECYCLE_NAME:
        raise InvalidArgument(
            f"/{RECYCLE_NAME} is kept for deleted volumes", where=path, todo="Choose a path outside of it"
        )
    return names


def check_size(size: int, config: MdsConfig, *, where: str) -> None:
    unit = config.volume_granularity
    if size < config.min_volume_size:
        raise InvalidArgument(
            f"a size of {format_size(size)} is below the minimum of {format_size(config.min_volume_size)}",
            where=where,
            todo=f"Ask for {format_size(config.min_volume_size)} or more",
        )
    if size > config.max_volume_size:
        raise InvalidArgument(
            f"a size of {format_size(size)} is above the maximum of {format_size(config.max_volume_size)}",
            where=where,
            todo=f"Ask for {format_size(config.max_volume_size)} or less",
        )
    if size % unit:
        fitting = -(-size // unit) * unit
        raise InvalidArgument(
            f"a size of {size} bytes is not a multiple of {format_size(unit)}",
            where=where,
            todo=f"Ask for {fitting} bytes ({format_size(fitting)})",
        )

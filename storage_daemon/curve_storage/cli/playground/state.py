"""What a playground remembers in its directory: its mark, its shape, its ports, its processes."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from curve_storage.cli.playground.processes import Identity
from curve_storage.errors import FailedPrecondition, InUse


class Place(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Where one process lives. address: IP it listens at and is reached under; namespace: file of the network namespace
    it is started in, empty for the starter's; data: a chunkserver's directory, empty for one in the playground's."""

    address: str = "127.0.0.1"
    namespace: str = ""
    data: str = ""


class State(msgspec.Struct, forbid_unknown_fields=True):
    """`state.json`. ports: by process and purpose, e.g. "mds1.grpc"; processes: name → (pid, start time); places: by
    process, for those that are not at home."""

    version: int = 1
    mark: str = ""
    chunkservers: int = 3
    pool_size: int = 0
    volumehost: bool = True
    ports: dict[str, int] = {}
    processes: dict[str, tuple[int, int]] = {}
    places: dict[str, Place] = {}

    def place(self, name: str) -> Place:
        return self.places.get(name, _AT_HOME)

    def identity(self, name: str) -> Identity | None:
        known = self.processes.get(name)
        return Identity(*known) if known is not None else None


_AT_HOME = Place()


def load(directory: Path) -> State | None:
    """None when there is no playground there."""
    path = directory / "state.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=State)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise FailedPrecondition(
            f"not the state of a playground: {error}",
            where=str(path),
            todo="Choose another --dir, or remove this file once no process of the playground runs",
        ) from error


def save(directory: Path, state: State) -> None:
    """Replaces the file atomically."""
    path = directory / "state.json"
    temporary = directory / ".state.json.new"
    data = json.dumps(msgspec.to_builtins(state), indent=2) + "\n"
    with temporary.open("w") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def new_mark() -> str:
    return secrets.token_hex(8)


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """One `up` or `down` at a time. Raises InUse when another runs."""
    with (directory / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InUse(
                "another `curve playground` command is at work on this playground",
                where=str(directory),
                todo="Wait until it has ended",
            ) from error
        yield

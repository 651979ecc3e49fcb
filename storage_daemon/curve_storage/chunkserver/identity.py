"""Who this disk is: UUID and secret, never its address. `identity` in the data directory, and a second one beside it.

A first start writes the file with id 0 before it registers, so that a crash right after the registration leads to the
same UUID and the MDS answers with the same id again.
"""

from __future__ import annotations

import fcntl
import os
import uuid as uuid_module
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from curve_storage import twin_file
from curve_storage.chunkserver.atomic_file import write_atomic
from curve_storage.errors import Corruption, FailedPrecondition, InUse
from curve_storage.telemetry import logs

FILE = "identity"
LOCK = "lock"
VERSION = 1
_HARMLESS = {"lost+found", LOCK, FILE + ".tmp"}

log = logs.get("identity")


@dataclass(frozen=True, slots=True)
class Identity:
    """chunkserver_id 0: not registered yet; secret and cluster_id are then empty."""

    uuid: str
    chunkserver_id: int = 0
    secret: str = ""
    cluster_id: str = ""

    @property
    def registered(self) -> bool:
        return self.chunkserver_id != 0

    def registered_as(self, chunkserver_id: int, secret: str, cluster_id: str, *, where: str) -> Identity:
        """This identity with what the MDS answered. Raises FailedPrecondition when the disk belongs elsewhere."""
        if self.registered and self.cluster_id != cluster_id:
            raise FailedPrecondition(
                f"this disk belongs to cluster {self.cluster_id}, the MDS is of cluster {cluster_id}",
                where=where,
                todo="Correct `mds` in the configuration, or empty the directory to give the disk to this cluster",
            )
        if self.registered and self.chunkserver_id != chunkserver_id:
            raise FailedPrecondition(
                f"this disk is chunkserver {self.chunkserver_id}, the MDS calls it {chunkserver_id}",
                where=where,
                todo="The MDS has lost or replaced its state: restore its etcd, or empty the directory",
            )
        return replace(self, chunkserver_id=chunkserver_id, secret=secret or self.secret, cluster_id=cluster_id)


def save(directory: Path, identity: Identity) -> None:
    twin_file.save(directory / FILE, {"version": VERSION, **asdict(identity)}, write_atomic)


def load(directory: Path) -> Identity:
    """The identity of the disk; a new one in an empty (or absent) directory. A damaged file is written anew from its
    copy.

    Raises FailedPrecondition for a directory with foreign content, Corruption when both files are damaged.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / FILE
    try:
        body, repaired = twin_file.load(path, write_atomic)
    except FileNotFoundError:
        return _new(directory)
    except ValueError as error:
        raise _damaged(path) from error
    for sentence in repaired:
        log.warning("identity repaired", what=sentence)
    version = body.pop("version", None)
    if version != VERSION:
        raise FailedPrecondition(
            f"format {version} of the identity file is not known, only {VERSION}",
            where=str(path),
            todo="Run a chunkserver of the version that wrote it, or newer",
        )
    try:
        return Identity(**body)
    except TypeError as error:
        raise _damaged(path) from error


def _new(directory: Path) -> Identity:
    foreign = sorted(set(os.listdir(directory)) - _HARMLESS)
    if foreign:
        raise FailedPrecondition(
            f"the directory is not empty ({', '.join(foreign[:3])}{', …' if len(foreign) > 3 else ''}) "
            "and holds no identity of a chunkserver",
            where=str(directory),
            todo="Give an empty directory as `data`, or remove what is in it if it is not needed",
        )
    identity = Identity(uuid=str(uuid_module.uuid4()))
    save(directory, identity)
    return identity


def check(directory: Path, identity: Identity) -> list[str]:
    """Compares the files with what this process knows, and writes anew what has rotted. Raises OSError."""
    expected = twin_file.encode({"version": VERSION, **asdict(identity)})
    repaired = []
    for path in (directory / FILE, twin_file.copy_of(directory / FILE)):
        if not path.exists() or path.read_bytes() != expected:
            write_atomic(path, expected)
            repaired.append(str(path))
    return repaired


def _damaged(path: Path) -> Corruption:
    return Corruption(
        "the identity file and its copy are damaged",
        where=str(path),
        todo="Empty the directory and start again: the disk joins as a new one. Then let the old one be rebuilt "
        "elsewhere: curve chunkserver drain ID",
    )


def lock(directory: Path) -> int:
    """Holds the directory for this process; the descriptor must stay open. Raises InUse."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise InUse(
            "another chunkserver uses this directory", where=str(directory), todo="Stop it, or give another `data`"
        ) from error
    return descriptor

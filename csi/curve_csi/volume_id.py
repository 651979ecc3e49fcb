"""Volume ids and backend paths: deterministic, so that create is idempotent without a journal.

Id: `1.<cluster>.<poolset>.<volume number, hex>`, at most 128 bytes (the limit of the CSI specification).
Path: `/csi/<name>`, where a request name that is no plain DNS-like word is replaced by its SHA-256.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

from curve_storage.errors import InvalidArgument, NotFound

VERSION = "1"
FOLDER = "/csi"
MAX_ID = 128
_WORD = re.compile(r"^[A-Za-z0-9_-]{1,48}$")
_PLAIN_NAME = re.compile(r"^[a-z0-9]([a-z0-9-]{0,98}[a-z0-9])?$")


class VolumeId(NamedTuple):
    cluster: str
    poolset: str
    number: int

    def __str__(self) -> str:
        return f"{VERSION}.{self.cluster}.{self.poolset}.{self.number:x}"


def make(cluster: str, poolset: str, number: int) -> VolumeId:
    """Raises InvalidArgument when cluster or poolset cannot be part of an id."""
    for what, word in (("cluster id", cluster), ("poolset", poolset)):
        if not _WORD.match(word):
            raise InvalidArgument(
                f"{what} {word!r} cannot be part of a volume id",
                todo="Use at most 48 letters, digits, - and _",
            )
    made = VolumeId(cluster, poolset, number)
    if len(str(made)) > MAX_ID:
        raise InvalidArgument(f"volume id {made} is longer than {MAX_ID} bytes", todo="Use a shorter poolset name")
    return made


def parse(text: str) -> VolumeId:
    """Raises InvalidArgument for an empty id and NotFound for one that no driver of ours has made."""
    if not text:
        raise InvalidArgument(
            "the volume id is empty", where="volume_id", todo="Pass the id that CreateVolume returned"
        )
    parts = text.split(".")
    if len(parts) == 4 and parts[0] == VERSION and re.fullmatch(r"[0-9a-f]{1,16}", parts[3]):
        return VolumeId(parts[1], parts[2], int(parts[3], 16))
    raise NotFound("no volume has this id", where=text[:MAX_ID], todo="Pass the id that CreateVolume returned")


def path_for(name: str) -> str:
    """The path of the volume for a CreateVolume request name (1 to 128 characters, any Unicode)."""
    if not name:
        raise InvalidArgument("the volume name is empty", where="name", todo="Pass a name of 1 to 128 characters")
    if len(name) > 128:
        raise InvalidArgument("the volume name is too long", where="name", todo="Use at most 128 characters")
    if _PLAIN_NAME.match(name):
        return f"{FOLDER}/{name}"
    return f"{FOLDER}/h.{hashlib.sha256(name.encode()).hexdigest()[:40]}"

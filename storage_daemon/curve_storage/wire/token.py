"""Capability tokens: what the data ports accept instead of user names.

A token is a MessagePack payload followed by its HMAC-SHA256 under one key of the cluster's keyring. The MDS signs, the
chunkservers verify; both hold the keyring file. Rotation: add a key and make it active, keep the old one until its
last token has expired, then drop it. The file is re-read when it changes.
"""

from __future__ import annotations

import base64
import hmac
import json
import os
import secrets
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from curve_storage.clock import Clock, SystemClock
from curve_storage.errors import ConfigError, PermissionDenied, Unauthenticated

CLUSTER_SCOPE = "cluster"
_MAC_SIZE = 32
_MAX_TOKEN = 1024
_REREAD_INTERVAL = 1.0
_KEY_SIZE = 32


def volume_scope(volume_id: int) -> str:
    return f"volume:{volume_id}"


class _Body(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    scope: str
    epoch: int
    rights: str
    expires: float
    kid: str


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Body).decode


@dataclass(frozen=True, slots=True)
class Identity:
    """What a verified token grants. volume: the volume id of a volume token, 0 of a cluster token."""

    scope: str
    epoch: int
    rights: str
    expires: float
    volume: int = 0

    @property
    def cluster(self) -> bool:
        return self.scope == CLUSTER_SCOPE

    def check_volume(self, volume: int, *, write: bool, epoch: int = 0) -> None:
        """Raises PermissionDenied unless this token covers `volume` (and writing to it, at `epoch` when given)."""
        if self.volume == 0:
            return
        if volume != self.volume:
            raise PermissionDenied(
                f"the token is for volume {self.volume}, the request for volume {volume}",
                todo="Open the volume at the MDS and use the token it returns",
            )
        if write and self.rights != "rw":
            raise PermissionDenied("the token allows only reading", todo="Open the volume for writing")
        if write and epoch > self.epoch:
            raise PermissionDenied(
                f"the token is of epoch {self.epoch}, the request of {epoch}",
                todo="Use the token returned with this epoch",
            )


class Keyring:
    """Signing keys by id. `load` remembers the file and re-reads it when it changes."""

    def __init__(self, active: str, keys: dict[str, bytes], clock: Clock | None = None) -> None:
        self._check(active, keys, "keyring")
        self.active = active
        self.keys = dict(keys)
        self._clock = clock or SystemClock()
        self._path: Path | None = None
        self._stamp: tuple[int, int, int] = (0, 0, 0)
        self._next_look = 0.0

    @classmethod
    def generate(cls) -> Keyring:
        return cls("k1", {"k1": secrets.token_bytes(_KEY_SIZE)})

    @classmethod
    def load(cls, path: Path, clock: Clock | None = None) -> Keyring:
        """Raises ConfigError naming the file and what is wrong with it."""
        stamp = _stamp(path)
        active, keys = _read(path)
        ring = cls(active, keys, clock)
        ring._path, ring._stamp = path, stamp
        return ring

    def save(self, path: Path) -> None:
        """Replaces the file atomically; readable by its owner only."""
        encoded = {kid: base64.b64encode(key).decode() for kid, key in self.keys.items()}
        text = json.dumps({"active": self.active, "keys": encoded}, indent=2) + "\n"
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        self._path, self._stamp = path, _stamp(path)

    def rotate(self) -> str:
        """Adds a fresh key and makes it active; the older ones keep verifying until `retire`. Returns the new id."""
        number = 1 + max((int(kid[1:]) for kid in self.keys if kid[:1] == "k" and kid[1:].isdigit()), default=0)
        self.active = f"k{number}"
        self.keys[self.active] = secrets.token_bytes(_KEY_SIZE)
        return self.active

    def retire(self, keep: int = 2) -> None:
        """Drops all but the newest `keep` keys (the active one always stays)."""
        old = [kid for kid in self.keys if kid != self.active]
        for kid in old[: max(0, len(old) - (keep - 1))]:
            del self.keys[kid]

    def sign(self, scope: str, *, epoch: int, rights: str, expires: float) -> bytes:
        """expires: wall-clock seconds since 1970. scope: `volume_scope(id)` or CLUSTER_SCOPE."""
        self.refresh()
        body = _encode(_Body(scope, epoch, rights, float(expires), self.active))
        return body + hmac.digest(self.keys[self.active], body, sha256)

    def key(self, kid: str) -> bytes | None:
        self.refresh()
        found = self.keys.get(kid)
        if found is None:
            self.refresh(now=True)  # signed by a key that was added a moment ago
            found = self.keys.get(kid)
        return found

    def refresh(self, *, now: bool = False) -> None:
        """Re-reads the file when it changed, looking at most once a second unless `now`; a broken file is ignored."""
        if self._path is None:
            return
        time = self._clock.monotonic()
        if time < self._next_look and not now:
            return
        self._next_look = time + _REREAD_INTERVAL
        try:
            stamp = _stamp(self._path)
            if stamp == self._stamp:
                return
            self.active, self.keys = _read(self._path)
            self._stamp = stamp
        except ConfigError:
            return  # half-written or gone: the keys in memory stay good

    @staticmethod
    def _check(active: str, keys: dict[str, bytes], where: str) -> None:
        if active not in keys:
            raise ConfigError(f"the active key {active!r} is not among the keys", where=where, todo="Name one of them")
        for kid, key in keys.items():
            if len(key) < 16:
                raise ConfigError(f"key {kid!r} is shorter than 16 bytes", where=where, todo="Generate a new keyring")


TokenSigner = Keyring


class TokenVerifier:
    def __init__(self, keyring: Keyring, clock: Clock | None = None) -> None:
        self._keyring = keyring
        self.clock = clock or SystemClock()

    def verify(self, token: bytes | bytearray | memoryview) -> Identity:
        """Raises Unauthenticated (malformed, forged, expired) or PermissionDenied (a grant unknown to this version)."""
        token = bytes(token)
        if not token:
            raise Unauthenticated("no capability token presented", todo="Open the volume at the MDS to get one")
        if not _MAC_SIZE < len(token) <= _MAX_TOKEN:
            raise Unauthenticated("malformed capability token", todo="Use the token exactly as the MDS returned it")
        body, mac = token[:-_MAC_SIZE], token[-_MAC_SIZE:]
        try:
            fields = _decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Unauthenticated(
                "malformed capability token", todo="Use the token exactly as the MDS returned it"
            ) from error
        key = self._keyring.key(fields.kid)
        if key is None:
            raise Unauthenticated(
                "the token is signed with a key that is not in the keyring",
                todo="Give all daemons of the cluster the same keyring, or ask the MDS for a new token",
            )
        if not hmac.compare_digest(hmac.digest(key, body, sha256), mac):
            raise Unauthenticated("the token's signature is wrong", todo="Ask the MDS of this cluster for a token")
        if not self.clock.wall() < fields.expires:
            raise Unauthenticated("the token has expired", todo="Refresh the session at the MDS to get a new one")
        return _identity(fields)


def _identity(fields: _Body) -> Identity:
    volume = 0
    if fields.scope != CLUSTER_SCOPE:
        kind, _, number = fields.scope.partition(":")
        if kind != "volume" or not number.isascii() or not number.isdigit() or int(number) == 0:
            raise PermissionDenied(f"the token's scope {fields.scope!r} means nothing here", todo="Upgrade this daemon")
        volume = int(number)
    if fields.rights not in ("r", "rw"):
        raise PermissionDenied(f"the token's rights {fields.rights!r} mean nothing here", todo="Upgrade this daemon")
    return Identity(fields.scope, fields.epoch, fields.rights, fields.expires, volume)


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise ConfigError(
            f"cannot read the keyring: {error.strerror}", where=str(path), todo="Name an existing keyring file"
        ) from error
    return stat.st_mtime_ns, stat.st_ino, stat.st_size


def _read(path: Path) -> tuple[str, dict[str, bytes]]:
    todo = 'Expected JSON {"active": "k1", "keys": {"k1": "<base64>"}}'
    try:
        data: Any = json.loads(path.read_text())
        active = data["active"]
        keys = {str(kid): base64.b64decode(key, validate=True) for kid, key in data["keys"].items()}
    except OSError as error:
        raise ConfigError(f"cannot read the keyring: {error.strerror}", where=str(path), todo=todo) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError("not a keyring", where=str(path), todo=todo) from error
    Keyring._check(active, keys, str(path))
    return active, keys

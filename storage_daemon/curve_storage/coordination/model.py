"""What is read from and compared in etcd."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class KeyValue:
    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int


@dataclass(frozen=True, slots=True)
class Lease:
    """ttl: seconds granted, which may be more than asked for."""

    id: int
    ttl: float


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition of a transaction, e.g. `Compare.created(key, revision)`."""

    key: bytes
    target: Literal["create", "mod", "version", "value"]
    operator: Literal["=", "!=", ">", "<"]
    operand: int | bytes

    @classmethod
    def absent(cls, key: bytes) -> Compare:
        return cls(key, "version", "=", 0)

    @classmethod
    def created(cls, key: bytes, revision: int) -> Compare:
        return cls(key, "create", "=", revision)

    @classmethod
    def unchanged(cls, key: bytes, mod_revision: int) -> Compare:
        return cls(key, "mod", "=", mod_revision)

    @classmethod
    def equals(cls, key: bytes, value: bytes) -> Compare:
        return cls(key, "value", "=", value)


@dataclass(frozen=True, slots=True)
class TxnResult:
    """found: what the keys of `otherwise_get` hold, in their order, when a compare failed; empty on success."""

    succeeded: bool
    revision: int
    found: list[KeyValue | None]


@dataclass(frozen=True, slots=True)
class Event:
    """A change seen by a watch. kv.value is empty in a deletion."""

    kind: Literal["put", "delete"]
    kv: KeyValue

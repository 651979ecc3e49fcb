"""Errors in a frame: a status number in the header for counting and filtering, the whole error in the meta.

The numbers are part of the protocol: never reuse one. An error class without a number of its own travels under its
nearest numbered ancestor; its code in the meta still rebuilds the exact class where it is known.
"""

from __future__ import annotations

import msgspec

from curve_storage.errors import CurveError, Internal, NotLeader, all_errors

OK = 0
STATUS: dict[str, int] = {
    "internal": 1,
    "invalid_argument": 2,
    "out_of_range": 3,
    "config": 4,
    "not_found": 5,
    "chunk_not_exist": 6,
    "already_exists": 7,
    "failed_precondition": 8,
    "in_use": 9,
    "fenced": 10,
    "unauthenticated": 11,
    "permission_denied": 12,
    "resource_exhausted": 13,
    "no_space": 14,
    "overloaded": 15,
    "unavailable": 16,
    "not_leader": 17,
    "store_read_only": 18,
    "aborted": 19,
    "deadline_exceeded": 20,
    "cancelled": 21,
    "unimplemented": 22,
    "corruption": 23,
    "disk_failed": 24,
}
_CODE = {number: code for code, number in STATUS.items()}
_MAX_TEXT = 4096


class ErrorBody(msgspec.Struct, omit_defaults=True):
    code: str
    what: str
    where: str = ""
    todo: str = ""
    leader: str = ""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ErrorBody).decode
_classes: dict[str, type[CurveError]] = {}


def status_of(error: CurveError) -> int:
    for cls in type(error).__mro__:
        number = STATUS.get(getattr(cls, "code", ""))
        if number is not None:
            return number
    return STATUS["internal"]


def encode_error(error: CurveError) -> bytes:
    leader = error.leader if isinstance(error, NotLeader) else ""
    return _encode(
        ErrorBody(error.code, error.what[:_MAX_TEXT], error.where[:_MAX_TEXT], error.todo[:_MAX_TEXT], str(leader))
    )


def build_error(body: ErrorBody, fallback: str = "internal") -> CurveError:
    """The exact class named by the body's code; the class of `fallback` when this version does not know it."""
    cls = _classes.get(body.code)
    if cls is None:
        _classes.update(all_errors())
        cls = _classes.get(body.code) or _classes.get(fallback, Internal)
    if issubclass(cls, NotLeader):
        return cls(body.what, leader=body.leader, where=body.where, todo=body.todo)
    return cls(body.what, where=body.where, todo=body.todo)


def decode_error(status: int, meta: bytes | bytearray | memoryview) -> CurveError:
    try:
        body = _decode(meta)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Internal(f"the peer answered with status {status} and an unreadable error body")
    return build_error(body, _CODE.get(status, "internal"))

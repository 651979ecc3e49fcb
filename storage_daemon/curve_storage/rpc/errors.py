"""CurveError ↔ gRPC: a status code every gRPC client understands, and the whole error in trailing metadata.

The metadata `curve-error-bin` is MessagePack {code, what, where, todo, leader}, as in the data plane's error frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

import grpc
import msgspec
from grpc import aio

from curve_storage.errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    Corruption,
    CurveError,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from curve_storage.wire.status import ErrorBody, build_error

METADATA_KEY = "curve-error-bin"
_MAX_TEXT = 1024  # gRPC limits all metadata of a call to 8 KiB
_Code = grpc.StatusCode

_BY_CLASS: dict[type[CurveError], grpc.StatusCode] = {
    InvalidArgument: _Code.INVALID_ARGUMENT,
    OutOfRange: _Code.OUT_OF_RANGE,
    NotFound: _Code.NOT_FOUND,
    AlreadyExists: _Code.ALREADY_EXISTS,
    FailedPrecondition: _Code.FAILED_PRECONDITION,
    Unauthenticated: _Code.UNAUTHENTICATED,
    PermissionDenied: _Code.PERMISSION_DENIED,
    ResourceExhausted: _Code.RESOURCE_EXHAUSTED,
    Unavailable: _Code.UNAVAILABLE,
    Aborted: _Code.ABORTED,
    DeadlineExceeded: _Code.DEADLINE_EXCEEDED,
    Cancelled: _Code.CANCELLED,
    Unimplemented: _Code.UNIMPLEMENTED,
    Corruption: _Code.DATA_LOSS,
}
_BY_CODE: dict[grpc.StatusCode, type[CurveError]] = {code: cls for cls, code in _BY_CLASS.items()}


def grpc_code(error: CurveError) -> grpc.StatusCode:
    for cls in type(error).__mro__:
        code = _BY_CLASS.get(cls)
        if code is not None:
            return code
    return _Code.INTERNAL


def to_metadata(error: CurveError) -> tuple[tuple[str, bytes], ...]:
    body = ErrorBody(
        error.code,
        error.what[:_MAX_TEXT],
        error.where[:_MAX_TEXT],
        error.todo[:_MAX_TEXT],
        str(getattr(error, "leader", ""))[:_MAX_TEXT],
    )
    return ((METADATA_KEY, msgspec.msgpack.encode(body)),)


async def abort(context: aio.ServicerContext, error: CurveError) -> NoReturn:  # type: ignore[type-arg]
    await context.abort(grpc_code(error), str(error)[:_MAX_TEXT], to_metadata(error))
    raise AssertionError("abort returned")


def from_status(
    code: grpc.StatusCode,
    details: str | None,
    trailing: Iterable[tuple[str, str | bytes]] | None,
    where: str = "",
) -> CurveError:
    """The CurveError of a failed call: the peer's own when it sent one, else one by the status code."""
    for key, value in trailing or ():
        if key == METADATA_KEY and isinstance(value, bytes):
            try:
                return build_error(msgspec.msgpack.decode(value, type=ErrorBody))
            except (msgspec.DecodeError, UnicodeDecodeError):
                break
    cls = _BY_CODE.get(code, Internal)
    todo = "Check that the daemon there runs and is reachable" if code is _Code.UNAVAILABLE else ""
    return cls(details or code.name.lower(), where=where, todo=todo)


def from_rpc_error(error: aio.AioRpcError, where: str = "") -> CurveError:
    return from_status(error.code(), error.details(), error.trailing_metadata(), where)

"""The one error tree. Every error says what happened, to what, and what to do about it.

`code` is a stable machine-readable word; the edges map it: `wire.status` to a status number in a frame,
`rpc.errors` to a gRPC status, `cli` to an exit code and a message without a traceback.
"""

from __future__ import annotations

from typing import ClassVar


class CurveError(Exception):
    """Base of every foreseeable failure.

    what: one sentence on what happened; where: the object, path or address concerned; todo: the next step for
    the reader. `retryable` tells callers whether the same request may succeed later without any change.
    """

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, what: str, *, where: str = "", todo: str = "") -> None:
        self.what = what
        self.where = where
        self.todo = todo
        super().__init__(what)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}. {self.todo}" if self.todo else text


class InvalidArgument(CurveError):
    code = "invalid_argument"


class OutOfRange(InvalidArgument):
    code = "out_of_range"


class ConfigError(InvalidArgument):
    code = "config"


class NotFound(CurveError):
    code = "not_found"


class ChunkNotExist(NotFound):
    """The chunk was never written: the reader returns zeros."""

    code = "chunk_not_exist"


class AlreadyExists(CurveError):
    code = "already_exists"


class FailedPrecondition(CurveError):
    code = "failed_precondition"


class InUse(FailedPrecondition):
    code = "in_use"


class Fenced(FailedPrecondition):
    """The writer's (epoch, generation) is older than the volume's: it must stop for good."""

    code = "fenced"


class Unauthenticated(CurveError):
    code = "unauthenticated"


class PermissionDenied(CurveError):
    code = "permission_denied"


class ResourceExhausted(CurveError):
    code = "resource_exhausted"


class NoSpace(ResourceExhausted):
    code = "no_space"
    retryable = True


class Overloaded(ResourceExhausted):
    code = "overloaded"
    retryable = True


class Unavailable(CurveError):
    code = "unavailable"
    retryable = True


class NotLeader(Unavailable):
    """`leader`: a node id (data plane) or an address (control plane); empty when unknown."""

    code = "not_leader"

    def __init__(self, what: str, *, leader: str = "", where: str = "", todo: str = "") -> None:
        super().__init__(what, where=where, todo=todo)
        self.leader = leader


class StoreReadOnly(Unavailable):
    """The disk is full or protecting itself; reads go on, writes wait."""

    code = "store_read_only"


class Aborted(CurveError):
    """The outcome is unknown or another operation is under way; the caller may repeat it."""

    code = "aborted"
    retryable = True


class DeadlineExceeded(CurveError):
    code = "deadline_exceeded"
    retryable = True


class Cancelled(CurveError):
    code = "cancelled"


class Unimplemented(CurveError):
    code = "unimplemented"


class Corruption(CurveError):
    code = "corruption"


class DiskFailed(CurveError):
    """EIO or a failed fsync: the process must not go on using this disk."""

    code = "disk_failed"


class Internal(CurveError):
    code = "internal"


def all_errors() -> dict[str, type[CurveError]]:
    """Every concrete class by its code, for the edges that rebuild errors from the wire."""
    found: dict[str, type[CurveError]] = {}
    pending: list[type[CurveError]] = [CurveError]
    while pending:
        cls = pending.pop()
        pending.extend(cls.__subclasses__())
        if cls is not CurveError:
            found[cls.code] = cls
    return found

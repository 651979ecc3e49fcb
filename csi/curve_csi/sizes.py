"""From a capacity range to a volume size: whole GiB, at least one. Pure."""

from __future__ import annotations

from curve_csi.proto import csi_pb2 as csi
from curve_storage.errors import InvalidArgument, OutOfRange
from curve_storage.units import GiB, format_size

GRANULARITY = GiB
MINIMUM = GiB
DEFAULT = 10 * GiB


def choose(wanted: csi.CapacityRange, default: int = DEFAULT) -> int:
    """Bytes; raises InvalidArgument for a negative range, OutOfRange when no whole GiB lies in it."""
    required, limit = wanted.required_bytes, wanted.limit_bytes
    if required < 0 or limit < 0:
        raise InvalidArgument("the capacity range is negative", where="capacity_range", todo="Pass sizes of 0 or more")
    if limit and required > limit:
        raise OutOfRange(
            f"required {format_size(required)} is above the limit {format_size(limit)}",
            where="capacity_range",
            todo="Raise the limit",
        )
    size = max(MINIMUM, -(-required // GRANULARITY) * GRANULARITY) if required else default
    if limit and size > limit:
        size = limit // GRANULARITY * GRANULARITY
        if size < max(required, MINIMUM):
            raise OutOfRange(
                f"no whole GiB lies between {format_size(required)} and {format_size(limit)}",
                where="capacity_range",
                todo="Volumes are whole GiB, at least 1 GiB: raise the limit",
            )
    return size

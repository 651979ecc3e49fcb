"""How much can be stored, and how much has been promised. Pure arithmetic, all in bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from curve_storage.errors import NoSpace
from curve_storage.units import format_size


def usable(zone_capacities: Sequence[int], replicas: int, zones: int) -> int:
    """The most data that fits `replicas` times when no zone may hold more than `replicas - zones + 1` copies of a byte.

    With as many zones as replicas this is the largest x with sum(min(capacity, x)) ≥ replicas · x: a zone much larger
    than the others cannot be used up.
    """
    copies_per_zone = max(1, replicas - zones + 1)
    if len(zone_capacities) < zones or not zone_capacities:
        return 0
    low, high = 0, sum(zone_capacities) // replicas
    while low < high:
        middle = (low + high + 1) // 2
        if sum(min(capacity, copies_per_zone * middle) for capacity in zone_capacities) >= replicas * middle:
            low = middle
        else:
            high = middle - 1
    return low


def check_promise(*, poolset: str, capacity: int, promised: int, wanted: int, over_provisioning: float) -> None:
    """Raises NoSpace with the figures when `wanted` more bytes go beyond capacity × over_provisioning."""
    limit = int(capacity * over_provisioning)
    if promised + wanted <= limit:
        return
    raise NoSpace(
        f"{format_size(wanted)} more do not fit: poolset {poolset} holds {format_size(capacity)} of data, "
        f"{format_size(promised)} are promised to volumes and {format_size(max(0, limit - promised))} are left"
        + (f" (over-provisioning {over_provisioning:g})" if over_provisioning != 1 else ""),
        where=f"poolset {poolset}",
        todo="Add chunkservers, delete volumes, empty the recycle bin, or raise over_provisioning of the MDS",
    )


def by_zone(capacities: Mapping[int, tuple[str, int]]) -> list[int]:
    """chunkserver → (zone, capacity) summed up per zone."""
    zones: dict[str, int] = {}
    for zone, capacity in capacities.values():
        zones[zone] = zones.get(zone, 0) + capacity
    return list(zones.values())

"""Making a range read as zeros: whole blocks are discarded, what is left at the edges is written."""

from __future__ import annotations

from dataclasses import dataclass

from curve_storage.attach.device import BlockDevice
from curve_storage.units import BLOCK_SIZE

_ZEROS = memoryview(bytes(BLOCK_SIZE))


@dataclass(frozen=True, slots=True)
class Plan:
    """(offset, length) of the aligned middle and of the edges to be written; lengths may be 0."""

    middle: tuple[int, int]
    edges: tuple[tuple[int, int], ...]


def plan(offset: int, length: int, block: int = BLOCK_SIZE) -> Plan:
    end = offset + length
    first = -(-offset // block) * block
    last = end // block * block
    if first > last:  # within one block
        return Plan((offset, 0), ((offset, length),) if length else ())
    edges = ((offset, first - offset), (last, end - last))
    return Plan((first, last - first), tuple(edge for edge in edges if edge[1] > 0))


async def zero(device: BlockDevice, offset: int, length: int) -> None:
    ranges = plan(offset, length)
    if ranges.middle[1]:
        await device.discard(*ranges.middle)
    for start, size in ranges.edges:
        await device.write(start, _ZEROS[:size])

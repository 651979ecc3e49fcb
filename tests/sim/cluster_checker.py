"""What clients did and saw, and whether one order explains it: linearizability of every block, with fencing.

A unit is a block of 4 KiB, or a sector of 512 bytes in blocks that are written in parts. Every write puts a number of
its own into each unit, with the unit's place, so what is read names the write it came from; zeros are 0. A write whose
answer never came may have taken effect at any time later, or never. A write of an older writer takes no effect after
one of a newer writer did, nor after the volume was attached anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from struct import Struct
from typing import Any

BLOCK = 4096
SECTOR = 512
_PATTERN = Struct("<QII")
_MOST_ORDERS = 20_000

Writer = tuple[int, int]
"""(epoch, number of the opening)"""
Unit = tuple[str, int, int]
"""(volume, block, sector); sector -1: the whole block"""


@dataclass(eq=False, slots=True)
class Operation:
    number: int
    what: str
    writer: Writer
    reading: bool
    units: tuple[Unit, ...]
    begun: int
    values: dict[Unit, int] = field(default_factory=dict)
    done: int = -1


def pattern(number: int, unit: Unit) -> bytes:
    size = BLOCK if unit[2] < 0 else SECTOR
    return _PATTERN.pack(number, unit[1], unit[2] & 0xFFFF) * (size // _PATTERN.size)


class Broken(Exception):
    """upto: the line of the trace at which it shows."""

    def __init__(self, what: str, upto: int) -> None:
        super().__init__(what)
        self.upto = upto


class History:
    def __init__(self, world: Any) -> None:
        self.world = world
        self.operations = 0
        self.acknowledged = 0
        self.reads = 0
        self.fences: dict[str, int] = {}
        """Volume → the epoch that its last attachment has made certain."""
        self._fenced_at: dict[tuple[str, int], int] = {}
        self._events: dict[Unit, list[tuple[str, Any, int]]] = {}

    def _line(self) -> int:
        return len(self.world.trace)

    def begin(
        self, who: str, what: str, writer: Writer, units: Iterable[Unit], *, reading: bool = False, zeros: bool = False
    ) -> Operation:
        self.operations += 1
        operation = Operation(self.operations, what, writer, reading, tuple(units), self._line())
        if not reading:
            operation.values = dict.fromkeys(operation.units, 0 if zeros else operation.number)
        self.world.events += 1
        self.world.note(who, f"#{operation.number} {what}")
        for unit in operation.units:
            self._events.setdefault(unit, []).append(("begin", operation, self._line()))
        return operation

    def end(self, who: str, operation: Operation) -> None:
        operation.done = self._line() + 1
        self.world.note(who, f"#{operation.number} done")
        self.acknowledged += not operation.reading
        self.reads += operation.reading
        for unit in operation.units:
            self._events[unit].append(("end", operation, self._line()))
        if not operation.reading:
            volume = operation.units[0][0]
            if operation.begun > self._fenced_at.get((volume, operation.writer[0] + 1), 1 << 60):
                self.world.fail(f"a fenced writer's write was acknowledged: #{operation.number} {operation.what}")

    def fence(self, volume: str, epoch: int) -> None:
        """An attachment was answered: from here on nothing of an older epoch takes effect."""
        self.world.note("-", f"{volume} is attached at epoch {epoch}")
        for older in range(self.fences.get(volume, 0) + 1, epoch + 1):
            self._fenced_at[volume, older] = self._line()
        self.fences[volume] = epoch
        for unit, events in self._events.items():
            if unit[0] == volume:
                events.append(("fence", epoch, self._line()))

    def decode(self, operation: Operation, data: bytes, first: int) -> None:
        """Takes what a read of `operation.units` returned, from block `first`."""
        for unit in operation.units:
            start = (unit[1] - first) * BLOCK + max(0, unit[2]) * SECTOR
            size = BLOCK if unit[2] < 0 else SECTOR
            found = data[start : start + size]
            number, block, sector = _PATTERN.unpack_from(found)
            if found.count(0) == size:
                operation.values[unit] = 0
                continue
            if found != found[: _PATTERN.size] * (size // _PATTERN.size):
                self.world.fail(f"a mixture was read by #{operation.number} {operation.what} in {unit}")
            elif (block, sector) != (unit[1], unit[2] & 0xFFFF):
                self.world.fail(f"#{operation.number} {operation.what} in {unit} got what belongs to {block}/{sector}")
            operation.values[unit] = number

    # --- the check ---------------------------------------------------------------------------------------------------

    def check(self) -> int:
        """Over everything so far; the number of units that were checked to the end. Raises Broken."""
        return sum(_check_unit(unit, events) for unit, events in sorted(self._events.items()))


_Config = tuple[int, Writer, frozenset[int]]
"""Value, newest writer that took effect, pending operations that took effect already."""


def _check_unit(unit: Unit, events: list[tuple[str, Any, int]]) -> bool:
    seen = {op.values[unit] for kind, op, _ in events if kind == "end" and op.reading}
    pending: dict[int, tuple[bool, int, Writer]] = {}
    configs: set[_Config] = {(0, (0, 0), frozenset())}
    log: list[str] = []

    def absorb(config: _Config) -> _Config:
        value, newest, taken = config
        reads = [n for n, (reading, wanted, _) in pending.items() if reading and n not in taken and wanted == value]
        return (value, newest, taken | frozenset(reads)) if reads else config

    def reachable(start: set[_Config], target: int | None) -> set[_Config]:
        """Every state that follows by letting pending operations take effect; with `target`, where it first has."""
        found: set[_Config] = set()
        visited: set[_Config] = set()
        stack = [absorb(config) for config in start]
        while stack:
            config = stack.pop()
            if config in visited:
                continue
            visited.add(config)
            if len(visited) > _MOST_ORDERS:
                raise OverflowError
            _, newest, taken = config
            if target is None:
                found.add(config)
            elif target in taken:
                found.add(config)
                continue
            for number, (reading, new, writer) in pending.items():
                if not reading and number not in taken and writer >= newest:
                    stack.append(absorb((new, writer, taken | {number})))
        return found

    for kind, subject, line in events:
        if kind == "fence":
            configs = {(value, max(newest, (subject, 0)), taken) for value, newest, taken in reachable(configs, None)}
            log.append(f"fence {subject}")
            continue
        op: Operation = subject
        if kind == "begin":
            if op.reading and op.done < 0:
                continue
            value = op.values.get(unit, 0)
            if not op.reading and op.done < 0 and value and value not in seen:
                continue  # nobody has ever seen it
            pending[op.number] = (op.reading, value, op.writer)
            log.append(f"#{op.number} {op.what} by {op.writer}{f' gets {value}' if op.reading else f' puts {value}'}")
            continue
        log.append(f"#{op.number} done")
        try:
            configs = {(value, newest, taken - {op.number}) for value, newest, taken in reachable(configs, op.number)}
        except OverflowError:
            return False  # too many orders to try: this unit stays unchecked from here on
        del pending[op.number]
        if not configs:
            raise Broken(
                f"no order explains #{op.number} {op.what} in {unit} (value {op.values.get(unit)}):\n  "
                + "\n  ".join(log[-25:]),
                line,
            )
    return True

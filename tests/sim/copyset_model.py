"""What one copyset must hold after each entry of its log: written anew, shares nothing with the product."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from curve_storage.chunkserver import commands
from curve_storage.units import BLOCK_SIZE, CHUNK_SIZE
from curve_storage.wire.messages import ChunkMeta

CHUNKS = 5
SPAN = 24
"""Blocks of each chunk that are written."""


@dataclass
class Volume:
    fence: int = 0
    writer: tuple[int, int] = (0, 0)
    low: int = 0
    applied: frozenset[int] = frozenset()


@dataclass
class State:
    """blocks: (chunk, block) → number written there; volumes: id → who may write and what was applied."""

    blocks: dict[tuple[int, int], int] = field(default_factory=dict)
    volumes: dict[int, Volume] = field(default_factory=dict)

    def admit(self, meta: ChunkMeta) -> str:
        volume = self.volumes.get(meta.volume, Volume())
        writer = (meta.epoch, meta.generation)
        if meta.epoch < volume.fence or writer < volume.writer:
            return "fenced"
        if writer > volume.writer:
            volume = Volume(meta.epoch, writer, meta.low, frozenset())
        low = max(volume.low, meta.low)
        verdict = "stale" if meta.seq < low else "again" if meta.seq in volume.applied else "apply"
        applied = volume.applied | {meta.seq} if verdict == "apply" else volume.applied
        self.volumes[meta.volume] = Volume(
            volume.fence, writer, low, frozenset(number for number in applied if number >= low)
        )
        return verdict

    def after(self, command: Command) -> tuple[State, str]:
        """The next state, and what `apply` must answer: "apply", "again", "fenced" or "stale"."""
        state = State(dict(self.blocks), dict(self.volumes))
        meta = command.meta
        if meta is None:
            volume = state.volumes.get(command.volume, Volume())
            state.volumes[command.volume] = Volume(
                max(volume.fence, command.epoch), volume.writer, volume.low, volume.applied
            )
            return state, "apply"
        verdict = state.admit(meta)
        if verdict == "apply":
            first, count = meta.offset // BLOCK_SIZE, meta.length // BLOCK_SIZE
            for number in range(first, min(first + count, SPAN)):
                if command.numbers:
                    state.blocks[meta.chunk, number] = command.numbers[number - first]
                else:
                    state.blocks.pop((meta.chunk, number), None)
        return state, verdict


@dataclass
class Command:
    header: bytes
    payload: bytes = b""
    meta: ChunkMeta | None = None
    numbers: list[int] = field(default_factory=list)
    volume: int = 0
    epoch: int = 0


def content(number: int) -> bytes:
    return number.to_bytes(8, "little") * (BLOCK_SIZE // 8) if number else bytes(BLOCK_SIZE)


class Clients:
    """Seeded writers of two volumes: writes, discards, deletes, repeats, late ones, takeovers, fences."""

    def __init__(self, rng: random.Random, group: int) -> None:
        self.rng = rng
        self.group = group
        self.number = 0
        self.seq = {5: 0, 6: 0}
        self.writer = {5: (1, 1), 6: (1, 1)}
        self.past: list[Command] = []

    def command(self) -> Command:
        rng = self.rng
        kind = rng.random()
        if self.past and kind < 0.12:
            return rng.choice(self.past[-6:])  # sent again, or late
        volume = rng.choice((5, 6))
        if kind < 0.16:
            epoch, generation = self.writer[volume]
            self.writer[volume] = (epoch + 1, 1) if rng.random() < 0.5 else (epoch, generation + 1)
            self.seq[volume] = 0
        elif kind < 0.2:
            epoch = self.writer[volume][0] + rng.randrange(2)
            self.writer[volume] = max(self.writer[volume], (epoch, 1))
            return Command(commands.fence(volume, epoch), volume=volume, epoch=epoch)
        self.seq[volume] += 1
        seq = self.seq[volume]
        epoch, generation = self.writer[volume]
        chunk = volume * 16 + rng.randrange(CHUNKS)
        first = rng.randrange(SPAN)

        def meta(offset: int, length: int) -> ChunkMeta:
            return ChunkMeta(
                self.group, chunk, volume, epoch, generation, offset, length, 0, seq, max(1, seq - rng.randrange(4))
            )

        if kind < 0.8:
            count = min(rng.choice((1, 1, 3, 6)), SPAN - first)
            numbers = [self.number + each for each in range(1, count + 1)]
            self.number += count
            what = meta(first * BLOCK_SIZE, count * BLOCK_SIZE)
            made = Command(commands.WRITE_PREFIX + what.pack(), b"".join(map(content, numbers)), what, numbers)
        elif kind < 0.92:
            what = meta(first * BLOCK_SIZE, (SPAN - first) * BLOCK_SIZE)
            made = Command(commands.DISCARD_PREFIX + what.pack(), b"", what)
        else:
            what = meta(0, CHUNK_SIZE)
            made = Command(commands.DELETE_PREFIX + what.pack(), b"", what)
        self.past.append(made)
        return made

"""Metas of the data port's rarer requests, as msgpack maps."""

from __future__ import annotations

import msgspec


class GroupMeta(msgspec.Struct):
    group: int


class ChunkOfGroup(msgspec.Struct):
    group: int
    chunk: int


class FenceMeta(msgspec.Struct):
    group: int
    volume: int
    epoch: int


class DeleteVolumeMeta(msgspec.Struct):
    group: int
    volume: int
    chunks: list[int]

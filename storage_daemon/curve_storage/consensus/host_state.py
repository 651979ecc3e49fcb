"""What the parts of the host share: the engine, the loop's turn, and what waits for results."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from curve_storage.clock import Clock
from curve_storage.consensus.config import ConsensusConfig
from curve_storage.consensus.disk import DiskFile
from curve_storage.consensus.engine import Engine
from curve_storage.consensus.host_metrics import HostMetrics
from curve_storage.errors import CurveError
from curve_storage.wire.channel import Channel


class Waiting(NamedTuple):
    """A proposal (`size` > 0 bytes count against the bound) or a read (0)."""

    future: asyncio.Future[Any]
    size: int


class HostParts(Protocol):
    """The host as its own parts (snapshots, checkpoints) see it."""

    node_id: int
    engine: Engine
    clock: Clock
    config: ConsensusConfig
    metrics: HostMetrics

    def schedule(self) -> None:
        """Asks for a flush in this turn of the loop."""
        ...

    def channel(self, node: int) -> Channel | None: ...

    def fatal(self, error: CurveError) -> None: ...

    def spawn(self, work: Any, name: str) -> asyncio.Task[None]: ...

    async def in_background(self, action: Callable[[], Any]) -> Any:
        """Runs file work in the maintenance thread."""
        ...

    def recycle(self, files: list[DiskFile]) -> None: ...

"""The open session of a volume at the MDS: writer identity, capability token, renewal.

Renewal runs beside I/O and never in its way: while the MDS is away, I/O goes on with what is known. A session that the
MDS has forgotten is opened anew at the same epoch, which gives the writer a higher generation.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

from curve_storage.client.retry import Backoff
from curve_storage.client.stall import StallMonitor
from curve_storage.clock import Clock
from curve_storage.errors import (
    CurveError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
)
from curve_storage.proto import mds_pb2
from curve_storage.rpc.leader import MdsClient
from curve_storage.telemetry import logs

OPEN_TIMEOUT = 5.0
RENEW_TIMEOUT = 5.0
_log = logs.get("client")


def client_name() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


class Session:
    """epoch, generation: the writer's identity in every request; token: for the data port, b"" before `open`."""

    def __init__(
        self,
        mds: MdsClient,
        clock: Clock,
        *,
        path: str,
        volume_id: int,
        epoch: int,
        read_only: bool,
    ) -> None:
        self._mds = mds
        self._clock = clock
        self._ref = mds_pb2.VolumeRef(id=volume_id) if volume_id else mds_pb2.VolumeRef(path=path)
        self.read_only = read_only
        self._rights = mds_pb2.RIGHTS_READ if read_only else mds_pb2.RIGHTS_READ_WRITE
        self._id = ""
        self._ttl = 30.0
        self._renewal: asyncio.Task[None] | None = None
        self._reopening: asyncio.Task[None] | None = None
        self.volume = mds_pb2.Volume(path=path, id=volume_id)
        self.volume_id = volume_id
        self.epoch = epoch
        self.generation = 0
        self.token = b""
        self.on_volume: Callable[[mds_pb2.Volume], None] = lambda _volume: None
        self.on_lost: Callable[[CurveError], None] = lambda _error: None

    @property
    def id(self) -> str:
        return self._id

    async def open(self, timeout: float = OPEN_TIMEOUT) -> None:
        """Raises NotFound, Fenced, InUse and the like when the MDS refuses; Unavailable when it cannot be reached."""
        reply = await self._mds.namespace.OpenVolume(
            mds_pb2.OpenVolumeRequest(volume=self._ref, epoch=self.epoch, rights=self._rights, client=client_name()),
            timeout=timeout,
        )
        self._ref = mds_pb2.VolumeRef(id=reply.volume.id)
        self.volume_id = reply.volume.id
        self.epoch = reply.epoch
        self.generation = reply.generation
        self._id = reply.session
        self._ttl = reply.session_ttl_ms / 1000 or 30.0
        self.token = reply.token
        self._take(reply.volume)

    def keep(self) -> None:
        """Starts the renewal, three times per TTL."""
        self._renewal = asyncio.get_running_loop().create_task(self._renew_forever())

    async def renew(self, timeout: float = RENEW_TIMEOUT) -> None:
        """One renewal; takes over size, throttle and token. NotFound: the MDS has forgotten the session."""
        reply = await self._mds.namespace.RefreshSession(
            mds_pb2.RefreshSessionRequest(volume_id=self.volume_id, session=self._id), timeout=timeout
        )
        if reply.token and reply.token != self.token:
            self.token = reply.token  # open connections present it with their next request
            self._take(reply.volume)

    async def renew_or_reopen(self, generation: int, timeout: float = RENEW_TIMEOUT) -> None:
        """A fresh token, in a new session if need be; concurrent callers share one attempt. `generation`: of the
        request that was refused; when the session is newer already, nothing is to be done."""
        if generation != self.generation:
            return
        if self._reopening is None or self._reopening.done():
            self._reopening = asyncio.get_running_loop().create_task(self._renew_or_reopen(timeout))
        await asyncio.shield(self._reopening)

    async def close(self) -> None:
        """Gives the session back, if the MDS can be told soon; otherwise it runs out by itself."""
        tasks = [task for task in (self._renewal, self._reopening) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not self._id:
            return
        try:
            await self._mds.namespace.CloseVolume(
                mds_pb2.CloseVolumeRequest(volume_id=self.volume_id, session=self._id), timeout=2.0
            )
        except CurveError as error:
            _log.info("session_not_closed", volume=self.volume.path, error=str(error))

    def _take(self, volume: mds_pb2.Volume) -> None:
        if volume.size:
            self.volume = volume
            self.on_volume(volume)

    async def _renew_or_reopen(self, timeout: float) -> None:
        try:
            try:
                await self.renew(timeout)
            except (NotFound, Unauthenticated):
                await self.open(timeout)
        except (NotFound, FailedPrecondition, PermissionDenied, InvalidArgument) as error:
            # The volume is gone, or somebody else writes to it: this session has no future.
            self.on_lost(error)
            raise

    async def _renew_forever(self) -> None:
        failing = False
        while True:
            await asyncio.sleep(self._ttl / 3)
            try:
                await self.renew_or_reopen(self.generation)
            except (NotFound, FailedPrecondition, PermissionDenied, InvalidArgument) as error:
                _log.error("session_lost", volume=self.volume.path, error=str(error))
                return
            except CurveError as error:
                if not failing:
                    _log.warning("session_renewal_waits", volume=self.volume.path, error=str(error))
                failing = True
            else:
                if failing:
                    _log.info("session_renewed", volume=self.volume.path)
                failing = False


async def open_patiently(session: Session, patience: float | None, clock: Clock, stall: StallMonitor) -> None:
    """Opens; while the cluster is away, waits up to `patience` seconds (None: without end). Refusals raise at once."""
    deadline = None if patience is None else clock.monotonic() + patience
    backoff = Backoff(0.1, 2.0)
    while True:
        try:
            await session.open(OPEN_TIMEOUT if deadline is None else max(0.1, deadline - clock.monotonic()))
        except CurveError as error:
            if not error.retryable or (deadline is not None and clock.monotonic() >= deadline):
                raise
            stall.waiting(-1, f"the MDS to open the volume: {error}")
        else:
            stall.done(-1)
            return
        await asyncio.sleep(backoff.next())

"""The beat to the MDS: what this disk and its copysets are, and the orders that come back.

Reports go on change, in full every n-th time, after a failed beat, and when the MDS asks. Orders are level-triggered:
one that does not fit (another epoch, a change under way) is dropped, and comes again if it still holds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

from curve_storage import __version__
from curve_storage.chunkserver import reports
from curve_storage.chunkserver.addresses import AddressBook
from curve_storage.chunkserver.copysets import Copysets
from curve_storage.chunkserver.disk_state import DiskMonitor
from curve_storage.chunkserver.identity import Identity
from curve_storage.chunkserver.pool import ChunkPool
from curve_storage.chunkserver.statistics import Statistics
from curve_storage.clock import Clock
from curve_storage.consensus.api import ConsensusHost, Role
from curve_storage.errors import CurveError, DiskFailed
from curve_storage.proto import mds_pb2
from curve_storage.rpc.leader import MdsClient
from curve_storage.telemetry import logs
from curve_storage.units import CHUNK_SIZE
from curve_storage.wire.messages import group_id

_Order = mds_pb2.CopysetOrder

log = logs.get("heartbeat")


class Heartbeat:
    def __init__(
        self,
        mds: MdsClient,
        identity: Identity,
        address: str,
        host: ConsensusHost,
        copysets: Copysets,
        pool: ChunkPool,
        disk: DiskMonitor,
        book: AddressBook,
        statistics: Statistics,
        clock: Clock,
        *,
        interval: float,
        full_every: int,
    ) -> None:
        self._mds = mds
        self._identity = identity
        self._address = address
        self._host = host
        self._copysets = copysets
        self._pool = pool
        self._disk = disk
        self._book = book
        self._statistics = statistics
        self._clock = clock
        self._interval = interval
        self._full_every = full_every
        self._beats = 0
        self._want_full = True
        self._sent: dict[int, tuple[object, ...]] = {}  # group → what the MDS has acknowledged
        self._tasks: set[asyncio.Task[None]] = set()
        self.last_success: float | None = None
        self.problem = ""
        self.retired = False

    async def run(self) -> None:
        """Beats until cancelled."""
        try:
            while True:
                started = self._clock.monotonic()
                await self.beat()
                await asyncio.sleep(max(0.0, started + self._interval - self._clock.monotonic()))
        finally:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def beat(self) -> bool:
        """One exchange; False when the MDS did not take it."""
        request, signatures = self._request()
        try:
            reply = await self._mds.heartbeat.Report(request, timeout=max(3.0, 3 * self._interval))
        except CurveError as error:
            self._want_full = True
            if str(error) != self.problem:
                log.warning("heartbeat failed", error=str(error))
            self.problem = str(error)
            return False
        if self.problem:
            log.info("heartbeat works again")
            self.problem = ""
        self.last_success = self._clock.monotonic()
        self._want_full = reply.want_full
        self._sent = signatures
        if reply.retired and not self.retired:
            log.warning("the MDS has retired this chunkserver")
        self.retired = reply.retired
        self._book.update(reply.addresses)
        for order in reply.orders:
            try:
                self._carry_out(order)
            except DiskFailed as error:
                self._disk.failed(error)
            except CurveError as error:
                log.warning("order not carried out", order=_Order.Kind.Name(order.kind), error=str(error))
        return True

    def _request(self) -> tuple[mds_pb2.HeartbeatRequest, dict[int, tuple[object, ...]]]:
        statuses = self._host.statuses()
        signatures = {status.group: reports.signature(status) for status in statuses}
        damaged = [group for group in self._copysets.damaged if group not in signatures]
        signatures.update(dict.fromkeys(damaged, reports.DAMAGED))
        gone = self._sent.keys() - signatures.keys()
        full = self._want_full or bool(gone) or self._beats % self._full_every == 0
        self._beats += 1
        known = {} if full else self._sent
        news = [reports.report(one) for one in statuses if known.get(one.group) != signatures[one.group]]
        news += [reports.damaged(group) for group in damaged if known.get(group) != reports.DAMAGED]
        state, message = self._disk.state()
        pool = self._pool.status()
        rates = self._statistics.rates(self._clock.monotonic())
        request = mds_pb2.HeartbeatRequest(
            chunkserver_id=self._identity.chunkserver_id,
            secret=self._identity.secret,
            address=self._address,
            full=full,
            copysets=news,
            disk=state,
            disk_message=message,
            capacity=pool.target * CHUNK_SIZE if pool.formatting else pool.total * CHUNK_SIZE,
            used=self._pool.used * CHUNK_SIZE,
            format_percent=pool.format_percent,
            read_iops=rates.read_iops,
            write_iops=rates.write_iops,
            read_bps=rates.read_bps,
            write_bps=rates.write_bps,
            version=__version__,
        )
        return request, signatures

    def _carry_out(self, order: mds_pb2.CopysetOrder) -> None:
        group = group_id(order.pool_id, order.copyset_id)
        if order.kind == _Order.CREATE:
            self._copysets.create(group, reports.founding_membership(order), self._host)
            return
        if order.kind == _Order.REMOVE_REPLICA:
            self._remove(group, order.epoch)
            return
        if group not in self._copysets.by_group:
            return
        status = self._host.status(group)
        if status.role is not Role.LEADER or order.epoch != status.membership.epoch or status.change == "running":
            return
        if order.kind == _Order.TRANSFER_LEADER:
            self._host.transfer_leader(group, order.target)
            return
        voters = reports.voters_after(order, status.membership)
        if voters is not None:
            log.info("membership change ordered", group=group, voters=voters)
            self._host.change_members(group, voters)

    def _remove(self, group: int, epoch: int) -> None:
        """Purges a replica that is no member any more. One that knows a newer configuration than the order stays."""
        if group in self._copysets.by_group:
            status = self._host.status(group)
            newer = epoch and epoch < status.membership.epoch
            if newer or (status.role is Role.LEADER and self._host.node_id in status.membership.voters):
                log.warning("removal refused: this replica is a member", group=group, epoch=status.membership.epoch)
                return
        elif group not in self._copysets.damaged:
            return
        self._start(self._removal(group))

    async def _removal(self, group: int) -> None:
        try:
            await self._copysets.remove(group, self._host)
        except DiskFailed as error:
            self._disk.failed(error)
        except CurveError as error:
            log.warning("replica not removed", group=group, error=str(error))

    async def keep_house(self, interval: float = 1.0) -> None:
        """Until cancelled: trash, recycled when old enough and at once when the pool runs out; a look at free space."""
        while True:
            await asyncio.sleep(interval)
            self._disk.look_again()
            urgent = not self._pool.accepts_new_chunk() and not self._pool.status().formatting
            try:
                self._copysets.empty_trash(time.time(), urgent=urgent)
            except DiskFailed as error:
                self._disk.failed(error)
            except CurveError as error:
                log.warning("the trash is not emptied", error=str(error))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

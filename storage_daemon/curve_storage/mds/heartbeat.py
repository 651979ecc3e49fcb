"""Heartbeats: reports in, orders out.

Orders are level-triggered: they follow from state and reports alone and are given again with every reply until a
report shows their effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import msgspec

from curve_storage.mds.core import Core
from curve_storage.mds.monitor import Beat, Replica
from curve_storage.mds.operators import Change, Finished, Operator
from curve_storage.mds.picture import RETIRED
from curve_storage.mds.records import CopysetRecord
from curve_storage.mds.state import CopysetKey
from curve_storage.mds.store import MAX_CHANGES
from curve_storage.mds.topology import Topology
from curve_storage.mds.view import StepKind


class OrderKind(Enum):
    CREATE = 0
    REMOVE_REPLICA = 1
    TRANSFER_LEADER = 2
    ADD_PEER = 3
    REMOVE_PEER = 4
    CHANGE_PEER = 5


_ORDER_OF = {
    StepKind.TRANSFER_LEADER: OrderKind.TRANSFER_LEADER,
    StepKind.ADD_PEER: OrderKind.ADD_PEER,
    StepKind.REMOVE_PEER: OrderKind.REMOVE_PEER,
    StepKind.CHANGE_PEER: OrderKind.CHANGE_PEER,
}


@dataclass(frozen=True, slots=True)
class Order:
    kind: OrderKind
    copyset: CopysetKey
    epoch: int
    target: int = 0
    old: int = 0
    members: tuple[int, ...] = ()


@dataclass(slots=True)
class Answer:
    orders: list[Order] = field(default_factory=list)
    addresses: dict[int, str] = field(default_factory=dict)
    want_full: bool = False
    retired: bool = False


class Heartbeats:
    def __init__(self, core: Core, topology: Topology) -> None:
        self._core = core
        self._topology = topology

    async def report(
        self,
        chunkserver: int,
        secret: str,
        *,
        address: str,
        full: bool,
        beat: Beat,
        replicas: Sequence[tuple[CopysetKey, Replica]],
    ) -> Answer:
        record = self._topology.authenticate(chunkserver, secret)
        core = self._core
        now = core.clock.monotonic()
        state = core.monitor.beat(chunkserver, beat, now, core.clock.wall())
        for key, replica in replicas:
            core.monitor.report(chunkserver, key, replica)
        if full:
            expected = core.tables.copysets_of.get(chunkserver, set())
            core.monitor.full_report(chunkserver, {key for key, _ in replicas}, expected, now)
        await self._topology.learn(record, address=address, capacity=beat.capacity, version=beat.version)
        await self._learn_configurations(chunkserver, [key for key, _ in replicas])
        answer = Answer(want_full=not state.full, retired=record.admin == RETIRED)
        if state.full:
            self._membership_orders(chunkserver, answer)
        self._operator_orders(chunkserver, now, answer)
        self._addresses(chunkserver, answer, full=full)
        return answer

    # ---- reports in

    async def _learn_configurations(self, chunkserver: int, keys: list[CopysetKey]) -> None:
        """Stores the members that leaders report under a newer epoch, and that a copyset has come to life. Equal
        epoch with other members is a change half done: not believed."""
        if not any(self._news(chunkserver, key) for key in keys):
            return
        async with self._core.topology:
            changed = [record for record in (self._news(chunkserver, key) for key in keys) if record is not None]
            for start in range(0, len(changed), MAX_CHANGES):
                await self._core.state.commit(*changed[start : start + MAX_CHANGES])

    def _news(self, chunkserver: int, key: CopysetKey) -> CopysetRecord | None:
        record = self._core.tables.copysets.get(key)
        if record is None:
            return None
        changed = record
        known = self._core.monitor.leaders.get(key)
        if known is not None and known.leader == chunkserver and known.epoch > record.epoch and known.voters:
            changed = msgspec.structs.replace(
                changed, members=tuple(sorted(known.voters)), epoch=known.epoch, established=True
            )
        elif not record.established and set(record.members).issubset(self._core.monitor.holders.get(key, ())):
            changed = msgspec.structs.replace(changed, established=True)
        return None if changed == record else changed

    # ---- orders out

    def _membership_orders(self, chunkserver: int, answer: Answer) -> None:
        core = self._core
        state = core.monitor.servers[chunkserver]
        mine = state.replicas
        wanted = core.tables.copysets_of.get(chunkserver, set())
        versions = (core.tables.versions[chunkserver], state.version)
        if state.in_order != versions:
            for key in sorted(wanted - mine.keys()):
                record = core.tables.copysets[key]
                if not record.established:
                    answer.orders.append(Order(OrderKind.CREATE, key, record.epoch, members=record.members))
            for key in mine.keys() - wanted:
                ghost = core.tables.copysets.get(key)
                if ghost is not None and self._is_ghost(chunkserver, mine[key], ghost):
                    answer.orders.append(Order(OrderKind.REMOVE_REPLICA, key, mine[key].epoch))
            if mine.keys() == wanted:
                state.in_order = versions  # nothing to look at until one of them changes
        for key in core.operators.by_target.get(chunkserver, ()):
            if self._to_be_blank(core.operators.running[key], chunkserver) and key not in mine:
                record = core.tables.copysets[key]
                answer.orders.append(Order(OrderKind.CREATE, key, record.epoch, members=record.members))

    @staticmethod
    def _to_be_blank(operator: Operator, chunkserver: int) -> bool:
        """The new member of an add or change first gets an empty replica, which waits to be caught up."""
        return operator.step.target == chunkserver and operator.step.kind in (StepKind.ADD_PEER, StepKind.CHANGE_PEER)

    def _is_ghost(self, chunkserver: int, replica: Replica, record: CopysetRecord) -> bool:
        """A replica may be deleted only when the present leader says, under no older configuration than the replica's
        own, that it is neither a member nor about to become one. A copyset that is not in the metadata is never
        touched."""
        key = (record.pool, record.id)
        operator = self._core.operators.running.get(key)
        leader = self._core.monitor.leaders.get(key)
        if chunkserver in record.members or leader is None or leader.leader == chunkserver:
            return False
        if operator is not None and operator.step.target == chunkserver:
            return False
        if not self._core.monitor.leader(key, self._core.clock.monotonic()):
            return False
        return (
            leader.change is not Change.RUNNING
            and leader.epoch == record.epoch
            and leader.epoch >= replica.epoch
            and chunkserver not in leader.voters
            and chunkserver not in leader.learners
        )

    def _operator_orders(self, chunkserver: int, now: float, answer: Answer) -> None:
        core = self._core
        leads, running = core.monitor.servers[chunkserver].leads, core.operators.running
        for key in sorted(running.keys() & leads) if running else ():
            report = core.monitor.leaders.get(key)
            if report is None or report.leader != chunkserver:
                continue
            operator, finished = core.operators.on_report(key, report, now)
            if finished is not None:
                self._finished(finished)
            if operator is None:
                continue
            step = operator.step
            adds = step.kind in (StepKind.ADD_PEER, StepKind.CHANGE_PEER)
            if adds and step.target not in core.monitor.holders.get(key, ()):
                continue  # its empty replica is not there yet
            answer.orders.append(Order(_ORDER_OF[step.kind], key, operator.epoch, target=step.target, old=step.old))

    def _finished(self, finished: Finished) -> None:
        self._core.wake.set()
        step = finished.operator.step
        self._core.on_event(
            f"operator_{finished.outcome}",
            {"copyset": step.copyset, "step": str(step), "scheduler": step.scheduler, "why": finished.why},
        )

    def _addresses(self, chunkserver: int, answer: Answer, *, full: bool) -> None:
        """Peers of its copysets: when it may not know them (a full report), and when they have changed. What a lost
        reply should have said follows on the full report that a chunkserver sends then."""
        core = self._core
        state = core.monitor.servers[chunkserver]
        changing = core.operators.running.keys() & state.replicas.keys()
        changing.update(core.operators.by_target.get(chunkserver, ()))
        versions = (
            core.tables.versions[chunkserver], state.version, core.tables.address_version, frozenset(changing)
        )  # fmt: skip
        if versions == state.addressed and not full:
            return
        state.addressed = versions
        peers: set[int] = set()
        for key in core.tables.copysets_of.get(chunkserver, set()) | state.replicas.keys():
            record = core.tables.copysets.get(key)
            if record is not None:
                peers.update(record.members)
        for key in changing:
            peers.update(core.tables.copysets[key].members)
            peers.add(core.operators.running[key].step.target)
        for peer in sorted(peers):
            address = core.tables.address_of(peer)
            if address:
                answer.addresses[peer] = address

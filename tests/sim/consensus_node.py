"""One member of a simulated group: a real engine and log, on a clock and a disk of its own."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from consensus_disk import SimDisk
from consensus_model import Machine, Seen, Violation

from curve_storage.consensus.api import Membership
from curve_storage.consensus.engine import Engine, Group
from curve_storage.consensus.log import Batch, SharedLog
from curve_storage.errors import CurveError

if TYPE_CHECKING:
    from consensus_cluster import Simulation

GROUP = 7


class Node:
    """One process: it lives until it crashes; `disk` and the machine's durable state outlive it."""

    def __init__(self, sim: Simulation, number: int) -> None:
        self.sim = sim
        self.number = number
        self.disk = SimDisk()
        self.machine = Machine(number, sim.truth)
        self.membership = sim.initial
        """What a new replica here starts with."""
        self.offset = sim.rng.uniform(0, 1000)
        self.rate = 1 + sim.rng.uniform(-0.03, 0.03)
        self.life = 0
        self.engine: Engine | None = None
        self.paused_until = 0.0
        self.syncing = False
        self.heard: dict[int, float] = {}
        self.sending: set[int] = set()
        self.seen = Seen()
        self.claimed = (0, 0)
        """Index and term that were reported durable before the crash."""

    def now(self) -> float:
        return self.offset + self.sim.time * self.rate

    # --- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.life += 1
        sim = self.sim
        log = SharedLog(self.disk, sim.log_config, lambda: sim.rng.getrandbits(32))
        log.open()
        if log.damage:
            raise Violation(f"node {self.number}: a crash left damage: {log.damage}")
        self.syncing = False
        self.sending.clear()
        self.seen = Seen()
        self.engine = Engine(self.number, log, sim.raft_config, random.Random(sim.rng.getrandbits(64)), self)
        group = self.engine.add_group(GROUP, self.machine, self.membership, self.now())
        if group.raft is None:
            raise Violation(f"node {self.number}: corrupt after a crash: {group.log.corrupt}")
        sim.truth.restarted(self.number, group.raft)
        index, term = self.claimed
        found = group.raft.log
        if index > found.base and found.term(index) != term:
            raise Violation(f"node {self.number} had reported {index}@{term} durable, and came back without it")
        self.seen.commit = group.raft.commit
        self.seen.last, self.seen.last_term = group.raft.log.last, group.raft.log.last_term
        self.heard = dict.fromkeys(sim.nodes, self.now())
        self.flush()

    def crash(self) -> None:
        group = self.group
        self.claimed = (0, 0)
        if group is not None and group.raft is not None and not group.installing:
            index = group.raft.persisted_index
            self.claimed = (index, group.raft.log.term(index) or 0)
        self.engine = None
        self.life += 1
        self.paused_until = 0.0
        self.machine.crash()
        self.disk.crash(self.sim.rng)

    @property
    def group(self) -> Group | None:
        return self.engine.groups.get(GROUP) if self.engine else None

    def later(self, delay: float, action: Callable[[], None]) -> None:
        """Runs unless this process has crashed meanwhile."""
        life = self.life

        def run() -> None:
            if self.life == life and self.engine is not None:
                if self.paused_until > self.sim.time:
                    self.sim.at(self.paused_until + self.sim.rng.random() * 1e-3, run)
                    return
                action()
                self.flush()

        self.sim.at(self.sim.time + delay, run)

    # --- one turn of the host ----------------------------------------------------------------------------------------

    def flush(self) -> None:
        engine = self.engine
        if engine is None:
            return
        while not engine.flush(self.now()):
            pass
        for messages in engine.outgoing.values():
            for message in messages:
                self.sim.send(message)
        engine.outgoing.clear()
        self._sync()
        group = self.group
        if group is not None and group.raft is not None:
            elected = self.seen.led_term
            self.sim.truth.check(self.number, group.raft, self.seen)
            if self.seen.led_term != elected:
                self.sim.check_leases(self)

    def _sync(self) -> None:
        engine = self.engine
        if engine is None or self.syncing:
            return
        if engine.log.pool.wants_more():
            engine.log.pool.prepare()
        if engine.log.stalled:
            engine.log.resume()
            if engine.log.stalled:
                self.checkpoint()
                if engine.log.stalled and not engine.log.pool.free:
                    engine.log.pool.prepare(beyond_limit=True)
                engine.log.resume()
        batch = engine.take_batch()
        if batch is None:
            return
        self.syncing = True
        self._write(batch, 0)

    def _write(self, batch: Batch, part: int) -> None:
        """Each part is written and synced before the next; a crash may come at any moment between."""
        if part < len(batch.parts):
            file, offset, buffers = batch.parts[part]
            file.write(offset, buffers)

            def synced() -> None:
                file.sync()
                self._write(batch, part + 1)

            self.later(self.sim.disk_delay(), synced)
            return
        engine = self.engine
        assert engine is not None
        self.syncing = False
        engine.batch_done(batch)

    def tick(self) -> None:
        engine = self.engine
        if engine is None:
            return
        now = self.now()
        for peer in self.sim.nodes.values():
            alive = peer.engine is not None and peer.paused_until <= self.sim.time
            if alive and (peer.number, self.number) not in self.sim.cut:
                self.heard[peer.number] = now
        group = self.group
        if group is not None and group.raft is not None and group.raft.hibernating:
            self.sim.counts["slept"] += 1
            leader = group.raft.leader
            heard = self.heard.get(leader, now)
            if leader != self.number and now - heard > 3 * self.sim.raft_config.heartbeat:
                group.raft.wake(now, heard)
                engine.mark(group)
        engine.tick(now)

    def checkpoint(self) -> None:
        engine, group = self.engine, self.group
        if engine is None or group is None or group.installing:
            return
        engine.checkpointed(group, self.machine.save())
        for file in engine.collect():
            engine.log.pool.recycle(file)
            self.sim.counts["recycled"] += 1

    # --- Waiter ------------------------------------------------------------------------------------------------------

    def done(self, token: Any, result: Any) -> None:
        kind, value = token
        if kind == "propose":
            self.sim.truth.acknowledge(result, value)
            return
        self.sim.counts["reads"] += 1
        if self.machine.index < value:
            raise Violation(f"read-index: node {self.number} at {self.machine.index} misses acknowledged {value}")

    def failed(self, token: Any, error: CurveError) -> None:
        pass

    def members_changed(self, group: Group) -> None:
        pass

    def snapshot_needed(self, group: Group, node: int) -> None:
        if node in self.sending:
            return
        self.sending.add(node)
        self.later(self.sim.rng.uniform(0.001, 0.2), lambda: self._send_snapshot(node))

    # --- snapshots ---------------------------------------------------------------------------------------------------

    def _send_snapshot(self, node: int) -> None:
        group = self.group
        if group is None or group.raft is None:
            return
        state = (self.machine.index, self.machine.digest)
        index = state[0]
        term = group.raft.log.term(index)
        if term is None or not index:
            self._sent(node, 0)
            return
        membership = group.raft.membership_at(index)
        group.log.pinned = index
        target = self.sim.nodes[node]
        delay = self.sim.rng.uniform(0.005, 0.3)
        if target.engine is None or (self.number, node) in self.sim.cut:
            self.later(delay, lambda: self._sent(node, 0))
            return

        def answer(reached: int) -> None:
            self.later(self.sim.rng.uniform(0.001, 0.05), lambda: self._sent(node, reached))

        target.later(delay, lambda: target.install(state, term, membership, answer))
        self.later(3.0, lambda: self._sent(node, 0) if node in self.sending else None)

    def _sent(self, node: int, index: int) -> None:
        group = self.group
        if node in self.sending and group is not None and group.raft is not None:
            self.sending.discard(node)
            group.log.pinned = None
            group.raft.snapshot_done(node, index, self.now())
            assert self.engine is not None
            self.engine.mark(group)

    def install(self, state: tuple[int, int], term: int, membership: Membership, answer: Callable[[int], None]) -> None:
        engine, group = self.engine, self.group
        if engine is None or group is None:
            return
        index = state[0]

        def begun() -> None:
            self.later(self.sim.disk_delay(), replace)

        def replace() -> None:
            self.machine.durable = state
            self.machine.index, self.machine.digest = state
            self.sim.counts["snapshots"] += 1
            if not self.sim.calm and self.sim.rng.random() < 0.2:  # the worst moment
                self.sim.at(self.sim.time + self.sim.rng.uniform(0, 0.02), lambda: self.sim.crash(self))
            self.later(self.sim.disk_delay(), finish)

        def finish() -> None:
            assert self.engine is not None and group is not None
            self.engine.finish_install(group, index, term, membership, self.now(), lambda: answer(index))

        if not engine.begin_install(group, index, term, membership, begun):
            answer(group.raft.durable_commit if group.raft is not None else 0)

"""Whole groups on a virtual clock: real cores, engines and logs; network, disks, clocks and faults from one seed."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import Any

from consensus_model import Seen, Truth, Violation
from consensus_node import GROUP, Node

from curve_storage.consensus.api import Membership, Role
from curve_storage.consensus.config import LogConfig, RaftConfig
from curve_storage.consensus.raft_messages import HEARTBEAT, HEARTBEAT_REPLY, Message
from curve_storage.errors import FailedPrecondition, NotLeader

TICK = 0.06


class Simulation:
    def __init__(self, seed: int, members: int, events: int) -> None:
        self.seed = seed
        self.rng = rng = random.Random(seed)
        self.truth = Truth()
        self.time = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self.trace: deque[tuple[float, str, Any]] = deque(maxlen=100)
        self.events = 0
        self.limit = events
        self.cut: set[tuple[int, int]] = set()
        self.loss = rng.choice((0.0, 0.02, 0.1))
        self.duplicate = rng.choice((0.0, 0.05))
        self.slow = rng.choice((0.0, 0.03, 0.3))
        self.pace = rng.choice((0.08, 0.08, 0.6))
        self.slow_answers = rng.random() < 0.2
        self.slow_disk = rng.choice((0.02, 0.2))
        self.calm = False
        self.raft_config = RaftConfig(
            hibernate_after=rng.choice((0.0, 0.5, 2.0)),
            max_append_entries=rng.choice((1, 4, 1024)),
            max_inflight_messages=rng.choice((2, 256)),
            max_apply_bytes=rng.choice((64, 1 << 20)),
            window_bytes=rng.choice((0, 1 << 20)),
            learner_lag=rng.choice((0, 8)),
            change_timeout=5.0,
        )
        self.log_config = LogConfig(segment_size=32 * 1024, max_size=32 * 1024 * rng.choice((4, 12)))
        self.big = rng.choice((0, 4000, 8000))
        self.members = tuple(range(1, members + 1))
        self.initial = Membership(voters=self.members)
        self.nodes: dict[int, Node] = {}
        for number in range(1, members + 3):
            self.nodes[number] = Node(self, number)
        self.commands = 0
        self.counts = {"leases": 0, "reads": 0, "snapshots": 0, "epochs": 0, "recycled": 0, "slept": 0}
        for node in self.nodes.values():
            node.start()
            self._ticks(node)
        self.at(0.0, self._fault)
        self.at(0.0, self._client)

    # --- scheduling ----------------------------------------------------------------------------------------------

    def at(self, when: float, action: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._queue, (when, self._order, action))

    def _ticks(self, node: Node) -> None:
        def tick() -> None:
            if node.engine is not None and node.paused_until <= self.time:
                node.tick()
                node.flush()
            self.at(self.time + TICK * self.rng.uniform(0.9, 1.1), tick)

        self.at(self.rng.random() * TICK, tick)

    def disk_delay(self) -> float:
        if self.rng.random() < self.slow_disk:
            return self.rng.uniform(0.05, 0.5)
        return self.rng.uniform(0.0002, 0.01)

    def send(self, message: Message) -> None:
        rng = self.rng
        self.truth.sent(message)
        if not self.calm and rng.random() < self.loss:
            return
        copies = 2 if not self.calm and rng.random() < self.duplicate else 1
        for _ in range(copies):
            delay = rng.uniform(0.0005, 0.02)
            if self.slow_answers and message.kind == HEARTBEAT_REPLY:
                delay = rng.uniform(0.1, 0.35)
            if not self.calm and rng.random() < self.slow:
                delay = rng.choice((rng.uniform(0.02, 0.5), rng.uniform(0.5, 2.0)))
            self.at(self.time + delay, lambda: self._deliver(message))

    def _deliver(self, message: Message) -> None:
        if message.kind != HEARTBEAT and message.kind != HEARTBEAT_REPLY:
            self.events += 1  # as are faults and client requests; ticks, heartbeats and syncs are not counted
        node = self.nodes.get(message.dst)
        if node is None or node.engine is None or (message.src, message.dst) in self.cut:
            return
        if node.paused_until > self.time:
            self.at(node.paused_until + self.rng.random() * 1e-3, lambda: self._deliver(message))
            return
        self.trace.append((self.time, "", message))
        node.engine.step(message, node.now())
        node.flush()

    def run(self) -> None:
        while self.events < self.limit:
            self._step()
        self._settle()

    def _step(self) -> None:
        when, _, action = heapq.heappop(self._queue)
        self.time = max(self.time, when)
        action()

    # --- clients ---------------------------------------------------------------------------------------------------

    def leader(self) -> Node | None:
        leading = [
            node
            for node in self.nodes.values()
            if node.group is not None and node.group.raft is not None and node.group.raft.role is Role.LEADER
            and node.paused_until <= self.time
        ]  # fmt: skip
        return self.rng.choice(leading) if leading else None

    def _client(self) -> None:
        if self.calm:
            return
        self.events += 1
        self.at(self.time + self.rng.expovariate(1 / self.pace), self._client)
        node = self.leader()
        if node is not None:
            self._visit(node)

    def _visit(self, node: Node) -> None:
        """Reads and proposes at a node that may believe itself the leader."""
        if self.calm or node.engine is None or node.paused_until > self.time:
            return
        if node.group is None or node.group.raft is None or node.group.raft.role is not Role.LEADER:
            return
        now = node.now()
        if node.group.raft.lease_valid(now):
            self.counts["leases"] += 1
            if node.machine.index < self.truth.acked_top:
                raise Violation(
                    f"stale lease read: node {node.number} at {node.machine.index}, acknowledged {self.truth.acked_top}"
                )
        try:
            if self.rng.random() < 0.3:
                node.engine.read(GROUP, ("read", self.truth.acked_top), now)
            for _ in range(self.rng.choice((1, 1, 5))):
                self.propose(node)
        except NotLeader:
            pass
        node.flush()

    def check_leases(self, elected: Node) -> None:
        """Nobody may still serve reads by lease at the moment another member is elected."""
        assert elected.group is not None and elected.group.raft is not None
        for node in self.nodes.values():
            group = node.group
            if node is elected or group is None or group.raft is None or node.paused_until > self.time:
                continue
            raft = group.raft
            active, lease = raft.active_at, raft.lease_valid(node.now())
            raft.active_at = active
            if lease and raft.term < elected.group.raft.term:
                raise Violation(f"node {elected.number} is elected while node {node.number} holds a lease")

    def hint(self, lost: Node) -> None:
        """Some of the others see the connection to this node break."""
        for node in self.nodes.values():
            if node is not lost and node.engine is not None and self.rng.random() < 0.5:
                engine = node.engine
                node.later(
                    self.rng.uniform(0.001, 0.1),
                    lambda node=node, engine=engine: engine.peer_suspected(
                        lost.number, node.heard[lost.number], node.now()
                    ),  # type: ignore[misc]
                )

    def propose(self, node: Node) -> bytes:
        assert node.engine is not None and node.group is not None
        self.commands += 1
        header = b"c%d" % self.commands
        node.engine.propose(node.group, header, bytes(self.rng.randrange(self.big + 1)), ("propose", header))
        return header

    # --- faults ----------------------------------------------------------------------------------------------------

    def _fault(self) -> None:
        if self.calm:
            return
        self.events += 1
        self.at(self.time + self.rng.expovariate(1 / 0.15), self._fault)
        rng = self.rng
        node = rng.choice(list(self.nodes.values()))
        leader = self.leader()
        if leader is not None and rng.random() < 0.4:
            node = leader
        fault = rng.choice(
            ("crash", "crash", "cut", "cut", "one-way", "heal", "heal", "pause", "members", "members", "transfer",
             "checkpoint", "checkpoint", "checkpoint", "everything", "resign", "wipe", "hint", "isolate", "mute",
             "deaf", "deaf")
        )  # fmt: skip
        self.trace.append((self.time, fault, f"node {node.number}"))
        if fault == "crash":
            self.crash(node)
        elif fault == "everything" and rng.random() < 0.3:
            for each in self.nodes.values():
                self.crash(each)
        elif fault == "cut":
            self.hint(node)
            for other in self.nodes:
                if rng.random() < 0.6:
                    self.cut |= {(node.number, other), (other, node.number)}
        elif fault == "isolate" and leader is not None:
            # The old leader does not know yet, the others elect another, and clients reach both.
            for other in self.nodes:
                self.cut |= {(leader.number, other), (other, leader.number)}
            self.hint(leader)
            for step in range(12):
                self.at(self.time + 0.5 + step * 0.05, lambda: [self._visit(each) for each in self.nodes.values()])
        elif fault == "mute" and leader is not None:
            # Nobody hears the leader any more, while it still hears answers to what it sent before.
            self.cut |= {(leader.number, other) for other in self.nodes}
            self.hint(leader)
        elif fault == "deaf" and leader is not None:
            self.cut.add((leader.number, node.number))
        elif fault == "one-way":
            self.hint(node)
            for other in self.nodes:
                if rng.random() < 0.6:
                    self.cut.add((node.number, other) if rng.random() < 0.5 else (other, node.number))
        elif fault == "heal":
            self.cut.clear()
        elif fault == "pause":
            node.paused_until = self.time + rng.choice((0.3, 1.0, 3.0)) * rng.random()
        elif fault == "checkpoint":
            for each in self.nodes.values():
                if each.engine is not None and each.paused_until <= self.time and rng.random() < 0.6:
                    each.checkpoint()
                    each.flush()
        elif node.group is None or node.group.raft is None or node.paused_until > self.time:
            return
        elif fault == "members":
            voters = tuple(sorted(rng.sample(sorted(self.nodes), len(self.members))))
            try:
                node.group.raft.change_members(voters, node.now())
            except (NotLeader, FailedPrecondition):
                return
            self._touched(node)
        elif fault == "transfer":
            try:
                node.group.raft.transfer(rng.choice(sorted(self.nodes)), node.now())
            except (NotLeader, FailedPrecondition):
                return
            self._touched(node)
        elif fault == "resign" and rng.random() < 0.3:
            node.group.raft.resign(node.now())
            self._touched(node)
        elif fault == "hint":
            node.group.raft.leader_lost(node.now(), dead=False)
            self._touched(node)
        elif fault == "wipe":
            self._wipe(node)

    def _touched(self, node: Node) -> None:
        assert node.engine is not None and node.group is not None
        node.engine.mark(node.group)
        node.flush()

    def crash(self, node: Node) -> None:
        if node.engine is None:
            return
        self.trace.append((self.time, "down:", f"node {node.number}"))
        node.crash()
        self.hint(node)
        self.at(self.time + self.rng.choice((0.05, 0.5, 2.0)) * self.rng.random(), lambda: self._restart(node))

    def _restart(self, node: Node) -> None:
        if node.engine is None:
            node.start()

    def _wipe(self, node: Node) -> None:
        """A replica that the committed membership no longer has is removed, and may come back empty."""
        engine, leader = node.engine, self.leader()
        if engine is None or leader is None or leader.group is None or leader.group.raft is None:
            return
        raft = leader.group.raft
        if (
            raft.config_index > raft.commit
            or raft.commit < self.truth.top
            or raft.change == "running"
            or node.number in raft.membership.members
            or (node.group is not None and node.group.installing)
        ):
            return

        def removed() -> None:
            self.at(self.time, fresh)

        def fresh() -> None:
            if node.engine is engine and GROUP not in engine.groups:
                engine.add_group(GROUP, node.machine, node.membership, node.now())
                node.seen = Seen()
                node.flush()

        node.membership = Membership(voters=tuple(number for number in self.members if number != node.number))
        self.truth.forget(node.number)
        engine.remove_group(GROUP, removed)
        node.machine.durable = (0, 0)
        node.machine.crash()
        node.flush()

    # --- the end -----------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Without faults the group must come to rest with everything acknowledged in every member."""
        self.calm = True
        self.cut.clear()
        for node in self.nodes.values():
            node.paused_until = min(node.paused_until, self.time)
            self._restart(node)
        last = b""
        deadline = self.time + 60
        quiet_from = self.time + 4.0
        while self.time < deadline:
            self._step()
            if self.time < quiet_from:
                continue
            leader = self.leader()
            if leader is None or leader.group is None or leader.group.raft is None:
                continue
            if not last or last not in self.truth.acked.values():
                quiet_from = self.time + 0.3
                try:
                    last = self.propose(leader)
                except NotLeader:
                    continue
                leader.flush()
                continue
            if self._equal(leader.group.raft):
                self.counts["epochs"] += leader.group.raft.membership.epoch - 1
                break
        else:
            raise Violation("liveness: 60 s without faults, and the members have not become equal")
        for index, header in self.truth.acked.items():
            if self.truth.applied.get(index, (0, b""))[1] != header:
                raise Violation(f"acknowledged command {header!r} at {index} is lost")

    def _equal(self, raft: Any) -> bool:
        top = self.truth.acked_top
        for number in raft.membership.voters:
            node = self.nodes[number]
            if node.machine.index < top or self.truth.digests.get(node.machine.index) != node.machine.digest:
                return False
        return bool(raft.change != "running" and not raft.membership.outgoing)


def run(seed: int, *, events: int = 500) -> Simulation:
    """One life of a group of 3 or 5 members; raises Violation naming the seed, with the last 100 events."""
    members = 3 if seed % 2 else 5
    simulation = Simulation(seed, members, events)
    try:
        simulation.run()
    except Exception as error:
        trace = [f"{time:9.4f} {what} {detail}" for time, what, detail in simulation.trace]
        raise Violation(f"seed {seed}, at {simulation.time:.3f} s: {type(error).__name__}: {error}", trace) from error
    return simulation

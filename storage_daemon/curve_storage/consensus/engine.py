"""All groups of a process and their shared log, without I/O: what the host carries out and simulations drive.

One `flush` per turn: proposals queued since the last one go into the cores, their output is sorted into one log batch
and one list of messages per peer, committed entries are applied and proposals and reads completed. Waiters are
opaque tokens that come back through the `Waiter` methods exactly once.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from curve_storage.consensus.api import Buffer, GroupStatus, Membership, Role, StateMachine
from curve_storage.consensus.config import RaftConfig
from curve_storage.consensus.disk import DiskFile
from curve_storage.consensus.entry import COMMAND
from curve_storage.consensus.log import Batch, SharedLog
from curve_storage.consensus.log_group import GroupLog
from curve_storage.consensus.raft import Raft
from curve_storage.consensus.raft_messages import APPEND, HIBERNATE, Message, Ready, RoleChange
from curve_storage.errors import Aborted, AlreadyExists, Corruption, CurveError, NotFound, NotLeader

_NOTHING = memoryview(b"")


class Waiter(Protocol):
    """Told of the ends of proposals and reads, and of members that need a snapshot."""

    def done(self, token: Any, result: Any) -> None: ...

    def failed(self, token: Any, error: CurveError) -> None: ...

    def snapshot_needed(self, group: Group, node: int) -> None: ...

    def members_changed(self, group: Group) -> None: ...


class Group:
    """One replica. `raft` is None while its log is damaged: it takes no part until it is rebuilt."""

    __slots__ = (
        "applied_bytes",
        "checkpointed_at",
        "checkpointing",
        "dirty",
        "id",
        "installing",
        "leading",
        "log",
        "machine",
        "membership",
        "pending",
        "queue",
        "raft",
        "reads",
    )  # fmt: skip

    def __init__(
        self, group: int, machine: StateMachine, log: GroupLog, raft: Raft | None, membership: Membership
    ) -> None:
        self.id = group
        self.machine = machine
        self.log = log
        self.raft = raft
        self.membership = membership
        self.queue: list[tuple[bytes, Buffer, Any]] = []
        self.pending: deque[tuple[int, int, Any]] = deque()
        self.reads: dict[int, Any] = {}
        self.leading = 0
        """The term this member leads in, else 0."""
        self.dirty = False
        self.installing = False
        self.applied_bytes = 0
        self.checkpointing = False
        self.checkpointed_at = 0.0


class Engine:
    def __init__(self, node: int, log: SharedLog, config: RaftConfig, rng: random.Random, waiter: Waiter) -> None:
        self.node = node
        self.log = log
        self.groups: dict[int, Group] = {}
        self.outgoing: dict[int, list[Message]] = {}
        self._config = config
        self._rng = rng
        self._waiter = waiter
        self._dirty: list[Group] = []
        self._ticked = float("-inf")
        self.queued_requests = 0
        self.queued_bytes = 0
        self.applied_entries = 0
        self.leaderships = 0

    # --- groups ----------------------------------------------------------------------------------------------------

    def add_group(self, group: int, machine: StateMachine, membership: Membership | None, now: float) -> Group:
        """Starts a known group from its log, or a new one. Raises AlreadyExists, NotFound."""
        if group in self.groups:
            raise AlreadyExists(f"group {group} runs already", where=f"node {self.node}")
        log = self.log.groups.get(group)
        durable = machine.durable_index()
        if log is None:
            if membership is None:
                raise NotFound(f"group {group} is not in the log", where=f"node {self.node}", todo="Give a membership")
            log = self.log.create_group(group, membership)
            restored = log.restored(0)
            restored.configs = [(0, membership)]
            if durable:
                log.corrupt = f"its state machine is at {durable}, but the log knows nothing of it"
        else:
            self._settle_restore(log, durable)
            if not log.corrupt:
                if durable < log.base_index:
                    log.corrupt = f"entries {durable + 1}…{log.base_index} are no longer in the log"
                elif durable > log.last_index:
                    log.corrupt = f"entries {log.last_index + 1}…{durable} were applied but are not in the log"
            log.released = durable
            restored = log.restored(durable)
        raft = None
        if not log.corrupt:
            raft = Raft(self.node, group, self._config, self._rng, log, restored, now)
        found = self.groups[group] = Group(
            group, machine, log, raft, restored.configs[-1][1] if restored.configs else Membership(voters=())
        )
        found.checkpointed_at = now
        self.mark(found)
        return found

    def _settle_restore(self, log: GroupLog, durable: int) -> None:
        """Completes a snapshot installation that a crash cut between the state machine's part and the log's."""
        if log.pending is not None and durable >= log.pending[0] and not log.corrupt:
            index, term, membership = log.pending
            self.log.restore(log, index, term, membership, None)

    def remove_group(self, group: int, done: Callable[[], None]) -> None:
        found = self.groups.pop(group, None)
        if found is not None:
            self._abort(found, "the group was removed from this node")
        self.log.remove_group(group, done)

    def group(self, group: int) -> Group:
        found = self.groups.get(group)
        if found is None:
            raise NotFound(f"group {group} is not on this node", where=f"node {self.node}", todo="Ask the MDS again")
        return found

    def raft_of(self, group: int) -> Raft:
        """Raises NotFound, Corruption."""
        found = self.group(group)
        if found.raft is None:
            raise Corruption(
                f"group {group}: {found.log.corrupt}",
                where=f"node {self.node}",
                todo="It is to be rebuilt from its peers",
            )
        return found.raft

    def condemn(self, group: Group, error: CurveError) -> None:
        """The replica's log or state is damaged: it takes no further part."""
        group.log.corrupt = group.log.corrupt or error.what
        group.raft = None
        self._abort(group, f"this replica is damaged: {error.what}")
        if group.leading:
            group.leading = 0
            group.machine.on_role(False, 0)

    # --- inputs ----------------------------------------------------------------------------------------------------

    def mark(self, group: Group) -> None:
        if not group.dirty:
            group.dirty = True
            self._dirty.append(group)

    def tick(self, now: float) -> None:
        """Only groups with something due are looked at, or all of them after a pause of the process."""
        paused = now - self._ticked > self._config.pause
        self._ticked = now
        for group in self.groups.values():
            raft = group.raft
            if raft is None:
                continue
            if now < raft.deadline and not paused:
                raft.last_tick = now
            elif raft.tick(now):
                self.mark(group)

    def step(self, message: Message, now: float) -> None:
        group = self.groups.get(message.group)
        if group is None or group.raft is None:
            return
        if group.installing and message.kind in (APPEND, HIBERNATE):
            return
        group.raft.step(message, now)
        if not group.dirty:
            group.dirty = True
            self._dirty.append(group)

    def propose(self, group: Group, header: bytes, payload: Buffer, token: Any) -> None:
        """Queues a command for the next flush. Raises NotLeader, Corruption."""
        raft = group.raft
        if raft is None:
            self.raft_of(group.id)
            return
        if raft.role is not Role.LEADER:
            raise NotLeader(
                "this replica is not the leader", leader=str(raft.leader or ""), where=f"group {group.id}",
                todo="Ask the leader",
            )  # fmt: skip
        group.queue.append((header, payload, token))
        self.queued_requests += 1
        self.queued_bytes += len(header) + len(payload)
        if not group.dirty:
            group.dirty = True
            self._dirty.append(group)

    def read(self, group: int, token: Any, now: float) -> None:
        """Raises NotFound, Corruption, NotLeader."""
        number = self.raft_of(group).read(now)
        found = self.groups[group]
        found.reads[number] = token
        self.mark(found)

    # --- peers -----------------------------------------------------------------------------------------------------

    def peer_restarted(self, node: int, now: float) -> None:
        """Its former process is gone for certain: no lease of it is left, and its members remember nothing."""
        for group in self.groups.values():
            raft = group.raft
            if raft is None or node not in raft.membership.members:
                continue
            raft.wake(now)
            if raft.leader == node:
                raft.leader_lost(now, dead=True)
            self.mark(group)

    def peer_silent(self, node: int, heard: float, now: float) -> None:
        """Its process was last heard at `heard`: sleeping groups that it leads watch for themselves again."""
        for group in self.groups.values():
            raft = group.raft
            if raft is not None and raft.hibernating and raft.leader == node:
                raft.wake(now, heard)
                self.mark(group)

    def peer_suspected(self, node: int, heard: float, now: float) -> None:
        """Its connection broke; it was last heard at `heard`. Elections start earlier, but in no lease."""
        for group in self.groups.values():
            raft = group.raft
            if raft is not None and raft.leader == node:
                raft.wake(now, heard)
                raft.leader_lost(now, dead=False)

    # --- output ----------------------------------------------------------------------------------------------------

    def flush(self, now: float) -> bool:
        """Works until only disk and network can bring anything new; False when entries remain to be applied."""
        later: list[Group] = []
        while self._dirty:
            dirty, self._dirty = self._dirty, []
            for group in dirty:
                group.dirty = False
                if group.raft is None or self.groups.get(group.id) is not group:
                    continue
                try:
                    if self._flush_group(group, group.raft, now):
                        later.append(group)
                except Corruption as error:
                    self.condemn(group, error)
        for group in later:
            self.mark(group)
        return not later

    def _flush_group(self, group: Group, raft: Raft, now: float) -> bool:
        if group.queue:
            self._feed(group, raft, now)
        rounds = 0
        while (ready := raft.ready()) is not None:
            for message in ready.messages:
                peer = self.outgoing.get(message.dst)
                if peer is None:
                    self.outgoing[message.dst] = [message]
                else:
                    peer.append(message)
            if ready.entries or ready.hard_state is not None:
                self.log.save(group.log, ready.hard_state, ready.entries, (group, ready.number))
            if ready.role is not None:
                self._role(group, ready.role)
            if ready.membership is not None:
                group.membership = ready.membership
                group.machine.on_membership(ready.membership)
                self._waiter.members_changed(group)
            if ready.committed:
                self._apply(group, ready)
                raft.applied_to(ready.committed[-1].index)
                rounds += 1
            for number in ready.reads:
                self._waiter.done(group.reads.pop(number), None)
            for number in ready.failed_reads:
                self._waiter.failed(group.reads.pop(number), Aborted("the leader changed", where=f"group {group.id}"))
            for need in ready.snapshots:
                self._waiter.snapshot_needed(group, need.node)
            if rounds >= 2 and raft.more_to_apply:
                return True  # other groups and the loop's other work get their turn
        return False

    def _feed(self, group: Group, raft: Raft, now: float) -> None:
        queue, group.queue = group.queue, []
        try:
            index = raft.propose([(header, payload) for header, payload, _ in queue], now)
        except NotLeader as error:
            for header, payload, token in queue:
                self._uncount(header, payload)
                self._waiter.failed(
                    token, NotLeader(error.what, leader=error.leader, where=error.where, todo="Ask the leader")
                )
            return
        term = raft.term
        for header, payload, token in queue:
            self._uncount(header, payload)
            group.pending.append((index, term, token))
            index += 1

    def _uncount(self, header: bytes, payload: Buffer) -> None:
        self.queued_requests -= 1
        self.queued_bytes -= len(header) + len(payload)

    def _apply(self, group: Group, ready: Ready) -> None:
        apply = group.machine.apply
        pending = group.pending
        for entry in ready.committed:
            result = None
            if entry.kind == COMMAND:
                result = apply(entry.index, entry.term, entry.header, memoryview(entry.payload))
                group.applied_bytes += entry.size
            else:
                # Of no effect, but the machine's durable index has to pass it: else it would hold its segment for ever.
                apply(entry.index, entry.term, b"", _NOTHING)
            while pending and pending[0][0] <= entry.index:
                index, term, token = pending.popleft()
                if index == entry.index and term == entry.term:
                    if isinstance(result, CurveError):
                        self._waiter.failed(token, result)
                    else:
                        self._waiter.done(token, result)
                else:
                    self._waiter.failed(
                        token, Aborted("another leader's entry took its place", where=f"group {group.id}")
                    )
        self.applied_entries += len(ready.committed)

    def _role(self, group: Group, change: RoleChange) -> None:
        leads = change.term if change.role is Role.LEADER else 0
        if group.leading and leads != group.leading:
            self._abort(group, "leadership was lost: whether it took effect is unknown")
        if leads != group.leading:
            group.leading = leads
            self.leaderships += leads > 0
            group.machine.on_role(bool(leads), change.term)

    def close(self, error: CurveError) -> None:
        """Fails everything that waits; nothing may be proposed any more."""
        for group in self.groups.values():
            tokens = [token for _, _, token in group.pending]
            tokens += [token for _, _, token in group.queue]
            tokens += group.reads.values()
            group.pending.clear()
            group.queue.clear()
            group.reads.clear()
            for token in tokens:
                self._waiter.failed(token, type(error)(error.what, where=error.where, todo=error.todo))

    def _abort(self, group: Group, why: str) -> None:
        where = f"group {group.id}"
        pending, group.pending = group.pending, deque()
        for _, _, token in pending:
            self._waiter.failed(token, Aborted(why, where=where, todo="Repeat the request"))
        queue, group.queue = group.queue, []
        for header, payload, token in queue:
            self._uncount(header, payload)
            self._waiter.failed(token, NotLeader(why, where=where, todo="Ask the leader"))
        reads, group.reads = group.reads, {}
        if group.raft is not None and self.groups.get(group.id) is group:
            group.reads = reads  # the core reports them itself
            return
        for token in reads.values():
            self._waiter.failed(token, Aborted(why, where=where, todo="Repeat the request"))

    def take_batch(self) -> Batch | None:
        return self.log.take_batch()

    def batch_done(self, batch: Batch) -> None:
        """The batch is durable. Tokens are a Ready of a group, or a callback."""
        self.log.finish(batch)
        for token in batch.tokens:
            if isinstance(token, tuple):
                group, number = token
                if group.raft is not None:
                    group.raft.persisted(number)
                    if not group.dirty:
                        group.dirty = True
                        self._dirty.append(group)
            else:
                token()

    # --- snapshots and checkpoints -----------------------------------------------------------------------------------

    def begin_install(
        self, group: Group, index: int, term: int, membership: Membership, done: Callable[[], None]
    ) -> bool:
        """First step of an installation; False when the snapshot brings nothing new. Appends wait until
        `finish_install` or `cancel_install`."""
        raft = group.raft
        if raft is None or group.installing or raft.role is Role.LEADER:
            return False  # a leader here is one of an earlier term, and about to learn so
        if not raft.lacks(index, term):
            return False
        group.installing = raft.hold_apply = True
        self.log.begin_restore(group.log, index, term, membership, done)
        return True

    def finish_install(
        self, group: Group, index: int, term: int, membership: Membership, now: float, done: Callable[[], None]
    ) -> None:
        """The state machine holds the snapshot durably; `done` when the log does too."""

        def durable() -> None:
            group.installing = False
            if group.raft is not None:
                group.raft.hold_apply = False
                group.raft.restore(index, term, membership, now)
                self.mark(group)
            done()

        self.log.restore(group.log, index, term, membership, durable)

    def cancel_install(self, group: Group) -> None:
        group.installing = False
        if group.raft is not None:
            group.raft.hold_apply = False
            self.mark(group)

    def checkpointed(self, group: Group, index: int) -> None:
        group.log.released = max(group.log.released, index)

    def collect(self) -> list[DiskFile]:
        """Files of segments that nobody needs any more, to be recycled."""
        files, bases = self.log.collect()
        for number, base in bases.items():
            group = self.groups.get(number)
            if group is not None and group.raft is not None:
                group.raft.compact(base)
        return files

    # --- status ----------------------------------------------------------------------------------------------------

    def status(self, group: Group) -> GroupStatus:
        raft = group.raft
        if raft is None:
            return GroupStatus(
                group.id, Role.LEARNER, group.log.term, 0, 0, 0, group.log.base_index + 1, group.log.last_index,
                group.membership, corrupt=True,
            )  # fmt: skip
        match = {}
        if raft.role is Role.LEADER:
            match = {node: progress.match for node, progress in raft.progress.items()}
            match[self.node] = raft.persisted_index
        return GroupStatus(
            group.id, raft.role, raft.term, raft.leader, raft.commit, raft.applied, raft.log.base + 1, raft.log.last,
            raft.membership, match, raft.change, raft.change_error, False, raft.hibernating,
        )  # fmt: skip

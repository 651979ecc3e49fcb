"""Replication: proposals, pipelined appends with flow control, acknowledgements, commit by counting."""

from __future__ import annotations

from collections.abc import Iterable

from curve_storage.consensus.api import Buffer, Role
from curve_storage.consensus.entry import COMMAND, CONFIG, Entry
from curve_storage.consensus.raft_messages import (
    APPEND,
    APPEND_REPLY,
    HEARTBEAT,
    HEARTBEAT_REPLY,
    Message,
    SnapshotNeed,
)
from curve_storage.consensus.raft_progress import PROBE, REPLICATE, SNAPSHOT, Progress
from curve_storage.consensus.raft_quorum import quorum_value
from curve_storage.consensus.raft_state import RaftState
from curve_storage.errors import NotLeader


class Replication(RaftState):
    __slots__ = ()

    # --- hooks -----------------------------------------------------------------------------------------------------

    def on_stamp(self) -> None:
        """A member has answered a newer message: leases and reads may have advanced."""
        raise NotImplementedError

    def on_commit(self) -> None:
        raise NotImplementedError

    def on_match(self, node: int, progress: Progress) -> None:
        """A member's acknowledged position has advanced."""
        raise NotImplementedError

    # --- leader ------------------------------------------------------------------------------------------------------

    def propose(self, commands: Iterable[tuple[bytes, Buffer]], now: float) -> int:
        """Appends the commands; returns the first one's index. Raises NotLeader."""
        self.set_now(now)
        if self.role is not Role.LEADER or self.transfer_to:
            leader = self.leader if self.role is not Role.LEADER else self.transfer_to
            raise NotLeader(
                "this member does not take proposals", leader=str(leader or ""), where=f"group {self.group}"
            )
        if self.hibernating:
            self.wake(now)
        first = index = self.log.last + 1
        term = self.term
        entries = []
        for header, payload in commands:
            entries.append(Entry(index, term, COMMAND, header, payload))
            index += 1
        if entries:
            self.log.extend(entries)
        self.active_at = now
        self._broadcast = True
        return first

    def wake(self, now: float) -> None:
        raise NotImplementedError

    def before_ready(self) -> None:
        if self.role is not Role.LEADER:
            self._check_commit = self._broadcast = self.read_round = False
        else:
            if self._check_commit:
                self.advance_commit()
            if self._broadcast or self.read_round:
                beat = self.read_round
                self._broadcast = self.read_round = False
                for node, progress in self.progress.items():
                    if node != self.node:
                        self.replicate(node, progress)
                        if beat:
                            self.send_heartbeat(node, progress)

    def replicate(self, node: int, progress: Progress) -> None:
        """Sends what the window allows; a probing member gets one append at a time, if need be an empty one."""
        log = self.log
        config = self.config
        while progress.next <= log.last or (progress.state == PROBE and progress.match < log.last):
            if progress.state == REPLICATE:
                if (
                    progress.inflight_bytes >= config.max_inflight_bytes
                    or len(progress.inflight) >= config.max_inflight_messages
                ):
                    return
            elif progress.probing or progress.state == SNAPSHOT:
                return
            previous = progress.next - 1
            term = log.term(previous)
            if term is None:
                progress.snapshot()
                self._snapshots.append(SnapshotNeed(node))
                return
            entries: list[Entry] = []
            if progress.next <= log.last:
                entries = log.slice(progress.next, log.last, config.max_append_bytes, config.max_append_entries)
            last = previous + len(entries)
            self.send(
                Message(
                    APPEND,
                    self.group,
                    self.node,
                    node,
                    self.term,
                    previous,
                    term,
                    min(self.commit, last),
                    self.new_stamp(),
                    entries=entries,
                )
            )
            progress.sent(last, sum([entry.size for entry in entries]))

    def send_heartbeat(self, node: int, progress: Progress) -> None:
        """`index` is the last entry sent, so that a member that did not get it (or forgot it in a restart) says so."""
        index = progress.next - 1 if progress.state == REPLICATE else 0
        self.send(
            Message(
                HEARTBEAT,
                self.group,
                self.node,
                node,
                self.term,
                index,
                0,
                min(self.commit, progress.match),
                self.new_stamp(),
            )
        )

    def on_append_reply(self, message: Message) -> None:
        progress = self.progress.get(message.src)
        if progress is None or message.stamp < progress.born:
            return
        progress.active = self.now
        if message.stamp > progress.stamp:
            progress.stamp = message.stamp
            self.on_stamp()
        if message.reject:
            self._on_reject(message, progress)
            return
        if progress.acknowledged(message.index):
            self._check_commit = True
            self.on_match(message.src, progress)
        elif progress.state == PROBE and message.index == progress.next - 1:
            progress.replicate()
        if progress.state == SNAPSHOT and progress.match >= self.log.base:
            progress.replicate()
        if progress.match < self.log.last:
            self.replicate(message.src, progress)

    def _on_reject(self, message: Message, progress: Progress) -> None:
        """`hint`, `log_term`: the member's entry at or before the refused position."""
        if progress.state == SNAPSHOT or message.index < progress.match:
            return
        if progress.state == PROBE and message.index != progress.next - 1:
            return
        index = min(message.hint, message.index - 1, self.log.last)
        while index > self.log.base:
            term = self.log.term(index)
            if term is None or term <= message.log_term:
                break
            index -= 1
        progress.probe(index + 1)
        self.replicate(message.src, progress)

    def on_heartbeat_reply(self, message: Message) -> None:
        progress = self.progress.get(message.src)
        if progress is None or message.stamp < progress.born:
            return
        progress.active = self.now
        if message.stamp > progress.stamp:
            progress.stamp = message.stamp
            self.on_stamp()
        if progress.acknowledged(message.index):
            self._check_commit = True
            self.on_match(message.src, progress)
        if progress.state == SNAPSHOT:
            if progress.match >= self.log.base:
                progress.replicate()
        elif progress.state == PROBE:
            progress.probing = False
            if progress.match == progress.next - 1 and message.index == progress.match:
                progress.replicate()
        elif message.reject:
            progress.probe(progress.match + 1)
        if progress.match < self.log.last:
            self.replicate(message.src, progress)

    def match_of(self, node: int) -> int:
        """The member's durable position; the leader itself counts only what is on its own disk."""
        if node == self.node:
            return self.persisted_index
        progress = self.progress.get(node)
        return progress.match if progress is not None else 0

    def advance_commit(self) -> None:
        """Counting commits only entries of the present term; earlier ones follow with them."""
        self._check_commit = False
        index = quorum_value(self.membership, self.match_of)
        if index > self.commit and index >= self.term_start:
            self.commit = min(index, self.log.last)
            self.on_commit()

    def snapshot_done(self, node: int, index: int, now: float) -> None:
        """The host has streamed a snapshot to `node` (index > 0), or has given up (0): then it is probed again."""
        self.set_now(now)
        progress = self.progress.get(node)
        if self.role is not Role.LEADER or progress is None or progress.state != SNAPSHOT:
            return
        progress.active = now
        if index:
            progress.acknowledged(index)
        if progress.match >= self.log.base:
            progress.replicate()
        else:
            progress.probe(progress.match + 1)
        # Its entries count from here on, and a change may have waited for it: perhaps nothing else is to be sent.
        self._check_commit = True
        self.on_match(node, progress)
        self.replicate(node, progress)

    def snapshot_progress(self, node: int, now: float) -> None:
        progress = self.progress.get(node)
        if progress is not None:
            progress.active = now

    # --- follower ----------------------------------------------------------------------------------------------------

    def reply(
        self, message: Message, kind: int, index: int, *, reject: bool = False, hint: int = 0, term: int = 0
    ) -> None:
        self.send(
            Message(
                kind,
                self.group,
                self.node,
                message.src,
                self.term,
                index,
                term,
                self.log.last,
                message.stamp,
                reject,
                hint,
            )
        )

    def on_append(self, message: Message) -> None:
        log = self.log
        previous = message.index
        entries = message.entries or []
        if previous < log.base:
            # Everything up to the base is committed, hence equal to the leader's.
            entries = [entry for entry in entries if entry.index > log.base]
            known = bool(entries) or previous + len(message.entries or ()) >= log.base
            if not known:
                self.reply(message, APPEND_REPLY, min(self.verified, self.persisted_index))
                return
            previous = log.base
        elif log.term(previous) != message.log_term:
            self._refuse(message)
            return
        start = 0
        if previous < log.last:
            for entry in entries:
                if entry.index > log.last:
                    break
                if log.term(entry.index) != entry.term:
                    self.truncate(entry.index)
                    break
                start += 1
        end = previous + len(entries)
        fresh = entries[start:] if start else entries
        if fresh:
            if any([entry.kind == CONFIG for entry in fresh]):
                for entry in fresh:
                    self.append_entry(entry)
            else:
                log.extend(fresh)
        if end > self.verified:
            self.verified = end
        commit = min(message.commit, self.verified)
        if commit > self.commit:
            self.commit = commit
            self.on_commit()
        if self.verified > self.persisted_index:
            self._ack = True
        if start == len(entries):
            self._ack_sent = min(self.verified, self.persisted_index)
            self.reply(message, APPEND_REPLY, self._ack_sent)

    def _refuse(self, message: Message) -> None:
        """Points the leader at the last entry here that can be equal to one of its own."""
        hint = min(message.index - 1, self.log.last)
        while hint > self.commit:
            term = self.log.term(hint)
            if term is None or term <= message.log_term:
                break
            hint -= 1
        self.reply(message, APPEND_REPLY, message.index, reject=True, hint=hint, term=self.log.term(hint) or 0)

    def on_heartbeat(self, message: Message) -> None:
        commit = min(message.commit, self.log.last)
        if commit > self.commit:
            self.commit = commit
            self.on_commit()
        lost = self.verified < message.index
        self.reply(message, HEARTBEAT_REPLY, min(self.verified, self.persisted_index), reject=lost)

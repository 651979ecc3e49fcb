"""Linearizable reads: the leader's lease, and read-index where there is none.

Both rest on stamps. Every message of a leader carries its send time, every answer echoes it, and the newest stamp that
a quorum has answered proves leadership at that moment: a lease lasts from there, a read registered before it may
be served. Reads registered together wait for the same round of heartbeats.
"""

from __future__ import annotations

from curve_storage.consensus.api import Role
from curve_storage.consensus.raft_election import Elections
from curve_storage.errors import NotLeader


class Reads(Elections):
    __slots__ = ()

    def lease_until(self) -> float:
        """End of the lease on this process' monotonic clock; in the past when there is none."""
        stamp = self.quorum_stamp()
        if stamp <= self.lease_floor:
            return 0.0
        if stamp >= 1 << 62:  # the only voter needs nobody's answer
            return self.last_tick + self.config.pause
        return stamp / 1e9 + self.config.lease * (1 - self.config.drift)

    def lease_valid(self, now: float) -> bool:
        """May a read be served at `now` from applied state?"""
        if (
            self.role is not Role.LEADER
            or self.applied < self.term_start
            or self.transfer_to
            or self.hibernating
            or now - self.last_tick > self.config.pause
        ):
            return False
        self.active_at = now
        return now < self.lease_until()

    def read(self, now: float) -> int:
        """Registers a read; its number comes back in Ready.reads or Ready.failed_reads. Raises NotLeader."""
        self.set_now(now)
        if self.role is not Role.LEADER:
            raise NotLeader("only the leader serves reads", leader=str(self.leader or ""), where=f"group {self.group}")
        if self.hibernating:
            self.wake(now)
        self.active_at = now
        self.read_number += 1
        if self.commit < self.term_start:
            self.reads_early.append(self.read_number)
        else:
            self._register(self.read_number)
        return self.read_number

    def _register(self, number: int) -> None:
        waiting = self.reads_unconfirmed
        if not self.read_round:
            # A stamp of its own: answers to anything sent before do not confirm this read.
            self.stamp = max(int(self.now * 1e9), self.stamp + 1)
            self.read_round = True
        waiting.append((self.stamp, self.commit, number))
        if self.quorum_stamp() >= 1 << 62:
            self.confirm_reads()

    def start_early_reads(self) -> None:
        if self.reads_early and self.commit >= self.term_start:
            early, self.reads_early = self.reads_early, []
            for number in early:
                self._register(number)

    def on_stamp(self) -> None:
        if self.reads_unconfirmed:
            self.confirm_reads()

    def confirm_reads(self) -> None:
        waiting = self.reads_unconfirmed
        stamp = self.quorum_stamp()
        while waiting and waiting[0][0] <= stamp:
            _, index, number = waiting.popleft()
            if self.applied >= index:
                self._reads_done.append(number)
            else:
                self.reads_confirmed.append((index, number))

    def serve_applied_reads(self) -> None:
        waiting = self.reads_confirmed
        while waiting and waiting[0][0] <= self.applied:
            self._reads_done.append(waiting.popleft()[1])

    def fail_reads(self) -> None:
        self._reads_failed.extend(number for _, _, number in self.reads_unconfirmed)
        self._reads_failed.extend(number for _, number in self.reads_confirmed)
        self._reads_failed.extend(self.reads_early)
        self.reads_unconfirmed.clear()
        self.reads_confirmed.clear()
        self.reads_early.clear()
        self.read_round = False

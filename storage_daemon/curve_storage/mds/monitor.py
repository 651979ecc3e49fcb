"""What chunkservers have said since this MDS became leader. In memory only: a new leader asks for full reports.

`now` is monotonic seconds everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from curve_storage.mds.operators import Change, LeaderReport
from curve_storage.mds.records import CopysetRecord
from curve_storage.mds.state import CopysetKey


class Online(Enum):
    ONLINE = 0
    UNSTABLE = 1
    OFFLINE = 2


class Disk(Enum):
    NORMAL = 0
    ERROR = 1
    FULL = 2
    FORMATTING = 3


@dataclass(frozen=True, slots=True)
class Replica:
    """One copyset as one chunkserver reported it."""

    leader: bool
    term: int
    epoch: int
    voters: tuple[int, ...]
    learners: tuple[int, ...] = ()
    change: Change = Change.NONE
    change_error: str = ""
    corrupt: bool = False


@dataclass(slots=True)
class Beat:
    """The rest of a heartbeat. Bytes, operations and bytes per second."""

    disk: Disk = Disk.NORMAL
    disk_message: str = ""
    capacity: int = 0
    used: int = 0
    format_percent: int = 100
    version: str = ""


@dataclass(slots=True)
class ServerState:
    last: float  # last heartbeat
    last_wall: float
    since: float  # start of the present uninterrupted time online
    beat: Beat
    full: bool = False
    replicas: dict[CopysetKey, Replica] = field(default_factory=dict)
    missing: dict[CopysetKey, float] = field(default_factory=dict)  # since when full reports lack this copyset
    leads: set[CopysetKey] = field(default_factory=set)
    corrupt: set[CopysetKey] = field(default_factory=set)
    version: int = 0  # grows when a replica comes or goes
    in_order: tuple[int, ...] = ()  # versions at which it had just the replicas it should have
    addressed: tuple[object, ...] = ()  # versions of which it has been told the addresses


@dataclass(slots=True)
class Limits:
    unhealthy_after: float = 5.0
    offline_after: float = 600.0
    grace: float = 10.0
    cooling: float = 10.0


class Monitor:
    def __init__(self, limits: Limits, started: float) -> None:
        self._limits = limits
        self.started = started
        self.servers: dict[int, ServerState] = {}
        self.leaders: dict[CopysetKey, LeaderReport] = {}
        self.holders: dict[CopysetKey, tuple[int, ...]] = {}
        self.unled: set[CopysetKey] = set()  # reported by somebody, led by nobody
        self.leadership_version = 0  # grows when a copyset gets another leader or loses its own
        self._leaderless: dict[CopysetKey, float] = {}  # since when the last leader is known to lead no more

    # ---- chunkservers

    def beat(self, chunkserver: int, beat: Beat, now: float, wall: float) -> ServerState:
        state = self.servers.get(chunkserver)
        if state is None:
            state = self.servers[chunkserver] = ServerState(now, wall, now, beat)
        elif now - state.last >= self._limits.unhealthy_after:
            state.since = now
        state.last, state.last_wall, state.beat = now, wall, beat
        return state

    def online(self, chunkserver: int, now: float) -> Online:
        """Before anything was heard of it, a chunkserver counts as online for the grace period, and its silence counts
        from the start of this term."""
        state = self.servers.get(chunkserver)
        silence = now - (state.last if state is not None else self.started)
        patience = self._limits.unhealthy_after
        if state is None:
            patience = max(patience, self._limits.grace)
        if silence < patience:
            return Online.ONLINE
        return Online.UNSTABLE if silence < self._limits.offline_after else Online.OFFLINE

    def heard(self, chunkserver: int) -> bool:
        return chunkserver in self.servers

    def settled(self, chunkserver: int, now: float) -> bool:
        state = self.servers.get(chunkserver)
        return state is not None and state.full and now - state.since >= self._limits.cooling

    def in_grace(self, chunkservers: list[int], now: float) -> bool:
        """True while reports may still be on their way after a change of leader."""
        if now - self.started >= self._limits.grace:
            return False
        return any(c not in self.servers or not self.servers[c].full for c in chunkservers)

    # ---- copysets

    def report(self, chunkserver: int, key: CopysetKey, replica: Replica) -> None:
        """Takes in one replica's report; keeps who leads. The higher term wins, whoever reports last."""
        state = self.servers[chunkserver]
        if key not in state.replicas:
            state.version += 1
            holders = self.holders.get(key, ())
            if chunkserver not in holders:
                self.holders[key] = (*holders, chunkserver)
        state.replicas[key] = replica
        if replica.corrupt:
            state.corrupt.add(key)
        elif state.corrupt:
            state.corrupt.discard(key)
        known = self.leaders.get(key)
        if replica.leader:
            if known is None or replica.term >= known.term:
                if known is not None and known.leader != chunkserver and known.leader in self.servers:
                    self.servers[known.leader].leads.discard(key)
                self.leaders[key] = LeaderReport(
                    chunkserver,
                    replica.term,
                    replica.epoch,
                    replica.voters,
                    replica.learners,
                    replica.change,
                    replica.change_error,
                )
                if known is None or known.leader != chunkserver:
                    self.leadership_version += 1
                    state.leads.add(key)
                    self._leaderless.pop(key, None)
                    self.unled.discard(key)
        elif known is None:
            self.unled.add(key)
        elif known.leader == chunkserver:
            self._no_leader(key, state)

    def full_report(self, chunkserver: int, named: set[CopysetKey], expected: set[CopysetKey], now: float) -> None:
        """After a full report: what it did not name is not there. expected: the copysets it is a member of."""
        state = self.servers[chunkserver]
        state.full = True
        state.missing = {key: state.missing.get(key, now) for key in expected - named}
        for key in [k for k in state.replicas if k not in named]:
            del state.replicas[key]
            state.version += 1
            state.corrupt.discard(key)
            self.holders[key] = tuple(holder for holder in self.holders[key] if holder != chunkserver)
            state.leads.discard(key)
            known = self.leaders.get(key)
            if known is not None and known.leader == chunkserver:
                self._no_leader(key, state)

    def _no_leader(self, key: CopysetKey, former: ServerState) -> None:
        del self.leaders[key]
        self.leadership_version += 1
        self.unled.add(key)
        former.leads.discard(key)
        self._leaderless[key] = former.last

    def leader(self, key: CopysetKey, now: float) -> int:
        """The copyset's leader if it is online, else 0."""
        known = self.leaders.get(key)
        if known is None or self.online(known.leader, now) is not Online.ONLINE:
            return 0
        return known.leader

    def lost(self, record: CopysetRecord, now: float) -> frozenset[int]:
        """Members whose replica is corrupt, or missing in full reports for a while although the copyset is established
        (a chunkserver that is still loading may report before it has them all)."""
        found = set()
        key = (record.pool, record.id)
        for member in record.members:
            state = self.servers.get(member)
            if state is None:
                continue
            replica = state.replicas.get(key)
            if replica is not None:
                if replica.corrupt:
                    found.add(member)
            elif record.established and key in state.missing and now - state.missing[key] >= self._limits.grace:
                found.add(member)
        return frozenset(found)

    def available(self, record: CopysetRecord, now: float, *, patient: bool = False) -> bool:
        """A leader that is online, and a quorum of members that are. patient: a copyset whose new leader has not been
        heard of yet still counts for a while, since a handover is reported by the old leader first."""
        key = (record.pool, record.id)
        if not self.leader(key, now) and not (
            patient and now - self._leaderless.get(key, float("-inf")) < self._limits.unhealthy_after
        ):
            return False
        alive = sum(1 for m in record.members if self.online(m, now) is Online.ONLINE)
        return alive > len(record.members) // 2

    def healthy(self, record: CopysetRecord, now: float, replicas: int) -> bool:
        return (
            self.available(record, now, patient=True)
            and len(record.members) >= replicas
            and all(self.heard(m) and self.online(m, now) is Online.ONLINE for m in record.members)
            and not self.lost(record, now)
        )

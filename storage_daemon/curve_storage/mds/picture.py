"""State and reports → the view that schedulers decide on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from curve_storage.mds.monitor import Disk, Monitor, Online
from curve_storage.mds.operators import Change
from curve_storage.mds.state import CopysetKey, Tables
from curve_storage.mds.view import Group, Node, Step, View

READWRITE, PENDING, RETIRED = 0, 1, 2


def node(tables: Tables, monitor: Monitor, chunkserver: int, now: float) -> Node:
    record = tables.chunkservers[chunkserver]
    online = monitor.online(chunkserver, now)
    state = monitor.servers.get(chunkserver)
    disk = state.beat.disk if state is not None else Disk.NORMAL
    return Node(
        id=chunkserver,
        zone=record.zone,
        server=record.server,
        physical_pool=record.physical_pool,
        online=online is Online.ONLINE and state is not None,
        offline=online is Online.OFFLINE or record.admin == RETIRED,
        draining=record.admin != READWRITE or disk is Disk.ERROR,
        writable=disk in (Disk.NORMAL, Disk.FORMATTING),
        settled=monitor.settled(chunkserver, now),
    )


class Groups(Mapping[CopysetKey, Group]):
    """The copysets as schedulers see them, each made when it is asked for."""

    def __init__(self, tables: Tables, monitor: Monitor, now: float) -> None:
        self._tables, self._monitor, self._now = tables, monitor, now
        self._made: dict[CopysetKey, Group] = {}

    def __getitem__(self, key: CopysetKey) -> Group:
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = self._make(key)
        return made

    def __iter__(self) -> Iterator[CopysetKey]:
        return iter(self._tables.copysets)

    def __len__(self) -> int:
        return len(self._tables.copysets)

    def _make(self, key: CopysetKey) -> Group:
        record, monitor = self._tables.copysets[key], self._monitor
        pool = self._tables.pools[record.pool]
        report = monitor.leaders.get(key)
        return Group(
            key=key,
            members=record.members,
            leader=monitor.leader(key, self._now),
            replicas=pool.replicas,
            zones=pool.zones,
            physical_pool=pool.physical_pool,
            changing=report is not None and report.change is Change.RUNNING,
            lost=monitor.lost(record, self._now),
            ghosts=frozenset(monitor.holders.get(key, ())) - frozenset(record.members),
        )


def attention(tables: Tables, monitor: Monitor, now: float) -> set[CopysetKey]:
    """All copysets that may be anything but in order: a leader and as many members as there should be, all of them on
    chunkservers that are online, stay in use and have reported a sound replica. In a large cluster they are few."""
    found = tables.unsized | tables.fresh | monitor.unled
    for number, record in tables.chunkservers.items():
        state = monitor.servers.get(number)
        if (
            state is None
            or not state.full
            or record.admin != READWRITE
            or state.beat.disk is Disk.ERROR
            or monitor.online(number, now) is not Online.ONLINE
        ):
            found.update(tables.copysets_of.get(number, ()))
            found.update(state.leads if state is not None else ())
        elif state.missing or state.corrupt:
            found.update(state.missing, state.corrupt)
    for number in tables.copysets_of.keys() - tables.chunkservers.keys():
        found |= tables.copysets_of[number]
    return found & tables.copysets.keys()


def view(tables: Tables, monitor: Monitor, steps: Mapping[CopysetKey, Step], *, now: float, per_node: int) -> View:
    return View(
        {i: node(tables, monitor, i, now) for i, r in tables.chunkservers.items() if r.admin != RETIRED},
        Groups(tables, monitor, now),
        dict(steps),
        per_node=per_node,
        on=tables.copysets_of,
        led=Led(tables, monitor),
        attention=attention(tables, monitor, now),
    )


class Led(Mapping[int, set[CopysetKey]]):
    """Copysets by the chunkserver that leads them; only those that are in the metadata."""

    def __init__(self, tables: Tables, monitor: Monitor) -> None:
        self._tables, self._monitor = tables, monitor

    def __getitem__(self, number: int) -> set[CopysetKey]:
        return self._monitor.servers[number].leads & self._tables.copysets.keys()

    def __iter__(self) -> Iterator[int]:
        return iter(self._monitor.servers)

    def __len__(self) -> int:
        return len(self._monitor.servers)

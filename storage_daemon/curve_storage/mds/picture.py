"""State and reports → the view that schedulers decide on."""

from __future__ import annotations

from collections.abc import Mapping

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


def view(tables: Tables, monitor: Monitor, steps: Mapping[CopysetKey, Step], *, now: float, per_node: int) -> View:
    nodes = {i: node(tables, monitor, i, now) for i, r in tables.chunkservers.items() if r.admin != RETIRED}
    groups = {}
    for key, record in tables.copysets.items():
        pool = tables.pools[record.pool]
        report = monitor.leaders.get(key)
        groups[key] = Group(
            key=key,
            members=record.members,
            leader=monitor.leader(key, now),
            replicas=pool.replicas,
            zones=pool.zones,
            physical_pool=pool.physical_pool,
            changing=report is not None and report.change is Change.RUNNING,
            lost=monitor.lost(record, now),
            ghosts=frozenset(monitor.holders.get(key, ())) - frozenset(record.members),
        )
    return View(nodes, groups, dict(steps), per_node=per_node)

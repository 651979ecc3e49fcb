"""Copysets: who their members are and which of them leads.

Members come from the MDS and are kept; the leader comes from the members themselves. When an attempt fails, one
search per copyset runs for all its waiting requests: it asks the members who leads, believes the highest term,
and lets the MDS renew the member list now and then. While the MDS is away the members known last are used.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

import msgspec

from curve_storage.client.health import PeerHealth
from curve_storage.clock import Clock
from curve_storage.errors import CurveError
from curve_storage.proto import mds_pb2
from curve_storage.rpc.leader import MdsClient
from curve_storage.wire.channel import ChannelPool
from curve_storage.wire.messages import MessageType, split_group

ASK_TIMEOUT = 0.3
REFRESH_TIMEOUT = 2.0
REFRESH_INTERVAL = 1.0

T = TypeVar("T")


class LeaderAnswer(msgspec.Struct):
    leader: int = 0
    term: int = 0


class Route:
    """What is known of one copyset. members: chunkserver id → host:port; leader 0: unknown."""

    __slots__ = ("_turn", "group", "leader", "members", "refreshed", "search", "term")

    def __init__(self, group: int) -> None:
        self.group = group
        self.members: dict[int, str] = {}
        self.leader = 0
        self.term = 0
        self.refreshed = float("-inf")
        self.search: asyncio.Task[None] | None = None
        self._turn = 0

    def target(self, health: PeerHealth) -> tuple[int, str]:
        """(id, address) to send to: the leader, or some member that answers and will name it. (0, "") when the
        members are unknown."""
        address = self.members.get(self.leader)
        if address is not None and not health.shunned(address):
            return self.leader, address
        if not self.members:
            return 0, ""
        candidates = [item for item in self.members.items() if not health.shunned(item[1])] or list(
            self.members.items()
        )
        self._turn += 1
        return candidates[self._turn % len(candidates)]

    def __str__(self) -> str:
        pool, copyset = split_group(self.group)
        return f"copyset {pool}/{copyset}"


class Router:
    """The routes of all copysets a process uses. on_change: told of every route whose leader a search has changed."""

    def __init__(self, mds: MdsClient, health: PeerHealth, clock: Clock) -> None:
        self._mds = mds
        self.health = health
        self._clock = clock
        self._routes: dict[int, Route] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self.on_change: list[Callable[[Route], None]] = []

    def route(self, group: int) -> Route:
        route = self._routes.get(group)
        if route is None:
            route = self._routes[group] = Route(group)
        return route

    def redirect(self, route: Route, sender: int, leader: int) -> bool:
        """`sender` said that `leader` leads. True when that can be followed at once."""
        if leader in (0, sender) or leader not in route.members:
            return False
        route.leader = leader
        return not self.health.shunned(route.members[leader])

    def search(self, route: Route, pool: ChannelPool) -> asyncio.Task[None]:
        """The one search under way for this copyset, started if there is none. It never fails: wait for it with
        `asyncio.wait`, which leaves it to the others when one gives up."""
        if route.search is None or route.search.done():
            route.search = asyncio.get_running_loop().create_task(self._search(route, pool))
        return route.search

    async def load(self, route: Route) -> None:
        """Members from the MDS; CurveError when it does not answer in time."""
        route.refreshed = self._clock.monotonic()
        pool_id, copyset_id = split_group(route.group)
        reply = await self._mds.topology.GetCopysets(
            mds_pb2.GetCopysetsRequest(pool_id=pool_id, copyset_ids=[copyset_id]), timeout=REFRESH_TIMEOUT
        )
        for copyset in reply.copysets:
            members = {m.chunkserver_id: m.address for m in copyset.members if m.address}
            if not members:
                continue
            route.members = members
            if route.leader not in members:
                route.leader = copyset.leader if copyset.leader in members else 0

    async def close(self) -> None:
        tasks = [r.search for r in self._routes.values() if r.search is not None] + list(self._background)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _search(self, route: Route, pool: ChannelPool) -> None:
        before = route.leader
        if self._clock.monotonic() - route.refreshed >= REFRESH_INTERVAL:
            refresh = self._start(self._refresh(route))
            # The MDS may be away, or be slow to notice: members that are known are asked meanwhile.
            if not route.members:
                await asyncio.wait({refresh})
        asked = {self._start(self._ask(route, node, address, pool)) for node, address in route.members.items()}
        while asked:
            done, asked = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            if self._elect(route, (task.result() for task in done)) and route.leader != before:
                break  # news: whoever has not answered yet need not be waited for
        if route.leader != before:
            for listener in list(self.on_change):
                listener(route)

    def _elect(self, route: Route, answers: Iterable[LeaderAnswer | None]) -> bool:
        """Believes the highest term; True when some answer was at least as new as what was known."""
        found = False
        for answer in answers:
            if answer is None or answer.leader not in route.members or answer.term < route.term:
                continue
            # At the same term there is one leader; a member may only not know it yet.
            route.term, route.leader, found = answer.term, answer.leader, True
        return found

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def _refresh(self, route: Route) -> None:
        with contextlib.suppress(CurveError):
            await self.load(route)

    async def _ask(self, route: Route, node: int, address: str, pool: ChannelPool) -> LeaderAnswer | None:
        try:
            reply = await pool.channel(address).call(
                MessageType.GET_LEADER, msgspec.msgpack.encode({"group": route.group}), timeout=ASK_TIMEOUT
            )
            answer = msgspec.msgpack.decode(reply.meta, type=LeaderAnswer)
        except (CurveError, msgspec.MsgspecError):
            return None
        if answer.leader == node:
            # Slow perhaps, but alive and leading: nobody else can serve.
            self.health.answered(address)
        return answer

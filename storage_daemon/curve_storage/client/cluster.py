"""A process's connection to one cluster: the MDS, and what is shared by all volumes opened through it."""

from __future__ import annotations

from collections.abc import Callable

from curve_storage.client.config import ClientConfig
from curve_storage.client.health import PeerHealth
from curve_storage.client.routing import Router
from curve_storage.client.session import client_name
from curve_storage.clock import Clock, SystemClock
from curve_storage.rpc.leader import MdsClient
from curve_storage.wire.channel import ChannelPool


class Cluster:
    """mds: gRPC stubs that follow the leader; router: members and leaders of copysets."""

    def __init__(
        self, config: ClientConfig, *, clock: Clock | None = None, deadline: float = 10.0, mds: MdsClient | None = None
    ) -> None:
        """Connects lazily: nothing is sent before the first use. deadline: seconds for an MDS call without its own."""
        self.config = config
        self.clock: Clock = clock or SystemClock()
        self.mds = mds or MdsClient(list(config.mds), tls=config.tls, deadline=deadline)
        self.health = PeerHealth(self.clock)
        self.router = Router(self.mds, self.health, self.clock)

    def channels(self, token: Callable[[], bytes]) -> ChannelPool:
        """Connections to chunkservers for one volume: they carry its token, which is asked for at each connect."""
        return ChannelPool(token=token, client=client_name(), tls=self.config.tls)

    async def close(self) -> None:
        await self.router.close()
        await self.mds.close()

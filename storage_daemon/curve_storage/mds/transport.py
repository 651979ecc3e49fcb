"""The MDS's own requests on chunkservers' data ports, under a cluster token that is renewed in time."""

from __future__ import annotations

from curve_storage.clock import Clock
from curve_storage.config import TlsFiles
from curve_storage.mds.core import Signer
from curve_storage.wire.channel import ChannelPool
from curve_storage.wire.token import CLUSTER_SCOPE


class WireTransport:
    """ttl: seconds a cluster token is good for; a new one is made at half of it."""

    def __init__(self, signer: Signer, clock: Clock, *, name: str, ttl: float, tls: TlsFiles | None) -> None:
        self._signer = signer
        self._clock = clock
        self._ttl = ttl
        self._token = b""
        self._renew_at = 0.0
        self._pool = ChannelPool(token=self._present, client=f"mds {name}", tls=tls)

    def _present(self) -> bytes:
        now = self._clock.wall()
        if now >= self._renew_at:
            self._token = self._signer.sign(CLUSTER_SCOPE, epoch=0, rights="rw", expires=now + self._ttl)
            self._renew_at = now + self._ttl / 2
        return self._token

    async def call(self, address: str, type: int, meta: bytes, timeout: float) -> None:
        await self._pool.channel(address).call(type, meta, timeout=timeout)

    async def close(self) -> None:
        await self._pool.close()

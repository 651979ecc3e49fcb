"""The store in etcd: reads by pages, writes only under the leader's guard."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping

from curve_storage.coordination.etcd import EtcdClient
from curve_storage.coordination.guarded import GuardedStore


class EtcdStore:
    """See store.Store for the contract."""

    def __init__(self, client: EtcdClient, guarded: GuardedStore) -> None:
        self._client = client
        self._guarded = guarded

    async def load(self, prefix: str) -> AsyncIterator[tuple[str, bytes]]:
        pairs, _revision = await self._client.get_prefix(prefix.encode())
        for pair in pairs:
            yield pair.key.decode(), pair.value

    async def commit(self, puts: Mapping[str, bytes], deletes: Iterable[str]) -> None:
        await self._guarded.commit(
            {key.encode(): value for key, value in puts.items()}, [key.encode() for key in deletes]
        )

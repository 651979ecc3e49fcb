"""Watching a key or prefix: changes in order of revision, across failures of members."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator

from aetcd import rpc
from grpc import aio

from curve_storage.coordination.etcd import METADATA, EtcdClient, prefix_end
from curve_storage.coordination.model import Event, KeyValue
from curve_storage.errors import Aborted, Unavailable

_PAUSE = 0.2


async def watch(
    client: EtcdClient, key: bytes, *, prefix: bool = False, start_revision: int = 0
) -> AsyncGenerator[list[Event], None]:
    """Batches of events from `start_revision` on (0: from now on). Reconnects without end, missing nothing.

    Raises Aborted when etcd compacted what has not been delivered yet: read everything again and watch from there. A
    member cut off from the network is noticed only by keepalive (up to 9 s): who cannot wait polls as well.
    """
    revision = start_revision
    full = client.full_key(key)
    while True:
        position = client.current
        member = client.member(position)
        stream = member.watch.Watch(metadata=METADATA)
        try:
            create = rpc.WatchCreateRequest(
                key=full, range_end=prefix_end(full) if prefix else b"", start_revision=revision
            )
            await stream.write(rpc.WatchRequest(create_request=create))
            while True:
                reply = await stream.read()
                if reply is aio.EOF:
                    raise Unavailable("the watch ended")
                if reply.compact_revision:
                    raise Aborted(
                        f"etcd compacted revision {revision}", where=key.decode(errors="replace"), todo="Read again"
                    )
                if reply.canceled:
                    raise Unavailable(reply.cancel_reason or "the watch was cancelled")
                if reply.created:
                    # From here on a reconnection must not skip what happens between the two connections.
                    revision = revision or int(reply.header.revision) + 1
                    continue
                if reply.events:
                    events = [_event(client, event) for event in reply.events]
                    revision = events[-1].kv.mod_revision + 1
                    yield events
        except (aio.AioRpcError, aio.UsageError, Unavailable, asyncio.InvalidStateError):
            client.leave(position)
            await asyncio.sleep(_PAUSE * random.uniform(0.5, 1.0))
        finally:
            stream.cancel()


def _event(client: EtcdClient, event: rpc.Event) -> Event:
    kv = event.kv
    return Event(
        "delete" if event.type == rpc.Event.DELETE else "put",
        KeyValue(
            client.bare_key(bytes(kv.key)), bytes(kv.value), kv.create_revision, kv.mod_revision, kv.version, kv.lease
        ),
    )

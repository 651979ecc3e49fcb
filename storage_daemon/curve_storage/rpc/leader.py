"""Stubs of the MDS's services that find the leader by themselves.

A call goes to the address that answered last. `not_leader` names the next address to ask; an address that does not
answer is passed over; all of that until the call's deadline, with a growing pause between rounds. All attempts of a
call carry the same request id.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable, Sequence
from typing import Any, cast

from grpc import aio
from structlog.contextvars import get_contextvars

from curve_storage.config import TlsFiles
from curve_storage.errors import CurveError, DeadlineExceeded, InvalidArgument, NotLeader, Unavailable
from curve_storage.proto import mds_pb2_grpc
from curve_storage.rpc.channel import tcp_channel, tls_stamp
from curve_storage.rpc.errors import from_rpc_error
from curve_storage.rpc.server import REQUEST_ID_KEY
from curve_storage.telemetry import logs

_FIRST_PAUSE = 0.05
_LAST_PAUSE = 1.0
_LEAST_ATTEMPT = 0.05

log = logs.get("rpc.leader")


class MdsClient:
    """addresses: host:port of the MDSs. deadline: seconds a call may take when it gives no `timeout`.

    Use `await client.namespace.GetVolume(request, timeout=5)`; only CurveErrors are raised."""

    def __init__(self, addresses: Sequence[str], *, tls: TlsFiles | None = None, deadline: float = 30.0) -> None:
        if not addresses:
            raise InvalidArgument("no MDS address given", todo="Name at least one MDS in `mds`")
        self._group = _Group(list(dict.fromkeys(addresses)), tls, deadline)
        channel = cast(aio.Channel, self._group)
        self.namespace = mds_pb2_grpc.NamespaceStub(channel)
        self.topology = mds_pb2_grpc.TopologyStub(channel)
        self.heartbeat = mds_pb2_grpc.HeartbeatStub(channel)
        self.schedule = mds_pb2_grpc.ScheduleStub(channel)
        self.admin = mds_pb2_grpc.AdminStub(channel)

    @property
    def addresses(self) -> list[str]:
        return list(self._group.addresses)

    @property
    def address(self) -> str:
        """Where the next call goes first: the leader, as far as known."""
        return self._group.current

    async def close(self) -> None:
        await self._group.close()


class _Group:
    """Looks like a channel to the generated stubs; behind it is one channel per address."""

    def __init__(self, addresses: list[str], tls: TlsFiles | None, deadline: float) -> None:
        self.addresses = addresses
        self.current = random.choice(addresses)
        self.deadline = deadline
        self._tls = tls
        self._channels: dict[str, tuple[aio.Channel, object]] = {}
        self._closed = False

    def unary_unary(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool | None = False,
    ) -> _Method:
        return _Method(self, method, request_serializer, response_deserializer)

    def channel(self, address: str) -> aio.Channel:
        if self._closed:
            raise Unavailable("the MDS client is closed")
        stamp = tls_stamp(self._tls) if self._tls is not None else None
        found = self._channels.get(address)
        if found is not None and found[1] == stamp:
            return found[0]
        if found is not None:  # certificates were rotated: let the calls on the old channel finish
            retiring = asyncio.get_running_loop().create_task(found[0].close(grace=30))
            _background.add(retiring)
            retiring.add_done_callback(_background.discard)
        channel = tcp_channel(address, self._tls)
        self._channels[address] = (channel, stamp)
        return channel

    def after(self, address: str) -> str:
        """The address to try when `address` did not help."""
        try:
            return self.addresses[(self.addresses.index(address) + 1) % len(self.addresses)]
        except ValueError:  # one that a hint named
            return random.choice(self.addresses)

    async def close(self) -> None:
        self._closed = True
        channels, self._channels = self._channels, {}
        for channel, _stamp in channels.values():
            await channel.close()


_background: set[asyncio.Task[None]] = set()


class _Method:
    def __init__(
        self,
        group: _Group,
        method: str,
        serializer: Callable[[Any], bytes] | None,
        deserializer: Callable[[bytes], Any] | None,
    ) -> None:
        self._group = group
        self._method = method
        self._serializer = serializer
        self._deserializer = deserializer

    async def __call__(self, request: Any, *, timeout: float | None = None) -> Any:
        group = self._group
        loop = asyncio.get_running_loop()
        limit = group.deadline if timeout is None else timeout
        deadline = loop.time() + limit
        request_id = str(get_contextvars().get("request_id") or secrets.token_hex(8))
        errors: dict[str, CurveError] = {}
        refusal: CurveError | None = None  # the leader's own "not now", which says more than any connection's failure
        pause = _FIRST_PAUSE
        hops = 0
        address = group.current
        while True:
            remaining = deadline - loop.time()
            if remaining < _LEAST_ATTEMPT and errors:
                raise refusal or self._give_up(errors, limit)
            try:
                reply = await self._attempt(address, request, max(remaining, _LEAST_ATTEMPT), request_id)
            except NotLeader as error:
                errors[address] = error
                hops += 1
                hint = error.leader
                if hint and hint != address and hops <= len(group.addresses) + 1:
                    group.current = address = hint
                    continue
            except Unavailable as error:
                errors[address] = error
                if error.where != f"MDS {address}":
                    refusal = error
            except DeadlineExceeded as error:
                group.current = group.after(address)  # it may be paused: the next call begins elsewhere
                if errors and loop.time() >= deadline - _LEAST_ATTEMPT:
                    errors[address] = error
                    raise refusal or self._give_up(errors, limit) from error
                raise
            else:
                group.current = address
                return reply
            following = group.after(address)
            group.current = address = following
            if all(known in errors for known in group.addresses):
                hops = 0
                rest = deadline - loop.time()
                if rest <= _LEAST_ATTEMPT:
                    raise refusal or self._give_up(errors, limit)
                await asyncio.sleep(min(rest, pause * random.uniform(0.5, 1.0)))
                pause = min(_LAST_PAUSE, pause * 2)

    async def _attempt(self, address: str, request: Any, timeout: float, request_id: str) -> Any:
        call = self._group.channel(address).unary_unary(
            self._method, request_serializer=self._serializer, response_deserializer=self._deserializer
        )
        try:
            return await call(request, timeout=timeout, metadata=((REQUEST_ID_KEY, request_id),))
        except aio.AioRpcError as error:
            raise from_rpc_error(error, where=f"MDS {address}") from None
        except aio.UsageError as error:  # the channel was closed under the call
            raise Unavailable(str(error), where=f"MDS {address}") from None

    def _give_up(self, errors: dict[str, CurveError], limit: float) -> CurveError:
        reasons = "; ".join(f"{address}: {error.what}" for address, error in errors.items())
        if any(isinstance(error, NotLeader) for error in errors.values()):
            return NotLeader(
                f"no MDS is the leader ({reasons})",
                todo="Wait for the election; when it does not end, check etcd and the MDS logs",
            )
        return Unavailable(
            f"no MDS answered within {limit:g} s ({reasons})",
            todo="Check that the MDS processes run and that their addresses are right",
        )

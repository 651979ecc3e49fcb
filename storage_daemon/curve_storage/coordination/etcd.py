"""etcd for the rest of the system: deadlines on everything, failover between members, CurveErrors only.

It speaks through aetcd's generated stubs over channels of its own, since aetcd's client knows neither TLS nor several
endpoints, nor limits of range reads. Keys are bytes below the configured prefix, which callers never see.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

import grpc
from aetcd import rpc
from grpc import aio

from curve_storage.config import EtcdConfig
from curve_storage.coordination.model import Compare, KeyValue, Lease, TxnResult
from curve_storage.errors import (
    Aborted,
    CurveError,
    InvalidArgument,
    NoSpace,
    Overloaded,
    Unavailable,
)
from curve_storage.rpc.channel import read_pem, tls_stamp
from curve_storage.rpc.errors import from_rpc_error
from curve_storage.telemetry import metrics
from curve_storage.units import MiB

MAX_TXN_OPERATIONS = 128
"""etcd's default --max-txn-ops."""
_PAGE = 1000
_FIRST_PAUSE = 0.05
_LAST_PAUSE = 0.5
METADATA = (("hasleader", "true"),)  # a member without a quorum answers an error instead of nothing
_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.max_receive_message_length", 64 * MiB),
    ("grpc.max_send_message_length", 64 * MiB),
    ("grpc.keepalive_time_ms", 6000),  # etcd refuses pings more frequent than every 5 s
    ("grpc.keepalive_timeout_ms", 3000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
)


_seconds = metrics.histogram("curve_etcd_seconds", "Duration of etcd operations that were answered")
_failures = metrics.counter("curve_etcd_failures_total", "Attempts that etcd answered with an error, or not at all")


class Stubs:
    """The stubs of one member's channel."""

    def __init__(self, address: str, channel: aio.Channel, stamp: object) -> None:
        self.address = address
        self.channel = channel
        self.stamp = stamp
        self.kv: Any = rpc.KVStub(channel)
        self.lease: Any = rpc.LeaseStub(channel)
        self.watch: Any = rpc.WatchStub(channel)
        self.maintenance: Any = rpc.MaintenanceStub(channel)


class EtcdClient:
    """deadline: seconds an operation may take over all attempts; attempt: seconds one member may take to answer."""

    def __init__(self, config: EtcdConfig, *, deadline: float = 5.0, attempt: float = 1.5) -> None:
        self._config = config
        self._prefix = config.prefix.encode()
        self._deadline = deadline
        self._attempt = attempt
        self._targets = [_parse_endpoint(endpoint, config) for endpoint in config.endpoints]
        self._members: list[Stubs | None] = [None] * len(self._targets)
        self._current = random.randrange(len(self._targets))
        self._background: set[asyncio.Task[None]] = set()
        self._closed = False

    async def close(self) -> None:
        self._closed = True
        members, self._members = self._members, [None] * len(self._targets)
        for member in members:
            if member is not None:
                await member.channel.close()

    # ---- reads

    async def get(self, key: bytes, *, deadline: float | None = None) -> KeyValue | None:
        """Linearizable."""
        request = rpc.RangeRequest(key=self._prefix + key)
        reply = await self.call(lambda stubs: stubs.kv.Range, request, deadline=deadline)
        return self._key_value(reply.kvs[0]) if reply.kvs else None

    async def get_prefix(
        self, prefix: bytes, *, page: int = _PAGE, deadline: float | None = None
    ) -> tuple[list[KeyValue], int]:
        """Everything below `prefix` in key order, as of one revision, which is returned too (watch from the next).

        Read in pages, each with the operation's deadline. Raises Aborted when etcd compacted that revision meanwhile.
        """
        start = self._prefix + prefix
        end = prefix_end(start)
        found: list[KeyValue] = []
        revision = 0
        while True:
            request = rpc.RangeRequest(key=start, range_end=end, limit=page, revision=revision)
            reply = await self.call(lambda stubs: stubs.kv.Range, request, deadline=deadline)
            revision = revision or int(reply.header.revision)
            found += map(self._key_value, reply.kvs)
            if not reply.more:
                return found, revision
            start = reply.kvs[-1].key + b"\0"

    # ---- writes

    async def txn(
        self,
        compares: Sequence[Compare] = (),
        puts: Mapping[bytes, bytes] | None = None,
        deletes: Sequence[bytes] = (),
        *,
        delete_prefixes: Sequence[bytes] = (),
        lease: int = 0,
        otherwise_get: Sequence[bytes] = (),
        repeatable: bool = False,
        deadline: float | None = None,
    ) -> TxnResult:
        """Puts and deletes if all compares hold; else nothing, and the keys of `otherwise_get` are returned.

        lease: attached to all puts. repeatable: the caller can tell by the compares when an earlier attempt took
        effect, so the transaction may be sent again; without it an attempt without an answer raises Aborted (outcome
        unknown).
        """
        operations = [
            rpc.RequestOp(request_put=rpc.PutRequest(key=self._prefix + key, value=value, lease=lease))
            for key, value in (puts or {}).items()
        ]
        operations += [
            rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=self._prefix + key)) for key in deletes
        ]
        for prefix in delete_prefixes:
            start = self._prefix + prefix
            request = rpc.DeleteRangeRequest(key=start, range_end=prefix_end(start))
            operations.append(rpc.RequestOp(request_delete_range=request))
        return await self.submit(
            compares, operations, otherwise_get=otherwise_get, repeatable=repeatable, deadline=deadline
        )

    def put_operation(self, key: bytes, value: bytes, lease: int = 0) -> Any:
        return rpc.RequestOp(request_put=rpc.PutRequest(key=self._prefix + key, value=value, lease=lease))

    def delete_operation(self, key: bytes, *, prefix: bool = False) -> Any:
        start = self._prefix + key
        return rpc.RequestOp(
            request_delete_range=rpc.DeleteRangeRequest(key=start, range_end=prefix_end(start) if prefix else b"")
        )

    async def submit(
        self,
        compares: Sequence[Compare],
        operations: Sequence[Any],
        *,
        otherwise_get: Sequence[bytes] = (),
        repeatable: bool = False,
        deadline: float | None = None,
    ) -> TxnResult:
        if len(operations) > MAX_TXN_OPERATIONS or len(compares) > MAX_TXN_OPERATIONS:
            raise InvalidArgument(
                f"a transaction of {len(operations)} operations", todo=f"etcd takes {MAX_TXN_OPERATIONS}: split it"
            )
        request = rpc.TxnRequest(
            compare=[_compare(self._prefix, compare) for compare in compares],
            success=list(operations),
            failure=[rpc.RequestOp(request_range=rpc.RangeRequest(key=self._prefix + key)) for key in otherwise_get],
        )
        reply = await self.call(lambda stubs: stubs.kv.Txn, request, repeatable=repeatable, deadline=deadline)
        found: list[KeyValue | None] = []
        if not reply.succeeded:
            for response in reply.responses:
                kvs = response.response_range.kvs
                found.append(self._key_value(kvs[0]) if kvs else None)
        return TxnResult(bool(reply.succeeded), int(reply.header.revision), found)

    async def put(self, key: bytes, value: bytes, *, lease: int = 0, deadline: float | None = None) -> int:
        """Returns the revision. Raises Aborted when the outcome is unknown."""
        return (await self.txn(puts={key: value}, lease=lease, deadline=deadline)).revision

    async def delete(self, key: bytes, *, deadline: float | None = None) -> None:
        await self.txn(deletes=[key], repeatable=True, deadline=deadline)

    # ---- leases

    async def grant(self, ttl: float, *, deadline: float | None = None) -> Lease:
        """ttl in seconds, whole ones; etcd may grant more (its least is 1.5 × its election timeout)."""
        request = rpc.LeaseGrantRequest(TTL=max(1, round(ttl)))
        reply = await self.call(lambda stubs: stubs.lease.LeaseGrant, request, deadline=deadline)
        return Lease(int(reply.ID), float(reply.TTL))

    async def renew(self, lease: int, *, deadline: float | None = None, attempt: float | None = None) -> float:
        """Seconds the lease lives from the moment this was sent at the earliest; 0 when it is gone."""

        def once(stubs: Stubs) -> Callable[..., Any]:
            async def keep_alive(request: Any, *, timeout: float, metadata: Any) -> Any:
                stream = stubs.lease.LeaseKeepAlive(timeout=timeout, metadata=metadata)
                try:
                    await stream.write(request)
                    reply = await stream.read()
                finally:
                    stream.cancel()
                if reply is aio.EOF:
                    raise Unavailable("the keep-alive stream ended", where=f"etcd {stubs.address}")
                return reply

            return keep_alive

        request = rpc.LeaseKeepAliveRequest(ID=lease)
        reply = await self.call(once, request, deadline=deadline, attempt=attempt)
        return float(reply.TTL)

    async def revoke(self, lease: int, *, deadline: float | None = None) -> None:
        """Deletes the lease and its keys at once. Raises NotFound when it is gone already."""
        await self.call(lambda stubs: stubs.lease.LeaseRevoke, rpc.LeaseRevokeRequest(ID=lease), deadline=deadline)

    # ---- members

    async def call(
        self,
        method: Callable[[Stubs], Callable[..., Any]],
        request: Any,
        *,
        repeatable: bool = True,
        deadline: float | None = None,
        attempt: float | None = None,
    ) -> Any:
        """One operation on any member: the last good one first, then the next ones, until the deadline."""
        loop = asyncio.get_running_loop()
        limit = self._deadline if deadline is None else deadline
        longest = self._attempt if attempt is None else attempt
        end = loop.time() + limit
        pause = _FIRST_PAUSE
        failures = 0
        while True:
            position = self._current
            stubs = self.member(position)
            timeout = max(0.05, min(longest, end - loop.time()))
            started = perf_counter()
            try:
                reply = await method(stubs)(request, timeout=timeout, metadata=METADATA)
                _seconds.observe(perf_counter() - started)
                return reply
            except aio.AioRpcError as raised:
                error = _translate(raised, stubs.address)
                again = raised.code() in _TRY_ANOTHER
                _failures.inc()
                unsent = "failed to connect" in (raised.details() or "").lower()
            except Unavailable as raised:
                error, again, unsent = raised, True, False
            except aio.UsageError as raised:  # the channel was closed under the call
                error, again, unsent = Unavailable(str(raised), where=f"etcd {stubs.address}"), not self._closed, True
            if not again:
                raise error
            if not repeatable and not unsent:
                raise Aborted(
                    f"etcd gave no answer, the outcome is unknown ({error.what})", where=error.where, todo="Read again"
                )
            self.leave(position)
            failures += 1
            rest = end - loop.time()
            if rest <= 0.05:
                raise Unavailable(
                    f"etcd did not answer within {limit:g} s ({error.what})",
                    where=", ".join(target[0] for target in self._targets),
                    todo="Check that a majority of etcd's members run and that their addresses are right",
                )
            if failures % len(self._targets) == 0:
                await asyncio.sleep(min(rest, pause * random.uniform(0.5, 1.0)))
                pause = min(_LAST_PAUSE, pause * 2)

    @property
    def current(self) -> int:
        return self._current

    def member(self, position: int) -> Stubs:
        if self._closed:
            raise Unavailable("the etcd client is closed")
        address, secure = self._targets[position]
        tls = self._config.tls
        stamp = tls_stamp(tls) if tls is not None else None
        stubs = self._members[position]
        if stubs is not None and stubs.stamp == stamp:
            return stubs
        if stubs is not None:  # certificates were rotated: calls on the old channel may finish
            task = asyncio.get_running_loop().create_task(stubs.channel.close(grace=10))
            self._background.add(task)
            task.add_done_callback(self._background.discard)
        if not secure:
            channel = aio.insecure_channel(address, options=_OPTIONS)
        else:
            credentials = (
                grpc.ssl_channel_credentials(read_pem(tls.ca), read_pem(tls.key), read_pem(tls.cert))
                if tls is not None
                else grpc.ssl_channel_credentials()
            )
            channel = aio.secure_channel(address, credentials, options=_OPTIONS)
        stubs = self._members[position] = Stubs(address, channel, stamp)
        return stubs

    def leave(self, position: int) -> None:
        """The member at `position` did not answer: go on with the next, unless someone moved on already."""
        if self._current == position:
            self._current = (position + 1) % len(self._targets)

    def full_key(self, key: bytes) -> bytes:
        return self._prefix + key

    def bare_key(self, key: bytes) -> bytes:
        return key[len(self._prefix) :]

    def _key_value(self, kv: Any) -> KeyValue:
        return KeyValue(
            bytes(kv.key)[len(self._prefix) :],
            bytes(kv.value),
            kv.create_revision,
            kv.mod_revision,
            kv.version,
            kv.lease,
        )


_TRY_ANOTHER = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
)


def prefix_end(prefix: bytes) -> bytes:
    """The end of the range of keys beginning with `prefix`; b"\\0" (all keys from there on) when there is none."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else b"\0"


def _translate(error: aio.AioRpcError, address: str) -> CurveError:
    where = f"etcd {address}"
    details = error.details() or ""
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        if "space exceeded" in details:
            return NoSpace(
                "etcd's database is full",
                where=where,
                todo="Compact and defragment it, raise --quota-backend-bytes, then `etcdctl alarm disarm`",
            )
        return Overloaded(details, where=where, todo="Retry in a moment")
    if error.code() is grpc.StatusCode.OUT_OF_RANGE and "compacted" in details:
        return Aborted("etcd compacted the revision that was being read", where=where, todo="Read again")
    return from_rpc_error(error, where)


def _parse_endpoint(endpoint: str, config: EtcdConfig) -> tuple[str, bool]:
    scheme, separator, address = endpoint.rpartition("://")
    address = address.rstrip("/")
    host, colon, port = address.rpartition(":")
    if (separator and scheme not in ("http", "https")) or not colon or not host or not port.isdigit():
        raise InvalidArgument(f"{endpoint!r} is not an etcd endpoint", todo="Use host:port or https://host:port")
    return address, scheme == "https" or (not separator and config.tls is not None)


_TARGETS = {"create": "CREATE", "mod": "MOD", "version": "VERSION", "value": "VALUE"}
_RESULTS = {"=": "EQUAL", "!=": "NOT_EQUAL", ">": "GREATER", "<": "LESS"}
_FIELDS = {"create": "create_revision", "mod": "mod_revision", "version": "version", "value": "value"}


def _compare(prefix: bytes, compare: Compare) -> Any:
    return rpc.Compare(
        key=prefix + compare.key,
        target=rpc.Compare.CompareTarget.Value(_TARGETS[compare.target]),
        result=rpc.Compare.CompareResult.Value(_RESULTS[compare.operator]),
        **{_FIELDS[compare.target]: compare.operand},
    )

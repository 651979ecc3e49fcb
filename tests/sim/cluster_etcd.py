"""etcd as its clients see it: linearizable, durable, with leases and watches; the real client talks to it.

It may be away for a while (its process is killed): what it acknowledged is there afterwards, and leases start anew, as
after a change of etcd's leader.
"""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import grpc
from aetcd import rpc as pb
from cluster_loop import Process
from cluster_rpc import Answer, SimStream

ADDRESS = "etcd:2379"
_OPERATORS = {0: lambda a, b: a == b, 1: lambda a, b: a > b, 2: lambda a, b: a < b, 3: lambda a, b: a != b}


@dataclass(slots=True)
class _Value:
    value: bytes
    created: int
    modified: int
    version: int
    lease: int


class _Refused(Exception):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code


class Etcd:
    def __init__(self, world: Any) -> None:
        self.world = world
        self.process = Process(world, "etcd", self._boot)
        self.revision = 1
        self.pairs: dict[bytes, _Value] = {}
        self._leases: dict[int, tuple[float, float]] = {}
        """id → (ttl, expiry in the world's time)"""
        self._next_lease = 1000
        self._watches: list[tuple[SimStream, bytes, bytes]] = []
        self._events: list[tuple[int, str, bytes, _Value]] = []
        world.rpc.servers[ADDRESS] = (self.process, self._serve)
        world.rpc.streams[ADDRESS] = self._stream

    def _boot(self, process: Process) -> Coroutine[Any, Any, None]:
        async def run() -> None:
            now = self.world.scheduler.time
            self._leases = {lease: (ttl, now + ttl) for lease, (ttl, _) in self._leases.items()}
            assert process.loop is not None
            process.loop.call_later(0.05, self._expire)

        return run()

    def killed(self) -> None:
        watches, self._watches = self._watches, []
        for stream, _, _ in watches:
            stream.fail(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    def _expire(self) -> None:
        assert self.process.loop is not None
        self.process.loop.call_later(0.05, self._expire)
        now = self.world.scheduler.time
        for lease, (_, until) in list(self._leases.items()):
            if now >= until:
                self._drop(lease)

    def _drop(self, lease: int) -> None:
        del self._leases[lease]
        keys = [key for key, value in self.pairs.items() if value.lease == lease]
        if keys:
            self.revision += 1
            for key in keys:
                self._delete(key)

    # --- requests ----------------------------------------------------------------------------------------------------

    def _serve(self, method: str, request: bytes, timeout: float, answer: Answer) -> None:
        loop = self.process.loop
        assert loop is not None

        def work() -> None:
            try:
                reply = self._execute(method.rpartition("/")[2], request)
            except _Refused as error:
                answer(error.code, b"", str(error), ())
            else:
                answer(grpc.StatusCode.OK, reply.SerializeToString(), "", ())

        loop.later(self.world.rng.uniform(0.0002, 0.004), work)

    def _execute(self, method: str, data: bytes) -> Any:
        if method == "Range":
            return self._range(pb.RangeRequest.FromString(data))
        if method == "Txn":
            return self._txn(pb.TxnRequest.FromString(data))
        if method == "LeaseGrant":
            self._next_lease += 1
            ttl = float(max(1, pb.LeaseGrantRequest.FromString(data).TTL))
            self._leases[self._next_lease] = (ttl, self.world.scheduler.time + ttl)
            return pb.LeaseGrantResponse(ID=self._next_lease, TTL=int(ttl))
        assert method == "LeaseRevoke", method
        lease = pb.LeaseRevokeRequest.FromString(data).ID
        if lease not in self._leases:
            raise _Refused(grpc.StatusCode.NOT_FOUND, "etcdserver: requested lease not found")
        self._drop(lease)
        return pb.LeaseRevokeResponse()

    def _header(self) -> Any:
        return pb.ResponseHeader(revision=self.revision)

    def _pair(self, key: bytes, value: _Value) -> Any:
        return pb.KeyValue(
            key=key, value=value.value, create_revision=value.created, mod_revision=value.modified,
            version=value.version, lease=value.lease,
        )  # fmt: skip

    def _keys(self, key: bytes, end: bytes) -> list[bytes]:
        if not end:
            return [key] if key in self.pairs else []
        return sorted(each for each in self.pairs if key <= each < end)

    def _range(self, request: Any) -> Any:
        keys = self._keys(request.key, request.range_end)
        assert not request.limit or len(keys) <= request.limit, "pages are not simulated"
        kvs = [self._pair(key, self.pairs[key]) for key in keys]
        return pb.RangeResponse(header=self._header(), kvs=kvs, count=len(kvs))

    def _txn(self, request: Any) -> Any:
        succeeded = all(self._holds(compare) for compare in request.compare)
        operations = request.success if succeeded else request.failure
        for operation in operations:
            lease = operation.request_put.lease
            if lease and lease not in self._leases:
                raise _Refused(grpc.StatusCode.NOT_FOUND, "etcdserver: requested lease not found")
        if any(operation.WhichOneof("request") != "request_range" for operation in operations):
            self.revision += 1
        responses = []
        for operation in operations:
            match operation.WhichOneof("request"):
                case "request_put":
                    self._put(operation.request_put)
                    responses.append(pb.ResponseOp(response_put=pb.PutResponse()))
                case "request_delete_range":
                    for key in self._keys(operation.request_delete_range.key, operation.request_delete_range.range_end):
                        self._delete(key)
                    responses.append(pb.ResponseOp(response_delete_range=pb.DeleteRangeResponse()))
                case _:
                    responses.append(pb.ResponseOp(response_range=self._range(operation.request_range)))
        return pb.TxnResponse(header=self._header(), succeeded=succeeded, responses=responses)

    def _holds(self, compare: Any) -> bool:
        value = self.pairs.get(compare.key)
        holds = _OPERATORS[compare.result]
        match compare.WhichOneof("target_union"):
            case "version":
                return holds(value.version if value else 0, compare.version)
            case "create_revision":
                return holds(value.created if value else 0, compare.create_revision)
            case "mod_revision":
                return holds(value.modified if value else 0, compare.mod_revision)
            case _:
                return value is not None and holds(value.value, compare.value)

    def _put(self, put: Any) -> None:
        old = self.pairs.get(put.key)
        created, version = (old.created, old.version + 1) if old else (self.revision, 1)
        value = self.pairs[put.key] = _Value(put.value, created, self.revision, version, put.lease)
        self._changed("put", put.key, value)

    def _delete(self, key: bytes) -> None:
        del self.pairs[key]
        self._changed("delete", key, _Value(b"", 0, self.revision, 0, 0))

    # --- streams -----------------------------------------------------------------------------------------------------

    def _stream(self, stream: SimStream, data: bytes) -> None:
        if stream.method.endswith("LeaseKeepAlive"):
            lease = pb.LeaseKeepAliveRequest.FromString(data).ID
            found = self._leases.get(lease)
            if found is not None:
                self._leases[lease] = (found[0], self.world.scheduler.time + found[0])
            stream.push(
                pb.LeaseKeepAliveResponse(ID=lease, TTL=int(found[0]) if found is not None else 0).SerializeToString()
            )
            return
        request = pb.WatchRequest.FromString(data).create_request
        end = request.range_end or request.key + b"\0"
        self._watches = [watch for watch in self._watches if not watch[0].cancelled]
        self._watches.append((stream, request.key, end))
        stream.push(pb.WatchResponse(header=self._header(), created=True).SerializeToString())
        if request.start_revision:
            for revision, kind, key, value in self._events:
                if revision >= request.start_revision and request.key <= key < end:
                    self._tell(stream, kind, key, value)

    def _changed(self, kind: str, key: bytes, value: _Value) -> None:
        if b"leader/" not in key:
            return  # nobody watches anything else
        self._events.append((self.revision, kind, key, value))
        for stream, start, end in self._watches:
            if start <= key < end and not stream.cancelled:
                self._tell(stream, kind, key, value)

    def _tell(self, stream: SimStream, kind: str, key: bytes, value: _Value) -> None:
        event = pb.Event(type=pb.Event.DELETE if kind == "delete" else pb.Event.PUT, kv=self._pair(key, value))
        stream.push(pb.WatchResponse(header=self._header(), events=[event]).SerializeToString())

"""Requests per second and CPU per request of the data-plane protocol, beside a bare echo on the same event loop.

    python bench/wire.py [--seconds 2] [--json FILE]

Client and server are two processes over loopback TCP. The bare echo moves the same bytes without framing, checks or
futures per request: what remains above it is the protocol's own cost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any

import uvloop

from curve_storage.units import KiB, MiB
from curve_storage.wire.channel import ChannelPool
from curve_storage.wire.messages import MessageType
from curve_storage.wire.server import Request, Server

META = bytes(64)
JOBS = (  # name, message type, request payload, reply payload, in flight
    ("ping 64 B", MessageType.CHUNK_INFO, 0, 0, 1),
    ("ping 64 B", MessageType.CHUNK_INFO, 0, 0, 64),
    ("write 4 KiB", MessageType.CHUNK_WRITE, 4 * KiB, 0, 1),
    ("write 4 KiB", MessageType.CHUNK_WRITE, 4 * KiB, 0, 64),
    ("read 4 KiB", MessageType.CHUNK_READ, 0, 4 * KiB, 64),
    ("write 1 MiB", MessageType.CHUNK_WRITE, MiB, 0, 8),
    ("read 1 MiB", MessageType.CHUNK_READ, 0, MiB, 8),
)


def cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Echo(asyncio.BufferedProtocol):
    """Reads `request` bytes, writes `reply` bytes, for as many requests as arrive."""

    def __init__(self, request: int, reply: int) -> None:
        self._buffer = bytearray(256 * KiB)
        self._request, self._reply = request, bytes(reply)
        self._got = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        transport.set_write_buffer_limits(high=64 * MiB)  # type: ignore[attr-defined]

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._got += nbytes
        whole, self._got = divmod(self._got, self._request)
        if whole:
            self._transport.writelines([self._reply] * whole)


class EchoClient(Echo):
    """Keeps `depth` requests in flight."""

    def __init__(self, request: int, reply: int, depth: int) -> None:
        super().__init__(reply, request)
        self._depth = depth
        self.done = 0
        self.running = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._transport.writelines([self._reply] * self._depth)

    def buffer_updated(self, nbytes: int) -> None:
        self._got += nbytes
        whole, self._got = divmod(self._got, self._request)
        self.done += whole
        if whole and self.running:
            self._transport.writelines([self._reply] * whole)


async def serve_wire(pipe: Connection) -> None:
    server = Server(verifier=None)
    data = os.urandom(MiB)
    replies = {KiB * 4: memoryview(data)[: 4 * KiB], MiB: memoryview(data)}

    def read(request: Request) -> None:
        request.reply(b"", replies[int.from_bytes(request.meta[:4], "little")])

    server.handle(MessageType.CHUNK_WRITE, lambda request: request.reply(), scope="any")
    server.handle(MessageType.CHUNK_INFO, lambda request: request.reply(request.meta), scope="any")
    server.handle(MessageType.CHUNK_READ, read, scope="any")
    pipe.send(await server.start("127.0.0.1", 0))
    await answer_cpu(pipe)
    await server.stop()


async def serve_echo(pipe: Connection, request: int, reply: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Echo(request, reply), "127.0.0.1", 0)
    pipe.send(server.sockets[0].getsockname()[1])
    await answer_cpu(pipe)
    server.close()


async def answer_cpu(pipe: Connection) -> None:
    """Sends the CPU seconds used so far whenever asked; ends when told "stop"."""
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, pipe.recv) != "stop":
        pipe.send(cpu())


def in_process(main: Callable[..., Awaitable[None]], *arguments: Any) -> tuple[Any, Connection, int]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=lambda: uvloop.run(main(theirs, *arguments)), daemon=True)  # type: ignore[arg-type]
    process.start()
    return process, ours, ours.recv()


def asked(pipe: Connection) -> float:
    pipe.send("cpu")
    seconds: float = pipe.recv()
    return seconds


async def measure_wire(pipe: Connection, port: int, job: tuple[Any, ...], seconds: float) -> dict[str, float]:
    _name, kind, size, reply, depth = job
    pool = ChannelPool(token=None, client="bench")
    channel = pool.channel(f"127.0.0.1:{port}")
    meta = reply.to_bytes(4, "little") + META[4:]
    data = os.urandom(size)
    await channel.call(MessageType.PING, b"", timeout=10)
    count = 0
    end = time.perf_counter() + seconds

    async def worker() -> None:
        nonlocal count
        while time.perf_counter() < end:
            await channel.call(kind, meta, data, timeout=10)
            count += 1

    server_before, before, started = asked(pipe), cpu(), time.perf_counter()
    await asyncio.gather(*[worker() for _ in range(depth)])
    elapsed = time.perf_counter() - started
    client, server = cpu() - before, asked(pipe) - server_before
    await pool.close()
    return figures(count, elapsed, client, server)


async def measure_echo(pipe: Connection, port: int, job: tuple[Any, ...], seconds: float) -> dict[str, float]:
    _name, _kind, size, reply, depth = job
    loop = asyncio.get_running_loop()
    server_before, before, started = asked(pipe), cpu(), time.perf_counter()
    protocol = EchoClient(*sizes(size, reply), depth)
    transport, _ = await loop.create_connection(lambda: protocol, "127.0.0.1", port)
    await asyncio.sleep(seconds)
    protocol.running = False
    elapsed = time.perf_counter() - started
    client, server = cpu() - before, asked(pipe) - server_before
    transport.abort()
    return figures(protocol.done, elapsed, client, server)


def sizes(size: int, reply: int) -> tuple[int, int]:
    return 28 + len(META) + size, 28 + reply


def figures(count: int, elapsed: float, client: float, server: float) -> dict[str, float]:
    return {"per_second": count / elapsed, "client_us": client / count * 1e6, "server_us": server / count * 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="per measurement")
    parser.add_argument("--json", help="write the figures to this file as well")
    arguments = parser.parse_args()
    multiprocessing.set_start_method("fork")
    results = []
    print(f"{'request':12} {'depth':>5} {'req/s':>9} {'client µs':>9} {'server µs':>9}   bare echo: req/s, µs   ratio")
    for job in JOBS:
        name, _kind, size, reply, depth = job
        process, pipe, port = in_process(serve_wire)
        ours = uvloop.run(measure_wire(pipe, port, job, arguments.seconds))
        pipe.send("stop")
        process.join()
        process, pipe, port = in_process(serve_echo, *sizes(size, reply))
        bare = uvloop.run(measure_echo(pipe, port, job, arguments.seconds))
        pipe.send("stop")
        process.join()
        ratio = ours["per_second"] / bare["per_second"]
        print(
            f"{name:12} {depth:5} {ours['per_second']:9,.0f} {ours['client_us']:9.1f} {ours['server_us']:9.1f}   "
            f"{bare['per_second']:10,.0f}, {bare['client_us']:.1f} + {bare['server_us']:.1f}   {ratio:.2f}"
        )
        results.append({"request": name, "depth": depth, "wire": ours, "bare_echo": bare, "ratio": ratio})
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()

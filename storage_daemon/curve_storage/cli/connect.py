"""From a command line to a cluster: configuration, MDS, volume host, and one event loop per command."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from grpc.aio import AioRpcError

from curve_storage.cli.output import Format
from curve_storage.client.config import load_client_config, playground_directory
from curve_storage.errors import CurveError, InvalidArgument, Unavailable
from curve_storage.proto import mds_pb2, volumehost_pb2_grpc
from curve_storage.rpc.channel import unix_channel
from curve_storage.rpc.errors import from_rpc_error
from curve_storage.rpc.leader import MdsClient

T = TypeVar("T")

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        envvar="CURVE_CLIENT_CONFIG",
        help="Client file {mds: [host:port]}; default: /etc/curve/client.yaml, then the playground's.",
        show_default=False,
    ),
]
OutputOption = Annotated[Format, typer.Option("--output", "-o", help="Form of the output.", case_sensitive=False)]
HostOption = Annotated[
    Path | None,
    typer.Option(
        "--host-socket",
        envvar="CURVE_VOLUMEHOST",
        help="Socket of this node's volume host; default: the playground's, then /var/lib/curve/volumehost/host.sock.",
        show_default=False,
    ),
]
TimeoutOption = Annotated[float, typer.Option("--timeout", help="Seconds to wait for an answer.")]

SYSTEM_HOST_SOCKET = Path("/var/lib/curve/volumehost/host.sock")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Runs one command's work to its end."""
    return asyncio.run(work)


@asynccontextmanager
async def mds(config: Path | None, timeout: float = 10.0) -> AsyncIterator[MdsClient]:
    """Raises ConfigError when no cluster is configured; calls raise Unavailable when no MDS answers in time."""
    known = load_client_config(config)
    client = MdsClient(list(known.mds), tls=known.tls, deadline=timeout)
    try:
        yield client
    finally:
        await client.close()


def find_host_socket(explicit: Path | None) -> Path:
    """Of the running volume host that a command means."""
    if explicit is not None:
        return explicit
    candidates = [playground_directory() / "volumehost" / "host.sock", SYSTEM_HOST_SOCKET]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise Unavailable(
        "no volume host runs on this node",
        where=", ".join(str(c) for c in candidates),
        todo="Start it (`curve playground up` has one), or name its socket with --host-socket",
    )


class Host:
    """The volume host's calls by name, with CurveErrors instead of gRPC's: `await host.call("Attach", request)`."""

    def __init__(self, stub: volumehost_pb2_grpc.VolumeHostStub, socket: Path) -> None:
        self._stub = stub
        self._where = f"volume host {socket}"

    async def call(self, method: str, request: Any, *, timeout: float = 30.0) -> Any:
        try:
            return await getattr(self._stub, method)(request, timeout=timeout)
        except AioRpcError as error:
            raise from_rpc_error(error, where=self._where) from None


@asynccontextmanager
async def volume_host(explicit: Path | None) -> AsyncIterator[Host]:
    socket = find_host_socket(explicit)
    if not socket.exists():
        raise Unavailable("no volume host runs here", where=str(socket), todo="Start it, or name another --host-socket")
    if not os.access(socket, os.W_OK):
        raise CurveError("no permission to use the volume host", where=str(socket), todo="Run as root")
    async with unix_channel(socket) as channel:
        yield Host(volumehost_pb2_grpc.VolumeHostStub(channel), socket)


def volume_ref(text: str) -> mds_pb2.VolumeRef:
    """A volume on the command line: /path, or its number."""
    if text.isdecimal():
        return mds_pb2.VolumeRef(id=int(text))
    if not text.startswith("/"):
        raise InvalidArgument(
            f"{text!r} is neither a path nor a number",
            todo=f"Paths begin with a slash: /{text}; numbers are volume ids",
        )
    return mds_pb2.VolumeRef(path=text)

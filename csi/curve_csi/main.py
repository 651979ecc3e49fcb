"""`curve-csi controller|node|all`: serves the CSI services on a unix socket."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from grpc import aio

from curve_csi.backend import BlockBackend
from curve_csi.controller import ControllerService
from curve_csi.hostclient import VolumeHost
from curve_csi.identity import IdentityService
from curve_csi.node import NodeService
from curve_csi.nodes import directory
from curve_csi.proto import csi_pb2_grpc, pluginregistration_pb2_grpc
from curve_csi.registration import RegistrationService
from curve_csi.requestlog import RequestLog
from curve_storage.client.config import ClientConfig
from curve_storage.config import load
from curve_storage.errors import ConfigError, CurveError
from curve_storage.rpc.leader import MdsClient
from curve_storage.rpc.server import listen, make_server
from curve_storage.telemetry import logs, metrics
from curve_storage.telemetry.http import HttpEndpoint

DRIVER = "block.csi.curve.io"
PROBE_DEADLINE = 5.0
log = logs.get("curve_csi.main")


@dataclass(frozen=True)
class Options:
    """As given on the command line; see `curve-csi --help`."""

    role: str
    endpoint: str
    driver: str = DRIVER
    client: Path | None = None
    volumehost: str = "/var/lib/curve/volumehost/host.sock"
    node: str = ""
    registration: Path | None = None
    kubelet: Path = Path("/var/lib/kubelet")
    kubelet_endpoint: str = ""
    http: str = ""
    nodes: dict[str, str] = field(default_factory=dict)
    log_level: str = "info"


def parse(arguments: list[str]) -> Options:
    parser = argparse.ArgumentParser(prog="curve-csi", description="CSI driver of Curve block volumes")
    parser.add_argument("role", choices=("controller", "node", "all"))
    parser.add_argument("--endpoint", required=True, help="unix:///path of the CSI socket")
    parser.add_argument("--driver-name", default=DRIVER)
    parser.add_argument("--client", type=Path, help="client configuration of the storage cluster (controller)")
    parser.add_argument("--volumehost", default=Options.volumehost, help="socket of the node's volume host (node)")
    parser.add_argument("--node-id", default="", help="name of this node (node)")
    parser.add_argument("--registration-dir", type=Path, help="the kubelet's plugins_registry folder (node)")
    parser.add_argument("--kubelet-dir", type=Path, default=Options.kubelet)
    parser.add_argument("--kubelet-endpoint", default="", help="the CSI socket's path as the kubelet sees it")
    parser.add_argument("--http", default="", help="host:port of /metrics, /healthz and /readyz")
    parser.add_argument(
        "--node", action="append", default=[], metavar="NAME[=ZONE]", help="a known node; default: ask Kubernetes"
    )
    parser.add_argument("--log-level", default="info")
    found = parser.parse_args(arguments)
    nodes = dict((*entry.split("=", 1), "")[:2] for entry in found.node)
    options = Options(
        role=found.role,
        endpoint=found.endpoint,
        driver=found.driver_name,
        client=found.client,
        volumehost=found.volumehost,
        node=found.node_id,
        registration=found.registration_dir,
        kubelet=found.kubelet_dir,
        kubelet_endpoint=found.kubelet_endpoint,
        http=found.http,
        nodes=nodes,
        log_level=found.log_level,
    )
    if options.role in ("controller", "all") and options.client is None:
        raise ConfigError("the controller needs --client", where="curve-csi", todo="Pass the client configuration")
    if options.role in ("node", "all") and not options.node:
        raise ConfigError("the node service needs --node-id", where="curve-csi", todo="Pass the node's name")
    if not options.endpoint.startswith("unix:"):
        raise ConfigError(f"endpoint {options.endpoint} is no unix socket", where="--endpoint", todo="Use unix:///PATH")
    return options


def socket_of(endpoint: str) -> str:
    path = endpoint.removeprefix("unix:")
    return "/" + path.lstrip("/") if path.startswith("//") else path


class Driver:
    """Everything of one process, started and stopped together."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._servers: list[aio.Server] = []
        self._backend: BlockBackend | None = None
        self._client: MdsClient | None = None
        self._host: VolumeHost | None = None
        self._http: HttpEndpoint | None = None

    async def start(self) -> None:
        options = self._options
        nodes = directory(options.nodes)
        server = make_server(interceptors=[RequestLog()])
        if options.role in ("controller", "all"):
            assert options.client is not None
            config = load(ClientConfig, options.client)
            self._client = MdsClient(config.mds, tls=config.tls)
            self._backend = BlockBackend(self._client, options.driver)
            controller = ControllerService(self._backend, nodes, options.driver)
            csi_pb2_grpc.add_ControllerServicer_to_server(controller, server)
        if options.role in ("node", "all"):
            self._host = VolumeHost(options.volumehost)
            node = NodeService(self._host, nodes, options.node, options.driver)
            csi_pb2_grpc.add_NodeServicer_to_server(node, server)
        csi_pb2_grpc.add_IdentityServicer_to_server(IdentityService(options.driver, self._ready), server)
        listen(server, f"unix:{socket_of(options.endpoint)}")
        await server.start()
        self._servers.append(server)
        if options.registration is not None:
            await self._register(options.registration)
        if options.http:
            host, _, port = options.http.rpartition(":")
            self._http = HttpEndpoint(host, int(port), metrics.registry(), lambda: None, lambda: None)
            await self._http.start()
        log.info("serving", role=options.role, endpoint=options.endpoint, driver=options.driver)

    async def _register(self, folder: Path) -> None:
        options = self._options
        seen = options.kubelet_endpoint or str(options.kubelet / "plugins" / options.driver / "csi.sock")
        server = make_server()
        pluginregistration_pb2_grpc.add_RegistrationServicer_to_server(
            RegistrationService(options.driver, seen), server
        )
        listen(server, f"unix:{folder / f'{options.driver}-reg.sock'}")
        await server.start()
        self._servers.append(server)

    async def _ready(self) -> bool:
        try:
            if self._backend is not None:
                await self._backend.reachable(PROBE_DEADLINE)
            if self._host is not None:
                await self._host.info(PROBE_DEADLINE)
        except CurveError as error:
            log.warning("not ready", error=str(error))
            return False
        return True

    async def stop(self) -> None:
        for server in self._servers:
            await server.stop(grace=5)
        if self._http is not None:
            await self._http.stop()
        if self._client is not None:
            await self._client.close()
        if self._host is not None:
            await self._host.close()
        if self._options.registration is not None:
            # the kubelet forgets the driver when the socket goes, and greets the next one as new
            (self._options.registration / f"{self._options.driver}-reg.sock").unlink(missing_ok=True)


async def serve(options: Options) -> None:
    driver = Driver(options)
    await driver.start()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await ended.wait()
    await driver.stop()


def main() -> None:
    try:
        options = parse(sys.argv[1:])
        logs.configure(options.log_level, "curve-csi", options.node or os.uname().nodename)
        uvloop.run(serve(options))
    except CurveError as error:
        print(f"curve-csi: {error}", file=sys.stderr)
        raise SystemExit(2) from error

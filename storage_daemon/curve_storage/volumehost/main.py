"""`curve-volumehost`: the daemon of a node that attaches volumes. Needs root, /dev/fuse, loop devices, curve-keeper."""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import signal
import sys
from pathlib import Path

from curve_storage.clock import SystemClock
from curve_storage.config import load
from curve_storage.errors import ConfigError, CurveError, InUse
from curve_storage.proto import volumehost_pb2_grpc
from curve_storage.rpc.server import listen, make_server
from curve_storage.telemetry import logs, metrics
from curve_storage.telemetry.http import HttpEndpoint
from curve_storage.volumehost.config import VolumeHostConfig
from curve_storage.volumehost.host import VolumeHost
from curve_storage.volumehost.service import VolumeHostService
from curve_storage.volumehost.volume_metrics import VolumeCollector

_GRACE = 5.0


async def run(config: VolumeHostConfig) -> None:
    """Until SIGTERM or SIGINT; data processes go on without the host."""
    log = logs.get("volumehost")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    host = VolumeHost(config, SystemClock())
    metrics.registry().register(VolumeCollector(host))
    address, _, port = config.http.rpartition(":")
    started = False

    def ready() -> str | None:
        return host.keeper_problem or (None if started else "attachments are being resumed")

    http = HttpEndpoint(address, int(port), metrics.registry(), lambda: None, ready)
    await http.start()
    starting = loop.create_task(host.start())
    stopping = loop.create_task(stop.wait())
    await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        starting.result()
        server = make_server()
        volumehost_pb2_grpc.add_VolumeHostServicer_to_server(VolumeHostService(host), server)
        listen(server, f"unix:{config.socket}")
        await server.start()
        started = True
        log.info("serving", socket=str(config.socket), volumes=len(host.attachments))
        await stopping
        await server.stop(_GRACE)
    else:
        starting.cancel()
        await asyncio.wait([starting])
    await host.stop()
    await http.stop()
    log.info("stopped", volumes=len(host.attachments))


def lock(root: Path) -> int:
    """One host per root folder, for as long as the returned descriptor is open. Raises InUse."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(root / "host.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise InUse("another volume host runs here", where=str(root), todo="Stop it first") from error
    return descriptor


def main() -> None:
    parser = argparse.ArgumentParser(prog="curve-volumehost", description="Attaches volumes to this node.")
    parser.add_argument("--config", type=Path, default=Path("/etc/curve/volumehost.yaml"))
    arguments = parser.parse_args()
    try:
        config = load(VolumeHostConfig, arguments.config)
        logs.configure(config.log_level, "volumehost", config.node)
        if os.geteuid() != 0:
            raise ConfigError("the volume host mounts and must run as root", where=str(arguments.config))
        held = lock(config.root)
        asyncio.run(run(config))
        os.close(held)
    except CurveError as error:
        sys.exit(f"curve-volumehost: {error}")


if __name__ == "__main__":
    main()

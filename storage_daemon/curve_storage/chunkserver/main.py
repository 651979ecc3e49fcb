"""`curve-chunkserver --config FILE`. Exit codes: 0 stopped by a signal, 1 could not start, 74 the disk failed,
78 the configuration is wrong."""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import signal
import sys
from pathlib import Path

import uvloop

from curve_storage.chunkserver.chunk_file import disk_failed
from curve_storage.chunkserver.config import ChunkServerConfig
from curve_storage.chunkserver.daemon import ChunkServer
from curve_storage.config import load
from curve_storage.errors import ConfigError, CurveError
from curve_storage.telemetry import logs

EXIT_FAILED = 1
EXIT_DISK = 74
EXIT_CONFIG = 78


def main() -> None:
    parser = argparse.ArgumentParser(prog="curve-chunkserver", description="Serves one disk of a Curve cluster")
    parser.add_argument("--config", type=Path, required=True, help="YAML file, see docs/install.md")
    arguments = parser.parse_args()
    try:
        config = load(ChunkServerConfig, arguments.config)
        logs.configure(config.log_level, "chunkserver", config.name)
        _raise_file_limit()
        sys.exit(uvloop.run(_run(config)))
    except ConfigError as error:
        _complain(error)
        sys.exit(EXIT_CONFIG)
    except CurveError as error:
        _complain(error)
        sys.exit(EXIT_FAILED)
    except OSError as error:
        _complain(disk_failed(error, Path(error.filename or config.data)))
        sys.exit(EXIT_DISK)


async def _run(config: ChunkServerConfig) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    server = ChunkServer(config, on_failed=_die)
    starting = asyncio.create_task(server.start())
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    waiting = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await waiting
        else:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
    finally:
        waiting.cancel()
        await server.stop()
    return 0


def _die(error: CurveError) -> None:
    """At once and without cleaning up: nothing may be acknowledged any more."""
    _complain(error)
    sys.stderr.flush()
    os._exit(EXIT_DISK if error.code == "disk_failed" else EXIT_FAILED)


def _complain(error: CurveError) -> None:
    print(f"curve-chunkserver: {error}", file=sys.stderr)


def _raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main()

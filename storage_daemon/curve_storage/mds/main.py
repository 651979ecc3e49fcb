"""`curve-mds --config FILE`: the metadata server."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path

import uvloop

from curve_storage.clock import SystemClock
from curve_storage.config import load
from curve_storage.errors import CurveError
from curve_storage.mds.config import MdsConfig
from curve_storage.mds.daemon import Daemon
from curve_storage.telemetry import logs

EXIT_FAILED = 1
EXIT_CONFIG = 2


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="curve-mds", description="Metadata server of Curve.")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="YAML configuration")
    arguments = parser.parse_args(argv)
    try:
        config = load(MdsConfig, arguments.config)
        logs.configure(config.log_level, component="mds", node=config.name)
        uvloop.run(_serve(config))
    except CurveError as error:
        print(f"curve-mds: {error}", file=sys.stderr)
        return EXIT_CONFIG if error.code == "config" else EXIT_FAILED
    return 0


async def _serve(config: MdsConfig) -> None:
    daemon = Daemon(config, SystemClock())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.stop)
    await daemon.run()


if __name__ == "__main__":
    sys.exit(main())

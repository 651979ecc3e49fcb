"""`curve-operator`: stand by for the Lease, then watch and reconcile until it is lost.

`curve-operator disk …` prepares and mounts a disk inside a chunkserver's pod.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys

DEFAULT_HTTP = "0.0.0.0:8080"


def main() -> None:
    if sys.argv[1:2] == ["disk"]:
        # without kopf and the rest: an init container starts in a moment
        from curve_operator.disk import main as disk_main

        sys.exit(disk_main(sys.argv[2:]))
    arguments = _parser().parse_args()
    sys.exit(asyncio.run(_run(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="curve-operator", description=__doc__)
    parser.add_argument("--image", default=os.environ.get("CURVE_IMAGE", ""), help="image of the daemons")
    parser.add_argument("--namespace", action="append", default=[], help="watch only this one; may be repeated")
    parser.add_argument("--lease-namespace", default=os.environ.get("POD_NAMESPACE", "default"))
    parser.add_argument("--lease-name", default="curve-operator")
    parser.add_argument("--identity", default=os.environ.get("POD_NAME") or f"{socket.gethostname()}-{os.getpid()}")
    parser.add_argument("--http", default=DEFAULT_HTTP, help="host:port of /metrics, /healthz and /readyz")
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    return parser


async def _run(arguments: argparse.Namespace) -> int:
    from curve_operator.operator_process import OperatorProcess
    from curve_storage.errors import CurveError
    from curve_storage.telemetry import logs

    logs.configure(arguments.log_level, "operator", arguments.identity)
    log = logs.get("curve_operator")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    host, _, port = arguments.http.rpartition(":")
    try:
        return await OperatorProcess(
            image=arguments.image,
            namespaces=arguments.namespace,
            lease_namespace=arguments.lease_namespace,
            lease_name=arguments.lease_name,
            identity=arguments.identity,
            http=(host or "0.0.0.0", int(port)),
        ).run(stop)
    except CurveError as error:
        log.error("operator cannot run", error=str(error))
        return 1


if __name__ == "__main__":
    main()

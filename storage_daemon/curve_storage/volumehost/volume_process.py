"""`curve-volume`: one process serves one volume, as the file of a FUSE mount or over NBD.

Started by the volume host, in a session of its own. Stages: opening → [standby → on "go":] serving → stopping → end.
A process that takes over a descriptor asks the kernel to repeat what its predecessor left unanswered.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Any

import uvloop

from curve_storage import __version__
from curve_storage.attach.device import BlockDevice, FencedDevice
from curve_storage.attach.file_device import FileDevice
from curve_storage.attach.nbd_server import NbdServer
from curve_storage.attach.volume_file import FILE_INODE, VolumeFile
from curve_storage.clock import SystemClock
from curve_storage.errors import CurveError, FailedPrecondition, Fenced, NotFound, Unimplemented
from curve_storage.fuse.handshake import SessionFacts
from curve_storage.fuse.session import Session
from curve_storage.telemetry import logs
from curve_storage.volumehost.control_server import ControlServer, Reply
from curve_storage.volumehost.packet_client import encode_error
from curve_storage.volumehost.resilience import name_process, protect
from curve_storage.volumehost.spare import await_arguments

_DRAIN = 1.0  # seconds a predecessor answers what it holds; the rest is repeated to its successor
_CLOSE = 3.0
_RETRY = 0.5
_log = logs.get("volume")


class Stage(StrEnum):
    OPENING = "opening"
    STANDBY = "standby"
    SERVING = "serving"
    STOPPING = "stopping"
    FAILED = "failed"


class VolumeProcess:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._clock = SystemClock()
        self._stage = Stage.OPENING
        self._waiting: str | None = "opening the volume"
        self._error: CurveError | None = None
        self._device: BlockDevice | None = None
        self._cluster: Any = None
        self._session: Session | None = None
        self._file: VolumeFile | None = None
        self._nbd: NbdServer | None = None
        self._facts = SessionFacts.from_dict(json.loads(arguments.facts)) if arguments.facts else None
        self._ready = asyncio.Event()
        self._finished = asyncio.Event()
        self._control = ControlServer(arguments.control, self._handle)
        self._unprotected: list[str] = []

    async def run(self) -> int:
        """The exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, lambda: loop.create_task(self._stop()))
        self._control.start()
        opening = loop.create_task(self._open())
        await self._finished.wait()
        opening.cancel()
        await self._close()
        self._control.stop()
        return 1 if self._stage is Stage.FAILED else 0

    # -- opening

    async def _open(self) -> None:
        arguments = self._arguments
        try:
            self._device = await self._open_device()
        except CurveError as error:
            self._fail(error)
            return
        except Exception as error:  # a defect must not leave the host waiting
            _log.exception("cannot open the volume")
            self._fail(FailedPrecondition(f"cannot open the volume: {error!r}", where=self._where))
            return
        self._device.on_fenced(self._fenced)
        self._waiting = None
        self._unprotected = protect()
        for sentence in self._unprotected:
            _log.warning("not fully protected against memory pressure", reason=sentence)
        gc.collect()
        gc.freeze()
        if arguments.standby:
            self._stage = Stage.STANDBY
            self._ready.set()
        else:
            await self._serve()

    async def _open_device(self) -> BlockDevice:
        arguments = self._arguments
        if arguments.device_file is not None:
            return FileDevice(arguments.device_file, read_only=arguments.read_only, delay=arguments.device_delay)
        from curve_storage.client.cluster import Cluster
        from curve_storage.client.config import load_client_config
        from curve_storage.client.volume import BlockVolume

        while True:
            try:
                if self._cluster is None:
                    self._cluster = Cluster(load_client_config(arguments.config))
                return await BlockVolume.open(
                    self._cluster,
                    path="" if arguments.volume_id else arguments.path,
                    volume_id=arguments.volume_id,
                    epoch=arguments.epoch,
                    read_only=arguments.read_only,
                )
            except CurveError as error:
                if arguments.takeover and isinstance(error, Fenced | NotFound):
                    # The mount exists: its users must get errors, not silence.
                    _log.error("the volume is lost to this node", reason=str(error))
                    reason = error if isinstance(error, Fenced) else Fenced(error.what, where=error.where)
                    return FencedDevice(arguments.size, reason)
                if not error.retryable and not arguments.takeover:
                    raise
                if self._waiting != str(error):
                    _log.warning("the volume cannot be opened yet", reason=str(error))
                self._waiting = str(error)
                await asyncio.sleep(_RETRY)

    async def _serve(self) -> None:
        arguments, device = self._arguments, self._device
        assert device is not None
        if arguments.backend == "nbd":
            self._nbd = NbdServer(
                arguments.nbd_socket,
                device,
                name=arguments.path.lstrip("/") or str(arguments.volume_id),
                description=f"Curve volume {arguments.volume_id}",
                clock=self._clock,
            )
            await self._nbd.start()
            self._serving()
            return
        self._file = VolumeFile(device)
        self._session = Session(
            arguments.descriptor,
            self._file,
            clock=self._clock,
            facts=self._facts,
            on_facts=self._negotiated,
            on_end=self._finished.set,
        )
        self._session.start(takeover=arguments.takeover)
        if arguments.takeover:
            self._invalidate()
        if self._facts is not None:
            self._serving()

    def _negotiated(self, facts: SessionFacts) -> None:
        self._facts = facts
        self._serving()

    def _serving(self) -> None:
        self._stage = Stage.SERVING
        self._ready.set()
        _log.info(
            "serving", volume=self._arguments.volume_id, path=self._arguments.path, takeover=self._arguments.takeover
        )

    def _invalidate(self) -> None:
        try:
            if self._session is not None:
                self._session.invalidate_attributes(FILE_INODE)
        except OSError as error:
            _log.warning("the kernel did not take the new size", reason=str(error))

    def _fail(self, error: CurveError) -> None:
        _log.error("the volume cannot be served", reason=str(error))
        self._error = error
        self._stage = Stage.FAILED
        self._ready.set()
        asyncio.get_running_loop().call_later(10.0, self._finished.set)  # time for the host to ask why

    def _fenced(self) -> None:
        """A newer writer has the volume: another node, or merely another process at the same epoch. The successor of
        this process learns which when it opens the volume, so nothing is answered with an error here."""
        if isinstance(self._device, FencedDevice):
            _log.error("fenced: all I/O fails from now on", volume=self._arguments.volume_id)
            return
        _log.warning("a newer writer has the volume: a successor opens it anew", volume=self._arguments.volume_id)
        if self._session is not None:
            self._session.stop_reading()
            self._session.withhold_errors = True
        self._finished.set()

    @property
    def _where(self) -> str:
        return str(self._arguments.path or self._arguments.volume_id)

    # -- ending

    async def _stop(self) -> int:
        """Hand over: the number of requests left for the successor."""
        if self._stage is Stage.STOPPING:
            return 0
        self._stage = Stage.STOPPING
        left = 0
        if self._session is not None:
            self._session.stop_reading()
            left = await self._session.drain(_DRAIN)
            self._session.abandon()
        if self._nbd is not None:
            await self._nbd.stop(_DRAIN)
        asyncio.get_running_loop().call_soon(self._finished.set)
        return left

    async def _close(self) -> None:
        try:
            async with asyncio.timeout(_CLOSE):
                if self._nbd is not None and self._stage is not Stage.STOPPING:
                    await self._nbd.stop(_DRAIN)
                if self._device is not None:
                    await self._device.close()
                if self._cluster is not None:
                    await self._cluster.close()
        except (CurveError, TimeoutError, OSError) as error:
            _log.warning("the volume was not closed in order", reason=repr(error))

    # -- control

    async def _handle(self, message: dict[str, Any]) -> Reply:
        operation = message.get("op")
        if operation == "ping":
            return self._report(), []
        if operation == "wait_ready":
            await self._ready.wait()
            if self._error is not None:
                asyncio.get_running_loop().call_later(0.2, self._finished.set)
                raise self._error
            return self._report(), []
        if operation == "prepare":
            if self._session is not None:
                self._session.withhold_errors = True
            return {}, []
        if operation == "resume":
            withheld = 0
            if self._session is not None:
                self._session.withhold_errors = False
                withheld = self._session.withheld
            return {"withheld": withheld}, []
        if operation == "stop":
            return {"left": await self._stop()}, []
        if operation == "go":
            if self._stage is not Stage.STANDBY:
                raise FailedPrecondition(f"this process is {self._stage}, not on standby")
            await self._serve()
            return self._report(), []
        if operation == "resize":
            return {"size": await self._resize()}, []
        if operation == "descriptor" and self._arguments.descriptor >= 0:
            return {}, [self._arguments.descriptor]
        raise Unimplemented(f"no operation {operation!r} here")

    async def _resize(self) -> int:
        if self._device is None:
            raise FailedPrecondition("the volume is not open yet", where=self._where, todo="Try again")
        size = await self._device.refresh()
        if self._file is not None:
            self._file.resized()
            self._invalidate()
        return size

    def _report(self) -> dict[str, Any]:
        device, session, nbd = self._device, self._session, self._nbd
        source = session or nbd
        return {
            "pid": os.getpid(),
            "version": __version__,
            "stage": self._stage,
            "size": device.size if device is not None else self._arguments.size,
            "stalled": device.stalled() if device is not None else self._waiting,
            "fenced": isinstance(device, FencedDevice),
            "error": encode_error(self._error) if self._error is not None else None,
            "connections": nbd.connections if nbd is not None else 0,
            "inflight": source.inflight if source is not None else 0,
            "oldest": source.oldest() if source is not None else 0.0,
            "statistics": source.statistics.as_dict() if source is not None else None,
            "facts": self._facts.as_dict() if self._facts is not None else None,
            "unprotected": self._unprotected,
        }


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="curve-volume", description="Serves one volume of this node. Started by curve-volumehost."
    )
    parser.add_argument("--volume-id", type=int, default=0)
    parser.add_argument("--path", default="", help="in the namespace of the MDS; used when there is no --volume-id")
    parser.add_argument("--epoch", type=int, default=0, help="attach epoch; 0: the present one")
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--config", type=Path, help="client configuration")
    parser.add_argument("--backend", choices=("loop", "nbd"), default="loop")
    parser.add_argument("--control", type=Path, required=True, help="control socket to listen on")
    parser.add_argument("--nbd-socket", type=Path)
    parser.add_argument("--descriptor", type=int, default=-1, help="inherited descriptor of /dev/fuse, mounted")
    parser.add_argument("--takeover", action="store_true", help="another process served the descriptor before")
    parser.add_argument("--standby", action="store_true", help="open the volume, then wait for the order to serve")
    parser.add_argument("--facts", default="", help="what INIT negotiated (JSON)")
    parser.add_argument("--size", type=int, default=0, help="last known size in bytes")
    parser.add_argument("--node", default="")
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--device-file", type=Path, help="tests and benchmarks: serve this local file, not a volume")
    parser.add_argument(
        "--device-delay", type=float, default=0.0, help="with --device-file: seconds per read and write"
    )
    arguments = parser.parse_args(argv)
    if arguments.backend == "nbd" and arguments.nbd_socket is None:
        parser.error("--backend nbd needs --nbd-socket")
    if arguments.backend == "loop" and arguments.descriptor < 0:
        parser.error("--backend loop needs --descriptor")
    if not arguments.volume_id and not arguments.path and arguments.device_file is None:
        parser.error("one of --volume-id and --path is needed")
    return arguments


async def _run(arguments: argparse.Namespace) -> int:
    return await VolumeProcess(arguments).run()


def _as_spare(number: int) -> list[str]:
    """Load everything, then wait to be needed."""
    import curve_storage.client.config
    import curve_storage.client.volume  # noqa: F401

    gc.collect()
    found = await_arguments(number)
    if found is None:
        sys.exit(0)
    return found


def main() -> None:
    argv = sys.argv[1:]
    if argv[:1] == ["--spare"]:
        argv = _as_spare(int(argv[1]))
    arguments = parse_arguments(argv)
    name_process(f"curve-vol-{arguments.volume_id}")
    logs.configure(arguments.log_level, "volume", arguments.node)
    if arguments.descriptor >= 0:
        os.set_blocking(arguments.descriptor, False)
        os.set_inheritable(arguments.descriptor, False)
    sys.exit(uvloop.run(_run(arguments)))


if __name__ == "__main__":
    main()

"""The one process that owns the box's processes: it starts them, restarts them, reaps them, and forwards the API
server to loopback.

    python -m e2e.box.supervisor SOCKET CGROUP

It decides nothing about Kubernetes. Commands come as one JSON object per connection on the control socket:
    {"do": "start", "process": {name, command, log, restart}} · {"do": "stop", "name"} · {"do": "list"}
    {"do": "forward", "netns": file, "address": [host, port], "port": preferred} → {"port": bound}
Its children die with it, so that its own end, however it comes, is the end of the box.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from e2e.box.forward import Forwarder
from e2e.box.launch import enter_cgroup

PR_SET_CHILD_SUBREAPER = 36
RESTART_DELAY = 1.0
LAUNCH = Path(__file__).with_name("launch.py")


def with_parent() -> list[str]:
    """The start of a command line whose program dies together with this process."""
    return [sys.executable, "-I", "-S", str(LAUNCH), "--parent", str(os.getpid()), "--"]


@dataclass(frozen=True)
class ProcessSpec:
    """A process of the box. `cgroup` is below every hierarchy's root; `netns` a file to enter; `restart` after it
    ended.
    """

    name: str
    command: list[str]
    log: str
    cgroup: str
    netns: str
    restart: bool = True

    def launch_command(self, owner: int) -> list[str]:
        place = ["--cgroup", self.cgroup, "--netns", self.netns, "--parent", str(owner)]
        return [sys.executable, "-I", "-S", str(LAUNCH), *place, "--", *self.command]


@dataclass
class _Running:
    spec: ProcessSpec
    pid: int
    restarts: int = 0
    alive: bool = True
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    stopping: bool = False


class Supervisor:
    def __init__(self) -> None:
        self._processes: dict[str, _Running] = {}
        self._forwarders: list[Forwarder] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, control: Path) -> None:
        """Until killed."""
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        server = await asyncio.start_unix_server(self._connection, control, limit=1 << 20)
        os.chmod(control, 0o600)
        async with server:
            await server.serve_forever()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            reply = await self._do(json.loads(await reader.readline()))
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        try:
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
        except ConnectionError:
            print("a control connection went away before its answer", flush=True)
        writer.close()

    async def _do(self, request: dict[str, Any]) -> dict[str, Any]:
        match request["do"]:
            case "start":
                spec = ProcessSpec(**request["process"])
                if spec.name in self._processes:
                    return {"error": f"{spec.name} is already running"}
                return {"pid": self._start(spec, 0)}
            case "stop":
                await self._stop(request["name"])
                return {}
            case "list":
                described = [self._describe(running) for running in self._processes.values()]
                return {"supervisor": os.getpid(), "processes": described}
            case "forward":
                forwarder = Forwarder(request["netns"], tuple(request["address"]))
                self._forwarders.append(forwarder)
                return {"port": await forwarder.start(request["port"])}
            case other:
                return {"error": f"unknown command {other!r}"}

    @staticmethod
    def _describe(running: _Running) -> dict[str, Any]:
        return {**asdict(running.spec), "pid": running.pid, "alive": running.alive, "restarts": running.restarts}

    def _start(self, spec: ProcessSpec, restarts: int) -> int:
        log = os.open(spec.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, log, 1),
            (os.POSIX_SPAWN_DUP2, log, 2),
        ]
        command = spec.launch_command(os.getpid())
        try:
            pid = os.posix_spawn(command[0], command, os.environ, file_actions=actions, setsid=True)
        finally:
            os.close(log)
        self._processes[spec.name] = _Running(spec, pid, restarts)
        return pid

    async def _stop(self, name: str) -> None:
        """Kills the process and waits for its end. Without effect when it does not run."""
        running = self._processes.get(name)
        if running is None:
            return
        running.stopping = True
        if running.alive:
            os.kill(running.pid, signal.SIGKILL)
            await running.ended.wait()
        self._processes.pop(name, None)

    def _reap(self) -> None:
        """Every child, also the orphans that came to us as their subreaper."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for running in list(self._processes.values()):
                if running.pid == pid and running.alive:
                    self._ended(running, os.waitstatus_to_exitcode(status))

    def _ended(self, running: _Running, code: int) -> None:
        running.alive = False
        running.ended.set()
        if running.stopping:
            return
        print(f"{time.strftime('%H:%M:%S')} {running.spec.name} ended with status {code}", flush=True)
        if not running.spec.restart:
            self._processes.pop(running.spec.name, None)
            return
        task = asyncio.ensure_future(self._restart(running))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _restart(self, running: _Running) -> None:
        await asyncio.sleep(RESTART_DELAY)
        if self._processes.get(running.spec.name) is running:
            self._start(running.spec, running.restarts + 1)


def main() -> None:
    control, cgroup = sys.argv[1:]
    enter_cgroup(cgroup)
    asyncio.run(Supervisor().serve(Path(control)))


if __name__ == "__main__":
    main()

"""The supervisor's client: starting it, and the commands it takes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from curve_storage.errors import Internal, Unavailable
from e2e.box.places import REPOSITORY
from e2e.box.supervisor import ProcessSpec

START_PATIENCE = 20.0
ANSWER_PATIENCE = 60.0


def start_supervisor(control: Path, log: Path, cgroup: str) -> int:
    """Starts the supervisor apart from this process and its control group; returns its process id when it answers."""
    control.unlink(missing_ok=True)
    path = os.pathsep.join([str(REPOSITORY), *(entry for entry in sys.path if entry)])
    # setsid --fork: the supervisor is nobody's child here, and nobody's zombie when it ends.
    command = ["setsid", "--fork", sys.executable, "-m", "e2e.box.supervisor", str(control), cgroup]
    with log.open("ab") as output:
        subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            cwd="/",
            check=True,
        )
    end = time.monotonic() + START_PATIENCE
    while time.monotonic() < end:
        if control.exists():
            try:
                return Control(control).supervisor()
            except Unavailable:
                pass
        time.sleep(0.05)
    raise Internal("the supervisor does not come up", where=str(log), todo="Its log says why.")


class Control:
    def __init__(self, path: Path) -> None:
        self._path = path

    def start(self, process: ProcessSpec) -> int:
        pid: int = self._ask({"do": "start", "process": asdict(process)})["pid"]
        return pid

    def stop(self, name: str) -> None:
        self._ask({"do": "stop", "name": name})

    def processes(self) -> list[dict[str, Any]]:
        """Name, pid, alive, restarts and the specification of each process."""
        found: list[dict[str, Any]] = self._ask({"do": "list"})["processes"]
        return found

    def supervisor(self) -> int:
        """Its process id."""
        pid: int = self._ask({"do": "list"})["supervisor"]
        return pid

    def forward(self, netns: Path, host: str, port: int, preferred: int) -> int:
        request = {"do": "forward", "netns": str(netns), "address": [host, port], "port": preferred}
        bound: int = self._ask(request)["port"]
        return bound

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Raises Unavailable when the supervisor does not answer, Internal when it refuses."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(ANSWER_PATIENCE)
                connection.connect(str(self._path))
                connection.sendall(json.dumps(request).encode() + b"\n")
                with connection.makefile("rb") as stream:
                    line = stream.readline()
        except OSError as error:
            raise Unavailable(
                f"the box's supervisor does not answer: {error}",
                where=str(self._path),
                todo="Run `python -m e2e.box down`, then `up`.",
            ) from error
        reply: dict[str, Any] = json.loads(line) if line else {"error": "no answer"}
        if "error" in reply:
            raise Internal(reply["error"], where=f"supervisor, {request['do']}", todo="Its log is supervisor.log.")
        return reply

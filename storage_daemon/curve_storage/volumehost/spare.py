"""A data process started ahead of need: loading the program takes longer than anything else in a takeover.

The spare has loaded everything and waits on a socket for its arguments and descriptors. It ends with its host.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from curve_storage.telemetry import logs
from curve_storage.volumehost import packet

_log = logs.get("spare")
_REFILL = 2.0  # seconds after a use: the process that takes over comes first


class Spare:
    """One spare for all volumes of a host. root: only to tell hosts apart in a list of processes."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._child: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._refill: asyncio.TimerHandle | None = None
        self._closed = False

    def start(self) -> None:
        """Have one from now on."""
        self._refill = None
        if self._closed or self._child is not None:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._child = subprocess.Popen(
                [
                    sys.executable, "-m", "curve_storage.volumehost.volume_process",
                    "--spare", str(theirs.fileno()), "--root", str(self._root),
                ],
                stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),), start_new_session=True, cwd="/",
            )  # fmt: skip
        except OSError as error:
            _log.warning("no spare data process", reason=str(error))
            ours.close()
            return
        finally:
            theirs.close()
        ours.setblocking(False)
        self._socket = ours

    def take(self, arguments: Sequence[str], log: int, descriptor: int | None) -> subprocess.Popen[bytes] | None:
        """Turn the spare into a data process with these arguments; None when there is none."""
        child, connection = self._child, self._socket
        self._child = self._socket = None
        if self._refill is None and not self._closed:
            self._refill = asyncio.get_running_loop().call_later(_REFILL, self.start)
        if child is None or connection is None:
            return None
        descriptors = [log] if descriptor is None else [log, descriptor]
        try:
            packet.send(connection, {"arguments": list(arguments)}, descriptors)
        except OSError as error:
            _log.warning("the spare data process is of no use", reason=str(error))
            child.kill()
            child.wait()
            return None
        finally:
            connection.close()
        return child

    def renew(self) -> None:
        """Replace the spare by one of the program installed now."""
        if self._child is not None and self._socket is not None:
            self._socket.close()
            self._child.kill()
            self._child.wait()
            self._child = self._socket = None
        if self._refill is None and not self._closed:
            self._refill = asyncio.get_running_loop().call_later(_REFILL, self.start)

    def close(self) -> None:
        """The spare ends; processes made from spares go on."""
        self._closed = True
        if self._refill is not None:
            self._refill.cancel()
        if self._socket is not None:
            self._socket.close()
        if self._child is not None:
            self._child.kill()
            self._child.wait()


def await_arguments(number: int) -> list[str] | None:
    """In the spare: its arguments when it is needed, with the log in place; None when its host has ended."""
    connection = socket.socket(fileno=number)
    try:
        received = packet.receive(connection)
    except (OSError, ValueError):
        return None
    finally:
        connection.close()
    if received is None:
        return None
    message, descriptors = received
    log, *rest = descriptors
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    arguments: list[str] = list(message["arguments"])
    return arguments + (["--descriptor", str(rest[0])] if rest else [])

"""The keeper: holds descriptors of /dev/fuse as long as a mount lives, whatever happens to the processes serving it.

As long as one process holds the descriptor, the kernel keeps a mount's requests and waits for answers; when the last
one closes it, every file of the mount fails for ever. So this process does nothing else, has no dependency, and is
never upgraded with the rest.

Protocol, version 1, frozen (see `packet`): every request is {"version": 1, "op": …}, every reply {"ok": true, …} or
{"ok": false, "error": text}.
  ping                                → {"pid", "count"}
  store {"name", "blob"} + descriptor → keeps both, replacing what was there; without a descriptor: the blob only
  list                                → {"names": {name: blob}}
  get {"name"}                        → {"blob"} + descriptor
  delete {"name"}                     → {"found": bool}
A blob is any JSON value; the keeper does not look at it.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import selectors
import signal
import socket
import sys
import time
from dataclasses import dataclass
from typing import Any

from curve_storage.volumehost import packet

_MAX_CLIENTS = 256


@dataclass
class _Kept:
    descriptor: int
    blob: Any


class Keeper:
    """The descriptors, apart from any socket. `handle` owns the descriptors it is given."""

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}

    def handle(self, message: dict[str, Any], descriptors: list[int]) -> tuple[dict[str, Any], list[int]]:
        """The reply and the descriptors to send with it, which stay the keeper's."""
        unused = list(descriptors)
        try:
            if message.get("version") != packet.VERSION:
                return _refuse(f"version {message.get('version')!r} is not spoken here, {packet.VERSION} is")
            operation, name = message.get("op"), message.get("name")
            if operation == "ping":
                return {"ok": True, "pid": os.getpid(), "count": len(self._kept)}, []
            if operation == "list":
                return {"ok": True, "names": {key: kept.blob for key, kept in self._kept.items()}}, []
            if operation not in ("store", "get", "delete"):
                return _refuse(f"no operation {operation!r}")
            if not isinstance(name, str) or not name:
                return _refuse("a name is needed")
            kept = self._kept.get(name)
            if operation == "store":
                return self._store(name, message.get("blob"), kept, unused)
            if operation == "delete":
                if kept is not None:
                    del self._kept[name]
                    os.close(kept.descriptor)
                return {"ok": True, "found": kept is not None}, []
            if kept is None:
                return _refuse(f"nothing is kept under {name!r}")
            return {"ok": True, "blob": kept.blob}, [kept.descriptor]
        finally:
            for descriptor in unused:
                os.close(descriptor)

    def _store(self, name: str, blob: Any, kept: _Kept | None, unused: list[int]) -> tuple[dict[str, Any], list[int]]:
        if not unused:
            if kept is None:
                return _refuse(f"nothing is kept under {name!r} and no descriptor came with the request")
            kept.blob = blob
            return {"ok": True}, []
        descriptor = unused.pop(0)
        self._kept[name] = _Kept(descriptor, blob)
        if kept is not None:
            os.close(kept.descriptor)
        return {"ok": True}, []

    @property
    def count(self) -> int:
        return len(self._kept)


def _refuse(reason: str) -> tuple[dict[str, Any], list[int]]:
    return {"ok": False, "error": reason}, []


def _log(event: str, **facts: Any) -> None:
    line = {"ts": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "component": "keeper", "event": event, **facts}
    try:
        print(json.dumps(line), file=sys.stderr, flush=True)
    except OSError:  # whoever read the log is gone
        return


def serve(path: str, keeper: Keeper) -> None:
    """Serve until SIGTERM. A client that misbehaves loses its connection, nothing else."""
    stopping: list[int] = []
    wake_read, wake_write = socket.socketpair()
    wake_write.setblocking(False)
    signal.set_wakeup_fd(wake_write.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stopping.append(number))
    for number in (signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    listener = packet.listen(path)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(wake_read, selectors.EVENT_READ)
    _log("serving", socket=path, pid=os.getpid())
    while not stopping:
        for key, _ in selector.select():
            if key.fileobj is listener:
                _accept(listener, selector)
            elif key.fileobj is not wake_read:
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                try:
                    alive = _answer(connection, keeper)
                except (OSError, ValueError, TypeError) as error:
                    _log("client dropped", reason=repr(error))
                    alive = False
                if not alive:
                    selector.unregister(connection)
                    connection.close()
    _log("stopped", descriptors=keeper.count)
    if keeper.count:
        _log("mounts of this node depend on the data processes alone until a keeper runs again")


def _accept(listener: socket.socket, selector: selectors.BaseSelector) -> None:
    try:
        connection, _ = listener.accept()
    except OSError as error:
        _log("accept failed", reason=repr(error))
        time.sleep(0.05)  # out of descriptors: do not spin
        return
    connection.setblocking(False)
    if len(selector.get_map()) > _MAX_CLIENTS:
        connection.close()
        return
    selector.register(connection, selectors.EVENT_READ)


def _answer(connection: socket.socket, keeper: Keeper) -> bool:
    """One request; False at the end of the connection."""
    received = packet.receive(connection)
    if received is None:
        return False
    packet.send(connection, *keeper.handle(*received))
    return True


def main() -> None:
    parser = argparse.ArgumentParser(prog="curve-keeper", description="Holds the mounts of a node across restarts.")
    parser.add_argument("--socket", default="/var/lib/curve/volumehost/keeper.sock")
    path = parser.parse_args().socket
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    lock = os.open(path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit(f"curve-keeper: {path}: another keeper is serving this socket")
    serve(path, Keeper())


if __name__ == "__main__":
    main()

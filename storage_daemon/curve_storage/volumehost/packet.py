"""Messages between processes of a node: one JSON object per SOCK_SEQPACKET packet, descriptors beside it (SCM_RIGHTS).

Standard library only: the keeper uses it.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from typing import Any

VERSION = 1
MAX_PACKET = 128 * 1024
MAX_DESCRIPTORS = 8


def send(connection: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Raises OSError; a packet is sent whole or not at all."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > MAX_PACKET:
        raise ValueError(f"a message of {len(data)} bytes, {MAX_PACKET} are allowed")
    socket.send_fds(connection, [data], list(descriptors))


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """A message and its descriptors, which are the caller's to close; None at the end of the connection.

    Raises ValueError for anything that is not one whole JSON object; its descriptors are closed then.
    """
    data, descriptors, flags, _ = socket.recv_fds(connection, MAX_PACKET + 1, MAX_DESCRIPTORS)
    try:
        if not data and not descriptors:
            return None
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(data) > MAX_PACKET:
            raise ValueError("a message too large")
        message = json.loads(data)
        if not isinstance(message, dict):
            raise ValueError("not a JSON object")
    except ValueError:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return message, descriptors


def listen(path: str) -> socket.socket:
    """A non-blocking listener at `path`, mode 0600; a socket file left there is replaced."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    mask = os.umask(0o177)
    try:
        listener.bind(path)
    finally:
        os.umask(mask)
    listener.listen(64)
    return listener


def peer_pid(connection: socket.socket) -> int:
    """The process at the other end, in this pid namespace; 0 when it is not visible from here."""
    return int.from_bytes(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], "little")

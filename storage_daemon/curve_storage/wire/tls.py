"""Mutual TLS for the data port from PEM files that may be replaced at any time.

Both sides show a certificate of the cluster's own CA. A server's certificate carries the DNS name in SERVER_NAME
whatever address it is reached by (pods change addresses), and the client checks that name.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Literal

from curve_storage.config import TlsFiles
from curve_storage.errors import ConfigError

SERVER_NAME = "curve-server"

Side = Literal["server", "client"]


class TlsContexts:
    """SSL contexts that follow the files: every new handshake uses what the files hold at that moment."""

    def __init__(self, files: TlsFiles, side: Side) -> None:
        self._files = files
        self._side: Side = side
        self._stamps: tuple[tuple[int, int], ...] = ()
        self._context = self._build()

    def current(self) -> ssl.SSLContext:
        """The context for the next connection. A file set that is half-replaced keeps the previous one in use."""
        stamps = self._stat()
        if stamps != self._stamps:
            try:
                self._context = self._build()
            except ConfigError:
                pass
        return self._context

    def listening(self) -> ssl.SSLContext:
        """A context for a listening socket, which is handed over once: it switches to `current` in every handshake."""
        context = self._build()

        def switch(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            connection.context = self.current()

        context.sni_callback = switch
        return context

    def _stat(self) -> tuple[tuple[int, int], ...]:
        found: list[tuple[int, int]] = []
        for path in (self._files.ca, self._files.cert, self._files.key):
            try:
                stat = path.stat()
            except OSError:
                found.append((0, 0))
            else:
                found.append((stat.st_mtime_ns, stat.st_ino))
        return tuple(found)

    def _build(self) -> ssl.SSLContext:
        stamps = self._stat()
        context = build_context(self._files, self._side)
        self._stamps = stamps
        return context


def build_context(files: TlsFiles, side: Side) -> ssl.SSLContext:
    """Raises ConfigError naming the file that cannot be used."""
    protocol = ssl.PROTOCOL_TLS_SERVER if side == "server" else ssl.PROTOCOL_TLS_CLIENT
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.check_hostname = side == "client"
    try:
        context.load_verify_locations(cafile=str(files.ca))
    except (OSError, ssl.SSLError) as error:
        raise _unusable(files.ca, error) from error
    try:
        context.load_cert_chain(str(files.cert), str(files.key))
    except (OSError, ssl.SSLError) as error:
        raise _unusable(files.cert, error) from error
    return context


def _unusable(path: Path, error: Exception) -> ConfigError:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
    return ConfigError(
        f"cannot use this TLS file: {reason}", where=str(path), todo="Put a PEM certificate and its key there"
    )

"""gRPC channels and their options: TCP with optional mutual TLS, and Unix sockets."""

from __future__ import annotations

from pathlib import Path

import grpc
from grpc import aio

from curve_storage.config import TlsFiles
from curve_storage.errors import ConfigError
from curve_storage.units import MiB
from curve_storage.wire.tls import SERVER_NAME

MAX_MESSAGE = 32 * MiB

CHANNEL_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    # A peer that stops answering (paused, cut off) is noticed within 4 s, without limiting how long a call may take.
    ("grpc.keepalive_time_ms", 2000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
SERVER_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    # Accept the keepalive of CHANNEL_OPTIONS and probe clients that are silent, so that dead ones free their streams.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 10000),
    ("grpc.keepalive_timeout_ms", 5000),
    ("grpc.so_reuseport", 0),
)


def read_pem(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read this TLS file: {error.strerror}", where=str(path), todo="Put a PEM file there"
        ) from error


def tls_stamp(tls: TlsFiles) -> tuple[tuple[int, int], ...]:
    """Changes whenever one of the files is replaced."""
    found: list[tuple[int, int]] = []
    for path in (tls.ca, tls.cert, tls.key):
        try:
            stat = path.stat()
        except OSError:
            found.append((0, 0))
        else:
            found.append((stat.st_mtime_ns, stat.st_ino))
    return tuple(found)


def tcp_channel(address: str, tls: TlsFiles | None = None) -> aio.Channel:
    """A channel to host:port. Raises ConfigError when a TLS file cannot be read."""
    if tls is None:
        return aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    credentials = grpc.ssl_channel_credentials(read_pem(tls.ca), read_pem(tls.key), read_pem(tls.cert))
    options = (*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", SERVER_NAME))
    return aio.secure_channel(address, credentials, options=options)


def unix_channel(path: str | Path) -> aio.Channel:
    """A channel to the Unix socket at `path`."""
    options = (*CHANNEL_OPTIONS, ("grpc.default_authority", "localhost"))
    return aio.insecure_channel(f"unix:{path}", options=options)

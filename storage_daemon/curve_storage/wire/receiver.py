"""Both ends of a connection share this: frames out of the byte stream, and frames coalesced into few writes.

Receiving: small frames are cut out of one fixed buffer; a payload of 32 KiB or more is received straight into a buffer
of its own. Lengths are checked against the limits of the frame's type before anything is allocated, and the header's
checksum before the frame is acted on. Sending: everything queued during one turn of the event loop goes out in one
write, in which small pieces are joined and large payloads are passed on without a copy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

from crc32c import crc32c

from curve_storage.errors import CurveError, InvalidArgument, Unauthenticated, Unavailable, Unimplemented
from curve_storage.units import KiB, MiB
from curve_storage.wire.buffers import BufferPool
from curve_storage.wire.frame import (
    CRC,
    HEADER,
    HEADER_SIZE,
    KNOWN_LIMITS,
    MAGIC,
    PREFIX,
    PREFIX_SIZE,
    VERSION,
    Buffer,
    limits,
)
from curve_storage.wire.messages import DEFAULT_MAX_META

RECEIVE_BUFFER = 128 * KiB
LARGE = 32 * KiB
"""From this size on a payload is received into, and sent from, a buffer of its own."""
_LEAST_ROOM = RECEIVE_BUFFER - HEADER_SIZE - DEFAULT_MAX_META - LARGE
WRITE_HIGH = 8 * MiB

SHARED_POOL = BufferPool()
Header = tuple[int, int, int, int, int, int, int, int, int]


class FrameConnection(asyncio.BufferedProtocol):
    """Subclasses implement `admit`, `deliver`, `violated` and `closed`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, pool: BufferPool = SHARED_POOL) -> None:
        self._loop = loop
        self._pool = pool
        self._buffer = bytearray(RECEIVE_BUFFER)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        # A frame too large for the buffer: its meta or payload being filled. `_rest` is None when there is none.
        self._rest: memoryview | None = None
        self._body: memoryview | None = None
        self._discard = 0
        self._large: Header | None = None
        self._large_meta: Buffer | None = None
        self._prefix = b""
        self._out: list[Buffer] = []
        self._out_large = False
        self._flush_due = False
        self.limits: dict[int, tuple[int, int]] = KNOWN_LIMITS
        self.transport: asyncio.Transport | None = None
        self.paused = False
        self.broken = False
        self.received = 0

    # ---- for subclasses

    def admit(self, kind: int, flags: int, request_id: int, meta_length: int, payload_length: int) -> bool:
        """Decides on a request before memory for its payload is taken; False: the payload is read and thrown away."""
        raise NotImplementedError

    def may_allocate(self, kind: int) -> bool:
        """Whether a meta above the default limit may be received now."""
        return True

    def deliver(self, kind: int, flags: int, status: int, request_id: int, meta: Buffer, payload: memoryview) -> None:
        raise NotImplementedError

    def violated(self, error: CurveError, request_id: int, kind: int) -> None:
        """The peer broke the protocol: close. request_id 0: the frame is damaged, it cannot be told whose it was."""
        raise NotImplementedError

    def closed(self, error: Exception | None) -> None:
        raise NotImplementedError

    # ---- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_HIGH)
        if self._out:
            self._schedule_flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.broken = True
        self._out.clear()
        self._rest = self._body = None
        self.closed(exc)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False

    def eof_received(self) -> bool:
        return False

    def get_buffer(self, sizehint: int) -> memoryview:
        rest = self._rest
        if rest is not None:
            return rest
        if self._start == self._end:
            self._start = self._end = 0
        elif RECEIVE_BUFFER - self._end < _LEAST_ROOM:
            held = self._end - self._start
            self._view[:held] = self._view[self._start : self._end]
            self._start, self._end = 0, held
        return self._view[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        if self.broken:
            return
        self.received += nbytes
        if self._rest is not None:
            self._fill(nbytes)
            return
        self._end += nbytes
        view, buffer = self._view, self._buffer
        start, end = self._start, self._end
        unpack = HEADER.unpack_from
        limits = self.limits
        if self._discard:
            dropped = min(self._discard, end - start)
            self._discard -= dropped
            start += dropped
        while end - start >= HEADER_SIZE:
            header = unpack(buffer, start)
            magic, version, flags, kind, status, request_id, meta_length, payload_length, crc = header
            allowed = limits.get(kind)
            if (
                allowed is None
                or magic != MAGIC
                or version != VERSION
                or meta_length > allowed[0]
                or payload_length > allowed[1]
            ):
                self._violation(header, start, end)
                return
            body = start + HEADER_SIZE
            data = body + meta_length
            if data > end:
                if meta_length > DEFAULT_MAX_META:
                    self._start, self._end = start, end
                    self._receive_large_meta(header)
                    return
                break
            # Slices of a bytearray are copies, and cheaper to make than views.
            checksum = crc32c(buffer[start : start + PREFIX_SIZE])
            meta: Buffer = b""
            if meta_length:
                meta = buffer[body:data]
                checksum = crc32c(meta, checksum)
            if checksum != crc:
                self._bad_checksum()
                return
            stop = data + payload_length
            if stop <= end:
                if self.admit(kind, flags, request_id, meta_length, payload_length):
                    payload = memoryview(buffer[data:stop]) if payload_length else _EMPTY
                    self.deliver(kind, flags, status, request_id, meta, payload)
                if self.broken:
                    return
                start = stop
            elif payload_length >= LARGE:
                admitted = self.admit(kind, flags, request_id, meta_length, payload_length)
                if self.broken:
                    return
                got = end - data
                if not admitted:
                    self._discard = payload_length - got
                    start = end
                    break
                self._start = self._end = 0
                self._large, self._large_meta = header, meta
                self._begin_payload(payload_length, view[data:end], got)
                return
            else:
                break
        self._start, self._end = start, end

    # ---- frames larger than the buffer

    def _receive_large_meta(self, header: Header) -> None:
        if not self.may_allocate(header[3]):
            self.bad(Unauthenticated("a request of this size before HELLO", todo="Present a token first"))
            return
        meta = bytearray(header[6])
        view = memoryview(meta)
        got = self._end - self._start - HEADER_SIZE
        view[:got] = self._view[self._start + HEADER_SIZE : self._end]
        self._large, self._large_meta = header, meta
        self._body = None
        self._rest = view[got:]
        self._prefix = bytes(self._view[self._start : self._start + PREFIX_SIZE])
        self._start = self._end = 0

    def _begin_payload(self, length: int, first: memoryview, got: int) -> None:
        payload = self._pool.take(length)
        payload[:got] = first
        self._body = payload
        self._rest = payload[got:]

    def _fill(self, nbytes: int) -> None:
        assert self._rest is not None and self._large is not None
        rest = self._rest[nbytes:]
        if len(rest):
            self._rest = rest
            return
        self._rest = None
        header, meta = self._large, self._large_meta
        assert meta is not None
        if self._body is None:  # the meta is complete, the payload has not begun
            if crc32c(meta, crc32c(self._prefix)) != header[8]:
                self._bad_checksum()
                return
            admitted = self.admit(header[3], header[2], header[5], header[6], header[7])
            if self.broken:
                return
            if not admitted:
                self._large = self._large_meta = None
                self._discard = header[7]
                return
            if header[7]:
                self._begin_payload(header[7], _EMPTY, 0)
                return
        payload = self._body if self._body is not None else _EMPTY
        self._large = self._large_meta = self._body = None
        self.deliver(header[3], header[2], header[4], header[5], meta, payload)

    def mid_frame(self) -> bool:
        """Whether a frame too large for the buffer is only partly here."""
        return self._rest is not None or self._discard > 0

    # ---- violations

    def _violation(self, header: Header, start: int, end: int) -> None:
        magic, version, _flags, kind, _status, request_id, meta_length, payload_length, crc = header
        upgrade = "Upgrade the older of the two programs"
        if magic != MAGIC:
            self.bad(
                Unavailable(f"not a Curve frame (magic {magic:#06x})", todo="Check that this is a Curve data port")
            )
            return
        if version != VERSION:
            self.bad(Unavailable(f"protocol version {version}, this side speaks {VERSION}", todo=upgrade))
            return
        error: CurveError
        if kind not in self.limits:
            error = Unimplemented(f"unknown message type {kind}", todo=upgrade)
        else:
            allowed = self.limits[kind]
            error = InvalidArgument(
                f"type {kind} with {meta_length} bytes of meta and {payload_length} of payload is over the limit "
                f"of {allowed[0]} and {allowed[1]}",
                todo="Split the request",
            )
        # Only a header that is intact tells whose request this was; a damaged one is a fault of the connection.
        body = start + HEADER_SIZE
        if end - body >= meta_length:
            intact = (
                crc32c(self._view[body : body + meta_length], crc32c(self._view[start : start + PREFIX_SIZE])) == crc
            )
            if intact:
                self.bad(error, request_id, kind)
                return
        self.bad(Unavailable(error.what, todo=error.todo))

    def _bad_checksum(self) -> None:
        todo = "Check the network between the two hosts"
        self.bad(Unavailable("checksum of header and meta does not match", todo=todo))

    def bad(self, error: CurveError, request_id: int = 0, kind: int = 0) -> None:
        self.broken = True
        error.where = _printable(self.transport.get_extra_info("peername")) if self.transport is not None else ""
        self.violated(error, request_id, kind)

    # ---- sending

    def send(
        self,
        kind: int,
        flags: int,
        status: int,
        request_id: int,
        meta: Buffer,
        payload: Buffer | Sequence[Buffer],
    ) -> int:
        """Queues one frame; returns its size in bytes. Payload memory must stay unchanged until it is on its way.

        Raises InvalidArgument when it is larger than what the peer accepts."""
        out = self._out
        if isinstance(payload, (bytes, bytearray, memoryview)):
            length = len(payload)
            pieces: Sequence[Buffer] = (payload,)
        else:
            length = sum([len(piece) for piece in payload])
            pieces = payload
        allowed = KNOWN_LIMITS.get(kind) or limits(kind)
        if len(meta) > allowed[0] or length > allowed[1]:
            raise InvalidArgument(
                f"type {kind} with {len(meta)} bytes of meta and {length} of payload is over the limit of "
                f"{allowed[0]} and {allowed[1]}",
                todo="Split the request",
            )
        # frame.head(), inlined: this is the hottest path of a client
        prefix = PREFIX.pack(MAGIC, VERSION, flags, kind, status, request_id, len(meta), length)
        if meta:
            out += (prefix, CRC.pack(crc32c(meta, crc32c(prefix))), meta)
        else:
            out += (prefix, CRC.pack(crc32c(prefix)))
        if length:
            out += pieces
            if length >= LARGE:
                self._out_large = True
        if not self._flush_due and self.transport is not None:
            self._flush_due = True
            self._loop.call_soon(self.flush)
        return HEADER_SIZE + len(meta) + length

    def _schedule_flush(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        self._flush_due = False
        out = self._out
        transport = self.transport
        if not out or transport is None:
            return
        self._out = []
        if not self._out_large:
            transport.write(b"".join(out))
            return
        self._out_large = False
        pieces: list[Buffer] = []
        run: list[Buffer] = []
        for piece in out:
            if len(piece) < LARGE:
                run.append(piece)
                continue
            if run:
                pieces.append(b"".join(run))
                run = []
            pieces.append(piece)
        if run:
            pieces.append(b"".join(run))
        write = transport.write  # not writelines: the standard library's joins everything
        for piece in pieces:
            write(piece)


_EMPTY = memoryview(b"")


def _printable(peer: object) -> str:
    if isinstance(peer, tuple) and len(peer) >= 2:
        return f"{peer[0]}:{peer[1]}"
    return str(peer) if peer else ""

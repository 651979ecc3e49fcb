"""One FUSE connection served on the event loop: requests are read, run as tasks, answered on the same descriptor.

The descriptor outlives the process: whoever holds it owes the answers. A process takes over a connection by asking
the kernel to repeat what was read but never answered (RESEND); it hands one over by reading no more and
answering what it has. Replies are single system calls, so a request is answered whole or not at all.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from typing import Any

from curve_storage.clock import Clock
from curve_storage.fuse import abi
from curve_storage.fuse.buffers import Lease, SlabPool
from curve_storage.fuse.dispatch import HANDLERS, INTERRUPTIBLE, error_number
from curve_storage.fuse.handshake import MAX_WRITE, SessionFacts, negotiate
from curve_storage.fuse.ops import Operations
from curve_storage.fuse.statistics import Statistics
from curve_storage.telemetry import logs

_READ, _WRITE = int(abi.Opcode.READ), int(abi.Opcode.WRITE)
_NO_REPLY = {int(abi.Opcode.FORGET), int(abi.Opcode.BATCH_FORGET)}
_OUT_OF_ORDER = {*_NO_REPLY, int(abi.Opcode.INTERRUPT)}
_LOST_WINDOW = 1 << 17  # how many numbers back a lost request is looked for
_BATCH = 32  # requests read before other work of the loop gets its turn
_QUIET = {errno.ENOSYS, errno.ENOENT, errno.EINTR}
_in_header = abi.IN_HEADER_START.unpack_from
_io_in = abi.IO_IN_START.unpack_from
_out_header = abi.OUT_HEADER.pack
_write_reply = abi.WRITE_REPLY.pack

DEFAULT_SLABS = 24


class Session:
    """descriptor: of /dev/fuse, mounted, non-blocking; stays the caller's to close.

    facts: None until INIT was negotiated; on_facts is called when it is. on_end is called once when the kernel has
    ended the connection (unmounted or aborted). slabs: buffers of 2 MiB; when all are full the kernel keeps its
    requests until one is free.
    """

    def __init__(
        self,
        descriptor: int,
        ops: Operations,
        *,
        clock: Clock,
        facts: SessionFacts | None = None,
        on_facts: Callable[[SessionFacts], None] | None = None,
        on_end: Callable[[], None] | None = None,
        slabs: int = DEFAULT_SLABS,
    ) -> None:
        self.facts = facts
        self.statistics = Statistics()
        self.withhold_errors = False  # leave failing requests unanswered: a successor will get them again
        self.withheld = 0
        self._fd = descriptor
        self._ops = ops
        self._now = clock.monotonic
        self._on_facts = on_facts
        self._on_end = on_end
        self._pool = SlabPool(max(MAX_WRITE, abi.MIN_READ_BUFFER), slabs)
        self._header = bytearray(abi.HEADERS_SIZE)
        self._inflight: dict[int, tuple[float, int, asyncio.Task[None]]] = {}
        self._interrupted: set[int] = set()
        self._idle: asyncio.Future[None] | None = None
        self._reading = False
        self._paused = False
        self._ended = False
        self._lost_before_next = False  # fail what a predecessor left, once the next request's number is known
        self._loop = asyncio.get_running_loop()
        self._log = logs.get("fuse")

    # -- life

    def start(self, *, takeover: bool = False) -> None:
        """Begin to read. takeover: the descriptor was another process's; ask for what that one left unanswered."""
        if takeover:
            self._ask_resend()
        self._reading = True
        self._loop.add_reader(self._fd, self._readable)

    def stop_reading(self) -> None:
        """Take no more requests; what is in hand goes on."""
        self._reading = False
        self._paused = False
        self._loop.remove_reader(self._fd)

    async def drain(self, timeout: float) -> int:
        """Wait until everything in hand is answered; the number of requests that are not after `timeout` seconds."""
        if self._inflight:
            self._idle = self._loop.create_future()
            await asyncio.wait([self._idle], timeout=timeout)
            self._idle = None
        return len(self._inflight)

    def abandon(self) -> None:
        """Stop working on what is in hand without answering it."""
        self.withhold_errors = True
        for _, _, task in list(self._inflight.values()):
            task.cancel()

    @property
    def inflight(self) -> int:
        return len(self._inflight)

    def oldest(self) -> float:
        """Age in seconds of the oldest request in hand; 0 without any."""
        for started, _, _ in self._inflight.values():
            return self._now() - started
        return 0.0

    def invalidate_attributes(self, inode: int) -> None:
        """The kernel asks again for size and the rest; cached data stays. Raises OSError."""
        body = abi.NOTIFY_INVAL_INODE.pack(inode, -1, 0)
        head = _out_header(abi.OUT_HEADER.size + len(body), abi.Notify.INVAL_INODE, 0)
        try:
            os.writev(self._fd, (head, body))
        except FileNotFoundError:  # the kernel has no such inode in its cache
            pass

    # -- reading

    def _readable(self) -> None:
        header, pool, read = self._header, self._pool, os.readv
        now, start_task, inflight = self._now, self._loop.create_task, self._inflight
        for _ in range(_BATCH):
            space = pool.space()
            if space is None:
                self._paused = True
                self._loop.remove_reader(self._fd)
                return
            try:
                read(self._fd, (header, space))
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT):  # ENOENT: given up while it was being copied to us
                    continue
                self._end(error)
                return
            length, opcode, unique, node = _in_header(header)
            if self._lost_before_next and opcode not in _OUT_OF_ORDER:
                self._lost_before_next = False
                self._fail_lost(unique)
            if unique & abi.RESEND_BIT:
                self.statistics.resent += 1
            if opcode == _READ:
                handle, offset, size = _io_in(header, 40)
                started = now()
                task = start_task(self._read(unique, node, handle, offset, size, started))
                inflight[unique] = (started, opcode, task)
            elif opcode == _WRITE:
                handle, offset, size = _io_in(header, 40)
                started = now()
                task = start_task(self._write(unique, node, handle, offset, pool.take(size), started))
                inflight[unique] = (started, opcode, task)
            else:
                inside = length - len(header)
                body = bytes(header[40:length]) + (bytes(space[:inside]) if inside > 0 else b"")
                self._other(opcode, unique, node, memoryview(body))
            if not self._reading:
                return

    def _other(self, opcode: int, unique: int, node: int, body: memoryview) -> None:
        handler = HANDLERS.get(opcode)
        if handler is not None:
            started = self._now()
            task = self._loop.create_task(self._call(handler(self._ops, node, body), unique, started))
            self._inflight[unique] = (started, opcode, task)
        elif opcode == abi.Opcode.INIT:
            self._init(unique, body)
        elif opcode == abi.Opcode.INTERRUPT:
            self._interrupt(unique, abi.INTERRUPT_IN.unpack_from(body)[0])
        elif opcode == abi.Opcode.FORGET:
            self._ops.forget(node, int.from_bytes(body[:8], "little"))
        elif opcode not in _NO_REPLY:
            self._send_error(unique, errno.ENOSYS)

    def _init(self, unique: int, body: memoryview) -> None:
        try:
            facts, reply = negotiate(body)
        except OSError as error:
            self._log.error("FUSE handshake refused", reason=str(error))
            self._send_error(unique, errno.EPROTO)
            return
        self.facts = facts
        self._send(unique, reply)
        if self._on_facts is not None:
            self._on_facts(facts)

    def _interrupt(self, unique: int, target: int) -> None:
        found = self._inflight.get(target)
        if found is None:
            self._send_error(unique, errno.EAGAIN)  # not seen yet, or just answered: the kernel sorts it out
        elif found[1] in INTERRUPTIBLE:
            self._interrupted.add(target)
            found[2].cancel()

    # -- running

    async def _read(self, unique: int, node: int, handle: int, offset: int, size: int, started: float) -> None:
        done = 0
        try:
            data = await self._ops.read(node, handle, offset, size)
            done = len(data)
            self._send(unique, data)
        except BaseException as error:
            self._failed(unique, error)
        finally:
            self._finish(unique)
            self.statistics.reads.observe(self._now() - started, done)

    async def _write(self, unique: int, node: int, handle: int, offset: int, lease: Lease, started: float) -> None:
        done = 0
        try:
            done = await self._ops.write(node, handle, offset, lease.data)
            try:
                os.write(self._fd, _write_reply(24, 0, unique, done, 0))
            except OSError as error:
                self._reply_refused(error)
        except BaseException as error:
            self._failed(unique, error)
        finally:
            lease.release()
            if self._paused and self._reading:
                self._paused = False
                self._loop.add_reader(self._fd, self._readable)
            self._finish(unique)
            self.statistics.writes.observe(self._now() - started, done)

    async def _call(self, operation: Any, unique: int, started: float) -> None:
        try:
            self._send(unique, await operation)
        except BaseException as error:
            self._failed(unique, error)
        finally:
            self._finish(unique)
            self.statistics.others.observe(self._now() - started, 0)

    def _finish(self, unique: int) -> None:
        del self._inflight[unique]
        if self._idle is not None and not self._inflight and not self._idle.done():
            self._idle.set_result(None)

    def _failed(self, unique: int, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError):
            if unique not in self._interrupted:
                return  # given up without an answer: a successor gets the request again
            self._interrupted.discard(unique)
            self._send_error(unique, errno.EINTR)
            return
        if self.withhold_errors:
            self.withheld += 1
            return
        number = error_number(error)
        if number not in _QUIET:
            self.statistics.errors += 1
            self._log.warning("request failed", errno=errno.errorcode.get(number, number), reason=repr(error))
        self._send_error(unique, number)

    # -- answering

    def _send(self, unique: int, body: bytes | bytearray | memoryview) -> None:
        try:
            os.writev(self._fd, (_out_header(16 + len(body), 0, unique), body))
        except OSError as error:
            self._reply_refused(error)

    def _send_error(self, unique: int, number: int) -> None:
        try:
            os.write(self._fd, _out_header(16, -number, unique))
        except OSError as error:
            self._reply_refused(error)

    def _reply_refused(self, error: OSError) -> None:
        # ENOENT: the caller gave up and the kernel forgot the request; ENODEV: unmounted. Both end by themselves.
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            self._log.error("the kernel refused a reply", reason=str(error))

    def _ask_resend(self) -> None:
        if self.facts is not None and not self.facts.resend:
            self._log.warning("requests in flight at the crash fail: this kernel does not repeat them")
            self._lost_before_next = True
            return
        try:
            os.write(self._fd, _out_header(16, abi.Notify.RESEND, 0))
        except OSError as error:
            self._log.warning("the kernel does not repeat requests", reason=str(error), todo="Linux 6.9 or newer")

    def _fail_lost(self, next_unique: int) -> None:
        """EIO for what a predecessor read and never answered: numbers grow by two and are read in order, so that is
        all below the next one. The kernel refuses answers to numbers it does not wait for, which does no harm."""
        failed = 0
        for unique in range(next_unique - 2, max(0, next_unique - 2 * _LOST_WINDOW), -2):
            if unique in self._inflight:
                continue
            try:
                os.write(self._fd, _out_header(16, -errno.EIO, unique))
                failed += 1
            except OSError:
                continue
        self.statistics.errors += failed
        self._log.error("requests lost with the process before this one were failed", requests=failed)

    def _end(self, error: OSError) -> None:
        if self._ended:
            return
        self._ended = True
        self.stop_reading()
        if error.errno != errno.ENODEV:
            self._log.error("reading requests failed", reason=str(error))
        if self._on_end is not None:
            self._on_end()

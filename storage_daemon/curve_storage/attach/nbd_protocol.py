"""The NBD protocol: numbers, layouts, and the fixed newstyle negotiation as a machine without I/O.

Source: the protocol document of the NetworkBlockDevice project. Everything is big-endian.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from struct import Struct

from curve_storage.errors import InvalidArgument
from curve_storage.units import KiB, MiB

INIT_MAGIC = b"NBDMAGIC"
OPTION_MAGIC = b"IHAVEOPT"
OPTION_REPLY_MAGIC = 0x0003E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF

MAX_PAYLOAD = 32 * MiB
PREFERRED_BLOCK = 4 * KiB
_MAX_OPTION = 64 * KiB

OPTION = Struct(">8sII")  # magic, option, length
OPTION_REPLY = Struct(">QIII")  # magic, option, type, length
REQUEST = Struct(">IHHQQI")  # magic, flags, type, cookie, offset, length
SIMPLE_REPLY = Struct(">IIQ")  # magic, error, cookie
CHUNK = Struct(">IHHQI")  # magic, flags, type, cookie, length
CHUNK_OFFSET = Struct(">Q")
CHUNK_ERROR = Struct(">IH")  # error, message length


class Option(IntEnum):
    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8


class OptionReply(IntEnum):
    ACK = 1
    SERVER = 2
    INFO = 3
    ERR_UNSUP = (1 << 31) + 1
    ERR_INVALID = (1 << 31) + 3
    ERR_UNKNOWN = (1 << 31) + 6


class Info(IntEnum):
    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class Transmission(IntFlag):
    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_CACHE = 1 << 10


class Command(IntEnum):
    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6


class CommandFlag(IntFlag):
    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DF = 1 << 2


class ErrorNumber(IntEnum):
    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75


CHUNK_DONE = 1
CHUNK_OFFSET_DATA = 1
CHUNK_ERROR_TYPE = (1 << 15) + 1


@dataclass(frozen=True, slots=True)
class Export:
    """size in bytes."""

    name: str
    description: str
    size: int
    read_only: bool = False

    @property
    def flags(self) -> int:
        """A write is durable when answered, so a flush on any connection covers all: multi-conn holds."""
        flags = (
            Transmission.HAS_FLAGS
            | Transmission.SEND_FLUSH
            | Transmission.SEND_DF
            | Transmission.CAN_MULTI_CONN
            | Transmission.SEND_CACHE
        )
        if self.read_only:
            return int(flags | Transmission.READ_ONLY)
        return int(flags | Transmission.SEND_FUA | Transmission.SEND_TRIM | Transmission.SEND_WRITE_ZEROES)


class Negotiation:
    """`feed` what arrived, send what it returns; then look at `transmission` (the export chosen) and `closed`.

    Raises InvalidArgument when the peer does not speak the protocol: close the connection.
    """

    greeting = INIT_MAGIC + OPTION_MAGIC + (0b11).to_bytes(2, "big")  # fixed newstyle, no zeroes

    def __init__(self, exports: Sequence[Export]) -> None:
        self.transmission: Export | None = None
        self.structured = False
        self.closed = False
        self._exports = exports
        self._flags: int | None = None

    def feed(self, data: memoryview) -> tuple[int, bytes]:
        """Bytes consumed from the start of `data`, and the answer."""
        out = bytearray()
        used = 0
        while self.transmission is None and not self.closed:
            step = self._step(data[used:], out)
            if step == 0:
                break
            used += step
        return used, bytes(out)

    def _step(self, data: memoryview, out: bytearray) -> int:
        if self._flags is None:
            if len(data) < 4:
                return 0
            self._flags = int.from_bytes(data[:4], "big")
            if self._flags & ~0b11 or not self._flags & 1:
                raise InvalidArgument(f"unknown NBD client flags {self._flags:#x}")
            return 4
        if len(data) < OPTION.size:
            return 0
        length: int
        magic, option, length = OPTION.unpack_from(data)
        if magic != OPTION_MAGIC or length > _MAX_OPTION:
            raise InvalidArgument("not an NBD option")
        if len(data) < OPTION.size + length:
            return 0
        self._option(option, bytes(data[OPTION.size : OPTION.size + length]), out)
        return OPTION.size + length

    def _option(self, option: int, body: bytes, out: bytearray) -> None:
        if option == Option.EXPORT_NAME:
            export = self._find(body)
            if export is None:
                raise InvalidArgument("no such export")  # this option has no way to say so but to hang up
            out += export.size.to_bytes(8, "big") + export.flags.to_bytes(2, "big")
            if not (self._flags or 0) & 0b10:
                out += bytes(124)
            self.transmission = export
        elif option == Option.ABORT:
            _reply(out, option, OptionReply.ACK)
            self.closed = True
        elif option == Option.LIST:
            if body:
                _reply(out, option, OptionReply.ERR_INVALID)
                return
            for export in self._exports:
                name = export.name.encode()
                _reply(
                    out, option, OptionReply.SERVER, len(name).to_bytes(4, "big") + name + export.description.encode()
                )
            _reply(out, option, OptionReply.ACK)
        elif option in (Option.INFO, Option.GO):
            self._info(option, body, out)
        elif option == Option.STRUCTURED_REPLY:
            if body:
                _reply(out, option, OptionReply.ERR_INVALID)
                return
            self.structured = True
            _reply(out, option, OptionReply.ACK)
        else:
            _reply(out, option, OptionReply.ERR_UNSUP)

    def _info(self, option: int, body: bytes, out: bytearray) -> None:
        length = int.from_bytes(body[:4], "big")
        count = int.from_bytes(body[4 + length : 6 + length], "big")
        if len(body) != 6 + length + 2 * count:
            _reply(out, option, OptionReply.ERR_INVALID)
            return
        export = self._find(body[4 : 4 + length])
        if export is None:
            _reply(out, option, OptionReply.ERR_UNKNOWN)
            return
        wanted = {int.from_bytes(body[at : at + 2], "big") for at in range(6 + length, len(body), 2)}
        _reply(out, option, OptionReply.INFO, Struct(">HQH").pack(Info.EXPORT, export.size, export.flags))
        if Info.NAME in wanted:
            _reply(out, option, OptionReply.INFO, Info.NAME.to_bytes(2, "big") + export.name.encode())
        if Info.DESCRIPTION in wanted:
            _reply(out, option, OptionReply.INFO, Info.DESCRIPTION.to_bytes(2, "big") + export.description.encode())
        sizes = Struct(">HIII").pack(Info.BLOCK_SIZE, 1, PREFERRED_BLOCK, MAX_PAYLOAD)
        _reply(out, option, OptionReply.INFO, sizes)
        _reply(out, option, OptionReply.ACK)
        if option == Option.GO:
            self.transmission = export

    def _find(self, name: bytes) -> Export | None:
        """The empty name is the default export: the first."""
        for export in self._exports:
            if not name or export.name.encode() == name:
                return export
        return None


def _reply(out: bytearray, option: int, kind: int, body: bytes = b"") -> None:
    out += OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(body)) + body

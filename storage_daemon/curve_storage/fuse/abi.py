"""Structures and constants of the kernel's FUSE protocol (uapi linux/fuse.h, 7.31 to 7.44). No logic.

Layouts are little-endian: the protocol is native-endian and we run on little-endian machines only.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct

MAJOR = 7
MINOR = 41  # what we speak; a kernel that speaks less is answered with its own number
MINOR_LEAST = 31

ROOT_INODE = 1
MIN_READ_BUFFER = 8192


class Opcode(IntEnum):
    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    IOCTL = 39
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    LSEEK = 46
    STATX = 52


class Notify(IntEnum):
    INVAL_INODE = 2
    INVAL_ENTRY = 3
    RESEND = 7


class Init(IntFlag):
    """INIT flags; bits from 32 up travel in the second word (flags2)."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    AUTO_INVAL_DATA = 1 << 12
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    EXPLICIT_INVAL_DATA = 1 << 25
    INIT_EXT = 1 << 30
    HAS_RESEND = 1 << 39


class Open(IntFlag):
    """open_flags of an OPEN reply."""

    DIRECT_IO = 1 << 0
    KEEP_CACHE = 1 << 1
    NONSEEKABLE = 1 << 2
    PARALLEL_DIRECT_WRITES = 1 << 6


class SetAttr(IntFlag):
    """`valid` of a SETATTR request."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    FH = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8
    CTIME = 1 << 10


class Fallocate(IntFlag):
    """`mode` of FALLOCATE, as of fallocate(2)."""

    KEEP_SIZE = 0x01
    PUNCH_HOLE = 0x02
    ZERO_RANGE = 0x10


RESEND_BIT = 1 << 63  # set in `unique` of a request the kernel repeats; the reply carries it too

IN_HEADER = Struct("<IIQQIIIHH")  # len, opcode, unique, nodeid, uid, gid, pid, total_extlen (8 bytes), padding
IN_HEADER_START = Struct("<IIQQ")  # len, opcode, unique, nodeid: all that most requests need
OUT_HEADER = Struct("<IiQ")  # len, error (negative errno), unique
ATTR = Struct("<6Q10I")  # ino size blocks a/m/ctime, a/m/ctimensec mode nlink uid gid rdev blksize flags
ATTR_OUT_HEAD = Struct("<QII")  # attr_valid, attr_valid_nsec, dummy; an ATTR follows
ENTRY_OUT_HEAD = Struct("<QQQQII")  # nodeid generation entry_valid attr_valid entry_nsec attr_nsec; an ATTR follows
INIT_IN = Struct("<IIII")  # major, minor, max_readahead, flags
INIT_IN_FLAGS2 = Struct("<I")  # follows INIT_IN when flags has INIT_EXT
INIT_OUT = Struct(
    "<IIIIHHIIHHII24x"
)  # … max_background congestion max_write time_gran max_pages map_align flags2 depth
IO_IN = Struct("<QQIIQII")  # READ and WRITE: fh, offset, size, read/write flags, lock_owner, flags, padding
IO_IN_START = Struct("<QQI")  # fh, offset, size
WRITE_REPLY = Struct("<IiQII")  # OUT_HEADER, size written, padding
SETATTR_IN = Struct("<IIQQQQQQIIIIIIII")  # valid pad fh size lock_owner a/m/ctime a/m/cnsec mode - uid gid -
OPEN_IN = Struct("<II")
OPEN_OUT = Struct("<QIi")  # fh, open_flags, backing_id
RELEASE_IN = Struct("<QIIQ")
FSYNC_IN = Struct("<QII")  # fh, flags (1: data only), padding
FLUSH_IN = Struct("<QIIQ")
FALLOCATE_IN = Struct("<QQQII")  # fh, offset, length, mode, padding
STATFS_OUT = Struct("<5Q4I24x")  # blocks bfree bavail files ffree, bsize namelen frsize padding
INTERRUPT_IN = Struct("<Q")  # unique of the request to interrupt
DIRENT = Struct("<QQII")  # ino, offset of the next entry, name length, type; the name, padded to 8 bytes
NOTIFY_INVAL_INODE = Struct("<Qqq")  # ino, offset (negative: attributes only), length

HEADERS_SIZE = IN_HEADER.size + IO_IN.size  # of a WRITE; its payload follows

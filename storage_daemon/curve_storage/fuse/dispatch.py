"""Requests other than read and write: decode, call the operation, encode the reply's body."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence

from curve_storage.errors import CurveError, NoSpace, NotFound, PermissionDenied
from curve_storage.fuse import abi
from curve_storage.fuse.ops import Attributes, DirectoryEntry, Operations

Handler = Callable[[Operations, int, memoryview], Awaitable[bytes]]


def error_number(error: BaseException) -> int:
    """The errno a caller of the file system sees for what an operation raised."""
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    if isinstance(error, NoSpace):
        return errno.ENOSPC
    if isinstance(error, NotFound):
        return errno.ENOENT
    if isinstance(error, PermissionDenied):
        return errno.EPERM
    if isinstance(error, CurveError | Exception):
        return errno.EIO
    raise error


def encode_attributes(attributes: Attributes) -> bytes:
    seconds = int(attributes.time)
    nanoseconds = int((attributes.time - seconds) * 1e9)
    blocks = -(-attributes.size // 512)
    return abi.ATTR.pack(
        attributes.inode, attributes.size, blocks, seconds, seconds, seconds, nanoseconds, nanoseconds, nanoseconds,
        attributes.mode, attributes.links, attributes.uid, attributes.gid, 0, attributes.block_size, 0,
    )  # fmt: skip


def encode_entries(entries: Sequence[DirectoryEntry], offset: int, limit: int) -> bytes:
    """As many whole entries as fit in `limit` bytes; `offset` is the index of the first."""
    out = bytearray()
    for index, entry in enumerate(entries, offset + 1):
        record = abi.DIRENT.pack(entry.inode, index, len(entry.name), entry.mode >> 12) + entry.name
        record += bytes(-len(record) % 8)
        if len(out) + len(record) > limit:
            break
        out += record
    return bytes(out)


def _attribute_reply(ops: Operations, attributes: Attributes) -> bytes:
    return abi.ATTR_OUT_HEAD.pack(ops.caching.attributes, 0, 0) + encode_attributes(attributes)


async def _lookup(ops: Operations, node: int, body: memoryview) -> bytes:
    attributes = await ops.lookup(node, bytes(body).partition(b"\0")[0])
    caching = ops.caching
    head = abi.ENTRY_OUT_HEAD.pack(attributes.inode, 0, caching.entry, caching.attributes, 0, 0)
    return head + encode_attributes(attributes)


async def _getattr(ops: Operations, node: int, body: memoryview) -> bytes:
    return _attribute_reply(ops, await ops.getattr(node))


async def _setattr(ops: Operations, node: int, body: memoryview) -> bytes:
    fields = abi.SETATTR_IN.unpack_from(body)
    valid, size, mtime, mode, uid, gid = fields[0], fields[3], fields[6], fields[11], fields[13], fields[14]
    wanted = Attributes(inode=node, mode=mode, size=size, uid=uid, gid=gid, time=float(mtime))
    return _attribute_reply(ops, await ops.setattr(node, abi.SetAttr(valid), wanted))


async def _open(ops: Operations, node: int, body: memoryview) -> bytes:
    opened = await ops.open(node, abi.OPEN_IN.unpack_from(body)[0])
    return abi.OPEN_OUT.pack(opened.handle, opened.flags, 0)


async def _opendir(ops: Operations, node: int, body: memoryview) -> bytes:
    return abi.OPEN_OUT.pack(0, 0, 0)


async def _readdir(ops: Operations, node: int, body: memoryview) -> bytes:
    fields = abi.IO_IN.unpack_from(body)
    return encode_entries(await ops.readdir(node, fields[1]), fields[1], fields[2])


async def _flush(ops: Operations, node: int, body: memoryview) -> bytes:
    await ops.flush(node, abi.FLUSH_IN.unpack_from(body)[0])
    return b""


async def _fsync(ops: Operations, node: int, body: memoryview) -> bytes:
    handle, flags, _ = abi.FSYNC_IN.unpack_from(body)
    await ops.fsync(node, handle, bool(flags & 1))
    return b""


async def _release(ops: Operations, node: int, body: memoryview) -> bytes:
    await ops.release(node, abi.RELEASE_IN.unpack_from(body)[0])
    return b""


async def _fallocate(ops: Operations, node: int, body: memoryview) -> bytes:
    handle, offset, length, mode, _ = abi.FALLOCATE_IN.unpack_from(body)
    await ops.fallocate(node, handle, offset, length, abi.Fallocate(mode))
    return b""


async def _statfs(ops: Operations, node: int, body: memoryview) -> bytes:
    space = await ops.statfs(node)
    return abi.STATFS_OUT.pack(
        space.blocks, space.free, space.free, space.files, space.files_free, space.block_size, 255, space.block_size, 0
    )


async def _nothing(ops: Operations, node: int, body: memoryview) -> bytes:
    return b""


HANDLERS: dict[int, Handler] = {
    abi.Opcode.LOOKUP: _lookup,
    abi.Opcode.GETATTR: _getattr,
    abi.Opcode.SETATTR: _setattr,
    abi.Opcode.OPEN: _open,
    abi.Opcode.OPENDIR: _opendir,
    abi.Opcode.READDIR: _readdir,
    abi.Opcode.FLUSH: _flush,
    abi.Opcode.FSYNC: _fsync,
    abi.Opcode.FSYNCDIR: _nothing,
    abi.Opcode.RELEASE: _release,
    abi.Opcode.RELEASEDIR: _nothing,
    abi.Opcode.FALLOCATE: _fallocate,
    abi.Opcode.STATFS: _statfs,
    abi.Opcode.DESTROY: _nothing,
}

# An interrupted request of these kinds is given up. Others run to their end: a write or discard whose outcome
# is unknown could overtake a later one.
INTERRUPTIBLE = frozenset(
    {abi.Opcode.READ, abi.Opcode.LOOKUP, abi.Opcode.GETATTR, abi.Opcode.READDIR, abi.Opcode.STATFS}
)

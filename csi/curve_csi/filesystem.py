"""File systems on an attached device: probed, made only on a blank one, checked, grown."""

from __future__ import annotations

import re
import shlex

from curve_csi.commands import run
from curve_storage.errors import AlreadyExists, Corruption, FailedPrecondition, Internal

PROBE_DEADLINE = 30.0
MAKE_DEADLINE = 300.0
CHECK_DEADLINE = 600.0
# Blocks never written read as zeros, so there is nothing to discard and no table to clear beforehand.
MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-m", "0", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1"],
    "xfs": ["mkfs.xfs", "-q", "-K"],
}


async def probe(device: str) -> str:
    """The file system's name, '' on a device that blkid proves blank. Raises FailedPrecondition for anything else
    (a partition table, an unclear signature), because formatting it could destroy somebody's data."""
    result = await run(["blkid", "-p", "-o", "export", device], deadline=PROBE_DEADLINE, ok=(0, 2, 8))
    if result.code == 2 and not result.out.strip():
        return ""
    facts = dict(line.split("=", 1) for line in result.out.splitlines() if "=" in line)
    if result.code == 0 and facts.get("USAGE") == "filesystem" and "TYPE" in facts:
        return facts["TYPE"]
    found = facts.get("TYPE") or facts.get("PTTYPE") or "an unclear signature"
    raise FailedPrecondition(
        f"the device holds {found}, not a file system", where=device, todo="Use volumeMode Block, or wipe it yourself"
    )


async def prepare(device: str, kind: str, options: str, *, read_only: bool) -> None:
    """Makes `kind` on a blank device; else checks what is there. Raises AlreadyExists when another kind is there."""
    found = await probe(device)
    if not found:
        if read_only:
            raise FailedPrecondition(
                "the volume is blank and attached read-only", where=device, todo="Write to it first, from one pod"
            )
        await run([*MAKE[kind], *shlex.split(options), device], deadline=MAKE_DEADLINE)
        return
    if found != kind:
        raise AlreadyExists(
            f"the volume holds {found}, but {kind} was asked for", where=device, todo="Ask for the one that is there"
        )
    if found == "ext4" and not read_only:
        result = await run(["e2fsck", "-p", device], deadline=CHECK_DEADLINE, ok=(0, 1, 2, 4, 8))
        if result.code >= 4:
            text = (result.out + result.err).strip().splitlines()
            raise Corruption(
                f"e2fsck cannot repair the file system by itself: {' / '.join(text[-3:])}",
                where=device,
                todo="Restore the volume from a backup, or run e2fsck by hand on a copy",
            )
        await grow_unmounted(device)


async def grow(device: str, target: str, kind: str) -> None:
    """To the device's size, online; a no-op when it has that size already. Raises FailedPrecondition where the kernel
    refuses online growth of ext4: it demands CAP_SYS_RESOURCE, which not every node grants."""
    if kind == "ext4":
        result = await run(["resize2fs", device], deadline=MAKE_DEADLINE, ok=range(256))
        if result.code != 0 and "Permission denied" in result.err:
            raise FailedPrecondition(
                "this node does not grant CAP_SYS_RESOURCE, so ext4 cannot grow while it is mounted",
                where=device,
                todo="Restart the pod: the file system grows when the volume is staged again; xfs grows anywhere",
            )
        if result.code != 0:
            text = (result.err or result.out).strip().splitlines()
            raise Internal(f"resize2fs: {' / '.join(text[-3:])}", where=device, todo="See the message")
    elif kind == "xfs":
        await run(["xfs_growfs", target], deadline=MAKE_DEADLINE)


async def grow_unmounted(device: str) -> None:
    """ext4 before it is mounted: grown when the device has become larger; needs no privilege beyond the device."""
    listed = await run(["dumpe2fs", "-h", device], deadline=PROBE_DEADLINE)
    blocks = re.search(r"^Block count:\s+(\d+)$", listed.out, re.MULTILINE)
    size = re.search(r"^Block size:\s+(\d+)$", listed.out, re.MULTILINE)
    if blocks is None or size is None:
        return
    room = int((await run(["blockdev", "--getsize64", device], deadline=PROBE_DEADLINE)).out)
    if room - int(blocks.group(1)) * int(size.group(1)) < int(size.group(1)):
        return
    # resize2fs insists on a full check just before
    await run(["e2fsck", "-f", "-p", device], deadline=CHECK_DEADLINE, ok=(0, 1))
    await run(["resize2fs", device], deadline=CHECK_DEADLINE)

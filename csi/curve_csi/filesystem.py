"""File systems on an attached device: probed, made only on a blank one, checked, grown."""

from __future__ import annotations

import shlex

from curve_csi.commands import run
from curve_storage.errors import AlreadyExists, Corruption, FailedPrecondition

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


async def grow(device: str, target: str, kind: str) -> None:
    """To the device's size, online; a no-op when it has that size already."""
    if kind == "ext4":
        await run(["resize2fs", device], deadline=MAKE_DEADLINE)
    elif kind == "xfs":
        await run(["xfs_growfs", target], deadline=MAKE_DEADLINE)

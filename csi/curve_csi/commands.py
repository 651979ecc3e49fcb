"""Running the system's tools with a deadline, in the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from curve_storage.errors import DeadlineExceeded, FailedPrecondition, Internal


class Output(NamedTuple):
    code: int
    out: str
    err: str


async def run(command: Sequence[str], *, deadline: float, ok: Sequence[int] = (0,)) -> Output:
    """Raises DeadlineExceeded (the process is killed, and left behind if the kernel holds it), Internal for an exit
    code not in `ok`, FailedPrecondition when the tool is not installed."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError as error:
        raise FailedPrecondition(
            f"{command[0]} is not installed here", where=command[0], todo="Use the product's image"
        ) from error
    try:
        out, err = await asyncio.wait_for(process.communicate(), deadline)
    except (TimeoutError, asyncio.CancelledError) as error:
        process.kill()
        if isinstance(error, asyncio.CancelledError):
            raise
        raise DeadlineExceeded(
            f"did not finish within {deadline:g} s", where=" ".join(command), todo="It is tried again"
        ) from error
    result = Output(process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace"))
    if result.code not in ok:
        text = (result.err or result.out).strip().splitlines()
        raise Internal(
            f"exit code {result.code}: {' / '.join(text[-3:])}", where=" ".join(command), todo="See the message"
        )
    return result

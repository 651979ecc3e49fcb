"""A process for the election tests: campaigns, and while it leads appends guarded writes; tells what it does on stdout.

One JSON object per line: {"event": …, "at": CLOCK_MONOTONIC seconds, …}; events: elected, leading (a sample of
is_leader() being true, "at" taken before the check), written, refused, lost, resigned.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from typing import Any

import uvloop

from curve_storage.clock import SystemClock
from curve_storage.config import EtcdConfig
from curve_storage.coordination.election import Election
from curve_storage.coordination.etcd import EtcdClient
from curve_storage.coordination.guarded import GuardedStore
from curve_storage.errors import CurveError
from curve_storage.telemetry import logs


def tell(event: str, at: float | None = None, **more: Any) -> None:
    line = json.dumps({"event": event, "at": time.monotonic() if at is None else at, **more})
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def stop_before_sending(client: EtcdClient, after: int) -> None:
    """The process stops itself (SIGSTOP) between the last look at its leadership and sending write number `after`."""
    genuine = client.submit
    count = 0

    async def submit(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == after:
            tell("stopping")
            os.kill(os.getpid(), signal.SIGSTOP)
        return await genuine(*args, **kwargs)

    client.submit = submit  # type: ignore[method-assign]


async def run(arguments: argparse.Namespace) -> None:
    config = EtcdConfig(endpoints=arguments.endpoints.split(","), prefix=arguments.prefix)
    client = EtcdClient(config)
    election = Election(client, b"leader", arguments.name, arguments.name, arguments.ttl, SystemClock())
    store = GuardedStore(client, election)
    ending = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    ended = asyncio.create_task(ending.wait())
    written = 0
    while not ending.is_set():
        campaign = asyncio.create_task(election.campaign())
        await asyncio.wait([campaign, ended], return_when=asyncio.FIRST_COMPLETED)
        if not campaign.done():
            campaign.cancel()
            await asyncio.gather(campaign, return_exceptions=True)
            break
        await campaign
        term = election.term
        tell("elected", term=term)
        if arguments.stop_before:
            stop_before_sending(client, arguments.stop_before)
            arguments.stop_before = 0
        while not ending.is_set():
            at = time.monotonic()
            if not election.is_leader():
                break
            tell("leading", at, term=term)
            key = b"history/%016x/%s/%08d" % (term, arguments.name.encode(), written)
            try:
                revision = await store.commit({key: b"%d" % term, b"last": key})
                tell("written", term=term, key=key.decode(), revision=revision)
                written += 1
            except CurveError as error:
                tell("refused", term=term, key=key.decode(), code=error.code, error=str(error))
                written += 1
                if arguments.unguarded:
                    await client.put(b"unguarded", key)
            await asyncio.sleep(0.01)
        if not ending.is_set():
            tell("lost", term=term, reason=await election.wait_lost())
    await election.resign()
    tell("resigned")
    await client.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--endpoints", required=True)
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--ttl", type=float, default=3.0)
    parser.add_argument("--stop-before", type=int, default=0, help="SIGSTOP itself before sending this write")
    parser.add_argument("--unguarded", action="store_true", help="after a refused write, write the key without guard")
    logs.configure("info", "election-writer")
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()

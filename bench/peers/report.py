"""The table of a run with peers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from bench.block_jobs import Job
from bench.output import columns

SYSTEMS = ("curve", "ceph", "gluster", "gluster-strict")
MEANING = {
    "curve": "acknowledged: synced in the log of two of three replicas at least",
    "ceph": "acknowledged: in the log of all three OSDs (RBD through fio's engine, no client cache)",
    "gluster": "acknowledged: in the page caches of the bricks; only write_4k_qd1 (with fsync) is durable",
    "gluster-strict": "O_DIRECT on the bricks, nothing written behind",
}


def against(results: Mapping[str, Any], peer: str) -> float | None:
    """Ours through NBD as a multiple of the peer's."""
    ours, theirs = results.get("nbd"), results.get(peer)
    return round(ours / theirs, 2) if ours and theirs else None


def table(results: Mapping[str, Mapping[str, Any]], jobs: Sequence[Job], systems: Sequence[str]) -> Table:
    peers = [system for system in systems if system != "curve"]
    titles = ["JOB", "RAW", "RAW SYNC", "CURVE NBD", "CURVE FUSE", *(peer.upper() for peer in peers)]
    out = columns([*titles, *(f"NBD / {peer.upper()}" for peer in peers)], left=("JOB",))
    for job in jobs:
        entry = results[job.key]
        cells = [f"{entry[key]:,.0f}" if key in entry else "-" for key in ("raw", "raw_sync", "nbd", "fuse", *peers)]
        multiples = [against(entry, peer) for peer in peers]
        out.add_row(
            f"{job.key} ({job.unit})", *cells, *("-" if value is None else f"{value:.1f} ×" for value in multiples)
        )
    return out


def durability(systems: Sequence[str], versions: Mapping[str, str]) -> str:
    """What an acknowledged write means in each system: figures of different promises are not the same."""
    return "\n".join(
        f"{system}{f' ({versions[system]})' if system in versions else ''}: {MEANING[system]}" for system in systems
    )

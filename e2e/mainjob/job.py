"""The main job: a claim, a pod that writes to it, and a pod on another node that reads the same data back."""

from __future__ import annotations

import time
from dataclasses import dataclass

from e2e.box.box import Box
from e2e.box.progress import Progress
from e2e.mainjob.workload import Workload, claim, pod

CLAIM = "curve-demo"
WRITE = (
    "dd if=/dev/urandom of=/data/blob bs=1M count=32 conv=fsync 2>/dev/null; "
    "sha256sum /data/blob | cut -d' ' -f1 > /data/blob.sum; sync; cat /data/blob.sum"
)
READ = 'test "$(sha256sum /data/blob | cut -d\' \' -f1)" = "$(cat /data/blob.sum)"; cat /data/blob.sum'


@dataclass
class Result:
    """Seconds and the checksums as written and as read."""

    bound: float
    ready: float
    written: str
    read: str
    writer_node: str
    reader_node: str


def run(box: Box, progress: Progress) -> Result:
    """Raises AssertionError when the data read differs from the data written."""
    work = Workload(box)
    work.delete("pod/curve-writer", "pod/curve-reader")
    work.delete(f"pvc/{CLAIM}")
    nodes = [node.name for node in box.nodes()]
    started = time.monotonic()
    box.apply(claim(CLAIM))
    box.wait("claim bound", lambda: work.bound(CLAIM), 120, every=0.1)
    bound = time.monotonic() - started
    started = time.monotonic()
    box.apply(pod("curve-writer", CLAIM, f"{WRITE}; sleep 1", node=nodes[0]))
    box.wait("writer ready", lambda: work.ready("curve-writer") or work.phase("curve-writer") == "Succeeded", 180, 0.1)
    ready = time.monotonic() - started
    written = work.finish("curve-writer").strip()
    work.delete("pod/curve-writer")
    box.apply(pod("curve-reader", CLAIM, READ, node=nodes[1]))
    read = work.finish("curve-reader").strip()
    work.delete("pod/curve-reader")
    if written != read or len(read) != 64:
        raise AssertionError(f"written {written!r}, read {read!r}")
    progress.say(f"same data on both nodes: sha256 {read[:16]}…")
    return Result(bound, ready, written, read, nodes[0], nodes[1])

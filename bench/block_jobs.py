"""The fio jobs of the block benchmark, and what is read from fio's report."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """unit: what `value` counts, IOPS or MiB/s. synced: writes where each must be durable; a target whose write is not
    durable by itself (a raw disk) is measured with O_SYNC too."""

    key: str
    arguments: tuple[str, ...]
    unit: str = "IOPS"
    writes: bool = False


JOBS: tuple[Job, ...] = (
    # A flush after each write: durable everywhere, whatever the target means by "written".
    Job("write_4k_qd1", ("--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"), writes=True),
    Job("write_4k_qd16", ("--rw=randwrite", "--bs=4k", "--iodepth=16"), writes=True),
    Job("write_4k_qd32", ("--rw=randwrite", "--bs=4k", "--iodepth=32"), writes=True),
    Job("read_4k_qd1", ("--rw=randread", "--bs=4k", "--iodepth=1")),
    Job("read_4k_qd32", ("--rw=randread", "--bs=4k", "--iodepth=32")),
    Job("mix_4k_qd16", ("--rw=randrw", "--rwmixread=70", "--bs=4k", "--iodepth=16"), writes=True),
    Job("write_1m_qd4", ("--rw=write", "--bs=1M", "--iodepth=4", "--end_fsync=1"), unit="MiB/s", writes=True),
    Job("read_1m_qd4", ("--rw=read", "--bs=1M", "--iodepth=4"), unit="MiB/s"),
)
KEYS = tuple(job.key for job in JOBS)


@dataclass(frozen=True)
class Result:
    """value: IOPS or MiB/s, reads and writes together; operations: requests of the whole run; latencies in µs;
    load_us: CPU time of fio itself per request."""

    value: float
    operations: int
    seconds: float
    mean_us: float
    p99_us: float
    max_us: float
    load_us: float = 0.0


def target_arguments(target: str, place: str) -> list[str]:
    """target: raw | fuse | file (a file or block device), nbd (a Unix socket), rbd ("pool/image" of Ceph)."""
    if target == "nbd":
        return ["--ioengine=nbd", f"--uri=nbd+unix:///?socket={place}"]
    if target == "rbd":
        pool, _, image = place.partition("/")
        return ["--ioengine=rbd", "--clientname=admin", f"--pool={pool}", f"--rbdname={image}"]
    return ["--ioengine=libaio", "--direct=1", f"--filename={place}"]


def run(
    job: Job, target: str, place: str, *, size: int, runtime: float, report: Path, extra: tuple[str, ...] = ()
) -> Result:
    """Raises RuntimeError with fio's own words when it fails."""
    argv = [
        "fio", f"--name={job.key}", f"--size={size}", "--randrepeat=1", "--refill_buffers", "--group_reporting",
        "--numjobs=1", "--lat_percentiles=1", "--clat_percentiles=0", "--output-format=json", f"--output={report}",
        f"--runtime={runtime}", "--time_based", *target_arguments(target, place), *job.arguments, *extra,
    ]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, timeout=runtime + 180)
    text = report.read_text() if report.exists() else ""
    if done.returncode or "{" not in text:
        raise RuntimeError(f"fio {job.key} on {target} failed: {done.stderr.strip() or text[:500]}")
    return parse(json.loads(text[text.index("{") :]), job)


def fill(target: str, place: str, *, size: int, report: Path) -> None:
    """Writes the whole area once, so that every job finds data."""
    argv = [
        "fio", "--name=fill", f"--size={size}", "--rw=write", "--bs=1M", "--iodepth=4", "--refill_buffers",
        "--end_fsync=1", "--output-format=json", f"--output={report}", *target_arguments(target, place),
    ]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(f"filling {target} failed: {done.stderr.strip()}")


def parse(report: dict[str, Any], job: Job) -> Result:
    data = report["jobs"][0]
    if data.get("error"):
        raise RuntimeError(f"fio {job.key}: I/O error {data['error']}")
    sides = [data[side] for side in ("read", "write") if data[side]["total_ios"]]
    operations = sum(side["total_ios"] for side in sides)
    if not operations:
        raise RuntimeError(f"fio {job.key}: nothing was done")
    value = (
        sum(side["iops"] for side in sides) if job.unit == "IOPS" else sum(side["bw_bytes"] for side in sides) / 2**20
    )
    weighted = sum(side["lat_ns"]["mean"] * side["total_ios"] for side in sides) / operations
    return Result(
        value=value,
        operations=operations,
        seconds=max(side["runtime"] for side in sides) / 1000,
        mean_us=weighted / 1000,
        p99_us=max(_percentile(side) for side in sides) / 1000,
        max_us=max(side["lat_ns"]["max"] for side in sides) / 1000,
        load_us=(data.get("usr_cpu", 0.0) + data.get("sys_cpu", 0.0)) * data.get("job_runtime", 0) * 10 / operations,
    )


def _percentile(side: dict[str, Any]) -> float:
    found = side["lat_ns"].get("percentile") or side.get("clat_ns", {}).get("percentile") or {}
    return float(found.get("99.000000", 0.0))

"""`bench/history.jsonl`: one line per recorded run, with the machine, the commit, the figures and their ratios."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HISTORY = ROOT / "bench" / "history.jsonl"
VERSION = 1
_PRODUCT = ("storage_daemon", "operator", "csi", "pyproject.toml", "requirements.lock")


def facts() -> dict[str, Any]:
    """Of this machine."""
    cpu = cpu_model(Path("/proc/cpuinfo").read_text())
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": cpu or platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 0,
        "memory": pages,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }


def cpu_model(cpuinfo: str) -> str:
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return ""


def commit() -> dict[str, Any]:
    """changed: the product's files differ from that commit."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        return {"commit": "", "changed": True}
    status = subprocess.run([*git, "status", "--porcelain", "--", *_PRODUCT], capture_output=True, text=True)
    return {"commit": head.stdout.strip(), "changed": bool(status.stdout.strip())}


def ratios(found: Mapping[str, Any]) -> dict[str, float]:
    """Of one job: nbd/raw and fuse/raw (for writes beside the raw disk with O_SYNC, where that was measured),
    fuse/nbd."""
    disk = found.get("raw_sync") or found.get("raw")
    shares = {}
    for key, above, below in (
        ("nbd/raw", found.get("nbd"), disk),
        ("fuse/raw", found.get("fuse"), disk),
        ("fuse/nbd", found.get("fuse"), found.get("nbd")),
    ):
        if above and below:
            shares[key] = round(above / below, 3)
    return shares


def entry(
    machine: Mapping[str, Any],
    source: Mapping[str, Any],
    results: Mapping[str, Mapping[str, Any]],
    *,
    moment: float | None = None,
) -> dict[str, Any]:
    """results: as in `build/bench.json`, by job. disk: what the raw disk did in the same run."""
    values: dict[str, dict[str, float]] = {}
    disk: dict[str, float] = {}
    shares: dict[str, dict[str, float]] = {}
    for job, found in results.items():
        values[job] = {target: found[target] for target in ("nbd", "fuse") if target in found}
        disk.update({f"{job} {target}": found[target] for target in ("raw", "raw_sync") if target in found})
        shares[job] = ratios(found)
    when = time.gmtime(moment if moment is not None else time.time())
    return {
        "version": VERSION,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", when),
        **source,
        "machine": dict(machine),
        "disk": disk,
        "values": values,
        "ratios": shares,
    }


def append(file: Path, line: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as out:
        out.write(json.dumps(line, sort_keys=True) + "\n")


def read(file: Path) -> list[dict[str, Any]]:
    """All lines, the oldest first. Raises ValueError that names the line which cannot be read."""
    found: list[dict[str, Any]] = []
    if not file.exists():
        return found
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{file}:{number}: not JSON: {error}") from None
        if not isinstance(data, dict) or data.get("version") != VERSION:
            raise ValueError(f"{file}:{number}: not a line of version {VERSION}")
        found.append(data)
    return found


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.history", description="One line per recorded run: NBD, and its share of the raw disk."
    )
    parser.add_argument("--last", type=int, default=20, help="how many runs")
    return parser.parse_args(argv)


def main() -> None:
    for line in read(HISTORY)[-parse_arguments().last :]:
        jobs = ", ".join(
            f"{job} {values['nbd']:,.0f}" + (f" ({100 * share:.0f} %)" if (share := _share(line, job)) else "")
            for job, values in line["values"].items()
            if "nbd" in values
        )
        changed = "+" if line["changed"] else ""
        print(f"{line['time']}  {line['commit'][:9]}{changed}  {line['machine']['cores']} cores  {jobs}")


def _share(line: Mapping[str, Any], job: str) -> float:
    return float(line["ratios"].get(job, {}).get("nbd/raw", 0.0))


if __name__ == "__main__":
    main()

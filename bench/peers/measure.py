"""One peer, inside its sandbox: up, fill, the jobs, down. Started by `python -m bench.peers`, not by hand."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench import block_jobs
from bench.output import some_of
from bench.peers import sandbox
from bench.peers.ceph import Ceph
from bench.peers.gluster import Gluster
from bench.rig import progress


def measure(options: argparse.Namespace) -> dict[str, Any]:
    say = progress(f"{options.system}: ")
    directory: Path = options.directory
    directory.mkdir(parents=True, exist_ok=True)
    peer: Ceph | Gluster
    if options.system == "ceph":
        peer, target = Ceph(directory), "rbd"
    else:
        peer, target = Gluster(directory, strict=options.system == "gluster-strict"), "file"
    results: dict[str, Any] = {}
    try:
        say("starting")
        place = peer.up(options.size)
        say(f"filling {place}")
        block_jobs.fill(target, place, size=options.size, report=directory / "fill.json")
        for job in block_jobs.JOBS:
            if options.jobs and job.key not in options.jobs:
                continue
            found = block_jobs.run(
                job, target, place, size=options.size, runtime=options.runtime, report=directory / "fio.json"
            )
            results[job.key] = {"value": round(found.value, 1), "p99_us": round(found.p99_us, 1)}
            say(f"{job.key}: {found.value:,.0f} {job.unit}")
        return {"version": peer.version(), "jobs": results}
    finally:
        peer.down()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.peers.measure", description=__doc__)
    parser.add_argument("system", choices=["ceph", "gluster", "gluster-strict"])
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--runtime", type=float, required=True)
    parser.add_argument("--jobs", type=some_of(block_jobs.KEYS), default="")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    sandbox.inside()
    try:
        result = measure(options)
    except RuntimeError as error:
        sys.exit(f"{options.system}: {error}")
    options.output.write_text(json.dumps(result))


if __name__ == "__main__":
    main()

"""This system and others with three replicas, same jobs, same disk, one run: `python -m bench.peers`. Needs root.

Installs the Debian packages of Ceph and GlusterFS where they are missing (no daemon of theirs is started by that),
sets each up in a sandbox (`bench.peers.sandbox`), runs the jobs of `bench.block_jobs`, and takes it down again. Prints
one table with ratios and writes `build/peers.json`. A run that was killed leaves no process; its data is removed by the
next run.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from bench import block, output
from bench.block_jobs import JOBS, KEYS
from bench.history import ROOT
from bench.peers import ceph, gluster, sandbox
from bench.peers.report import SYSTEMS, durability, table
from bench.rig import Say, mark_of, progress, require, workspace
from curve_storage.units import MiB, parse_size
from e2e.box import packages
from e2e.box.progress import Progress

PACKAGES = {"ceph": ceph.PACKAGES, "gluster": gluster.PACKAGES, "gluster-strict": gluster.PACKAGES}
PROGRAMS = {"ceph": ceph.PROGRAMS, "gluster": gluster.PROGRAMS, "gluster-strict": gluster.PROGRAMS}
_POLICY = Path("/usr/sbin/policy-rc.d")
_POLICY_TEXT = "#!/bin/sh\n# made by bench.peers: no daemon is to be started by installing it\nexit 101\n"
_SETUP = 600.0  # seconds a peer may take beside its jobs


def install(systems: list[str]) -> None:
    wanted: dict[str, str] = {}
    for system in systems:
        wanted.update(PACKAGES.get(system, {}))
    if not packages.missing(wanted):
        return
    if _POLICY.exists() and _POLICY.read_text() == _POLICY_TEXT:
        _POLICY.unlink()  # a killed run of ours
    made = not _POLICY.exists()
    if made:
        _POLICY.write_text(_POLICY_TEXT)
        _POLICY.chmod(0o755)
    try:
        packages.ensure(Progress(), wanted)
    finally:
        if made:
            _POLICY.unlink(missing_ok=True)


def run_peer(system: str, options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    report = directory / f"{system}.json"
    count = len(options.jobs) or len(JOBS)
    sandbox.run_inside(
        [
            "-m", "bench.peers.measure", system, "--directory", str(directory / system), "--size", str(options.size),
            "--runtime", str(options.runtime), "--jobs", ",".join(options.jobs), "--output", str(report),
        ],
        mark=mark_of(directory),
        timeout=_SETUP + count * (options.runtime + 60),
    )  # fmt: skip
    return dict(json.loads(report.read_text()))


def run_curve(options: argparse.Namespace, directory: Path, say: Say) -> dict[str, Any]:
    """Also the raw disk."""
    given = ["--runtime", str(options.runtime), "--size", str(options.size), "--jobs", ",".join(options.jobs)]
    bench = block.Bench(block.parse_arguments(given), say)
    bench.all(directory)
    return bench.results


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--systems", type=output.some_of(SYSTEMS), default=",".join(SYSTEMS), help=f"some of {', '.join(SYSTEMS)}"
    )
    parser.add_argument("--runtime", type=float, default=5.0, help="seconds per job and system")
    parser.add_argument("--size", type=parse_size, default=512 * MiB, help="area the jobs work on")
    parser.add_argument("--jobs", type=output.some_of(KEYS), default="", help="some of the jobs, comma-separated")
    parser.add_argument("--dir", type=Path, default=None, help="on the disk to measure")
    parser.add_argument("--output", type=Path, default=Path("build/peers.json"))
    return parser.parse_args(argv)


def main() -> None:
    options = parse_arguments()
    require()
    install(options.systems)
    require("fio", "unshare", *{program for system in options.systems for program in PROGRAMS.get(system, ())})
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.chdir(ROOT)  # `-m bench…` in the sandbox finds its modules here
    say = progress()
    results: dict[str, dict[str, Any]] = {}
    versions: dict[str, str] = {}
    failed = []
    with workspace(options.dir, say) as directory:
        for system in options.systems:
            try:
                if system == "curve":
                    for job, found in run_curve(options, directory, say).items():
                        results.setdefault(job, {}).update(found)
                    continue
                done = run_peer(system, options, directory)
            except RuntimeError as error:
                print(f"bench: {system}: {error}", file=sys.stderr)
                failed.append(system)
                continue
            versions[system] = done["version"]
            for job, found in done["jobs"].items():
                results.setdefault(job, {})[system] = found["value"]
    output.write(options.output, {"versions": versions, "results": results})
    out = output.console(200)
    out.print(table(results, [job for job in JOBS if job.key in results], options.systems))
    out.print(durability(options.systems, versions))
    out.print(f"written to {options.output}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

"""`python -m e2e.mainjob up|down|job`: what `make up` and `make down` run."""

from __future__ import annotations

import argparse
import sys

from curve_storage.errors import CurveError
from e2e.box.box import Box
from e2e.box.progress import Progress
from e2e.mainjob import job
from e2e.mainjob.install import NAMESPACE, ROOM, Installation


def up(progress: Progress) -> None:
    box = Box(progress=progress)
    box.up(room=ROOM)
    installation = Installation(box, progress)
    installation.install()
    result = job.run(box, progress)
    processes = box.processes()
    status = installation.cluster().get("status", {})
    print(
        f"""
Curve runs on {len(box.nodes())} Kubernetes nodes ({len(processes)} processes of the box), in namespace {NAMESPACE}.
  cluster     {status.get("health", "?")}: {status.get("message", "")}
  claim       Bound after {result.bound:.1f} s, pod with a new volume Ready after {result.ready:.1f} s
  data        written on {result.writer_node}, read back on {result.reader_node}, sha256 {result.read[:16]}…
  total       {progress.elapsed:.0f} s

Next:
  export KUBECONFIG={box.kubeconfig}
  {box.command("kubectl", "get", "curvecluster,pods", "-n", NAMESPACE)[0]} get curvecluster,pods -n {NAMESPACE}
  python -m e2e.box node partition 1      # then watch what happens; heal 1
  make down
"""
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m e2e.mainjob", description=__doc__)
    parser.add_argument("action", choices=("up", "down", "job", "install", "uninstall"))
    action = parser.parse_args().action
    progress = Progress()
    box = Box(progress=progress)
    try:
        if action == "up":
            up(progress)
        elif action == "down":
            box.down()
        elif action == "install":
            Installation(box, progress).install()
        elif action == "uninstall":
            Installation(box, progress).uninstall()
        else:
            job.run(box, progress)
    except (CurveError, AssertionError) as error:
        print(f"{action}: {error}", file=sys.stderr)
        raise SystemExit(1) from error

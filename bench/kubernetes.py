"""Claims and pods on a running box (`make up`): `python -m bench.kubernetes`.

Three figures. A claim from its creation until it is Bound; a pod with a new volume from its creation (its claim is
created with it) until it is Ready; `--burst` claims created at once until the last is Bound. Moments are those at which
a watch of the API server tells them, so nothing is added by asking. Everything made is deleted again, also what an
earlier run that was killed has left: it carries a label.
"""

from __future__ import annotations

import argparse
import codecs
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from bench import output
from bench.goals import Goal, word_at_most
from bench.probe import middle_and_worst
from bench.rig import Say, progress
from curve_storage.errors import CurveError
from e2e.box.box import Box
from e2e.mainjob.workload import DEFAULT, claim, pod

LABEL = "curve-bench"
GOALS = {"bound": Goal(1.0, 1.0), "ready": Goal(5.0, 5.0), "burst": Goal(30.0, 30.0)}
PATIENCE = 180.0


@dataclass
class Figures:
    """Seconds. bound, ready: one per round; burst: of each round, until the last claim; sizes of the burst."""

    bound: list[float] = field(default_factory=list)
    ready: list[float] = field(default_factory=list)
    burst: list[float] = field(default_factory=list)
    claims: int = 0


def is_bound(item: Mapping[str, Any]) -> bool:
    return bool(item.get("status", {}).get("phase") == "Bound")


def is_ready(item: Mapping[str, Any]) -> bool:
    conditions = item.get("status", {}).get("conditions") or []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


class Watch:
    """The first moment (monotonic clock) at which each named object fulfilled the condition."""

    def __init__(self, condition: Callable[[Mapping[str, Any]], bool]) -> None:
        self._condition = condition
        self._changed = threading.Condition()
        self.moments: dict[str, float] = {}
        self.ended = ""

    def see(self, item: Mapping[str, Any], moment: float) -> None:
        if self._condition(item):
            with self._changed:
                self.moments.setdefault(str(item["metadata"]["name"]), moment)
                self._changed.notify_all()

    def end(self, why: str) -> None:
        with self._changed:
            self.ended = why or "the watch has ended"
            self._changed.notify_all()

    def last(self, names: list[str], patience: float) -> float:
        """The moment of the last of `names`. Raises RuntimeError when one has not come after `patience` seconds."""
        deadline = time.monotonic() + patience
        with self._changed:
            while True:
                missing = [name for name in names if name not in self.moments]
                if not missing:
                    return max(self.moments[name] for name in names)
                left = deadline - time.monotonic()
                if left <= 0 or self.ended:
                    why = self.ended or f"not within {patience:g} s"
                    raise RuntimeError(f"{len(missing)} of {len(names)}, such as {missing[0]}: {why}")
                self._changed.wait(left)


def documents(read: Callable[[int], str]) -> Iterator[dict[str, Any]]:
    """JSON documents of a stream without separators, each as soon as it is whole. read: "" at the end."""
    decoder = json.JSONDecoder()
    buffer = ""
    while True:
        buffer = buffer.lstrip()
        try:
            found, end = decoder.raw_decode(buffer)
        except ValueError:
            more = read(65536)
            if not more:
                return
            buffer += more
            continue
        yield found
        buffer = buffer[end:]


@contextmanager
def watching(box: Box, kind: str, condition: Callable[[Mapping[str, Any]], bool]) -> Iterator[Watch]:
    watch = Watch(condition)
    argv = box.command("kubectl", "get", kind, "-n", DEFAULT, "-l", LABEL, "--watch", "-o", "json")
    process = subprocess.Popen(
        argv,
        env={**os.environ, **box.environment()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=False,
        bufsize=0,
    )
    assert process.stdout is not None
    out = process.stdout
    decoder = codecs.getincrementaldecoder("utf-8")()

    def follow() -> None:
        for item in documents(lambda most: decoder.decode(out.read(most))):
            for each in item.get("items", [item]):
                watch.see(each, time.monotonic())
        watch.end((process.stderr.read() if process.stderr else b"").decode().strip())

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        process.terminate()
        process.wait(20)
        thread.join(20)


def labelled(document: dict[str, Any]) -> dict[str, Any]:
    document["metadata"]["labels"] = {LABEL: ""}
    return document


class Measurement:
    def __init__(self, box: Box, options: argparse.Namespace, say: Say) -> None:
        self._box, self._options, self._say = box, options, say
        self.figures = Figures(claims=options.burst)
        self._run = secrets.token_hex(3)

    def all(self) -> None:
        self.clean()
        try:
            for number in range(self._options.rounds):
                self._claim_and_pod(number)
            for number in range(self._options.bursts):
                self._burst(number)
        finally:
            self.clean()

    def clean(self) -> None:
        kubectl = self._box.kubectl
        for kind in ("pod", "pvc"):
            kubectl("delete", kind, "-n", DEFAULT, "-l", LABEL, "--ignore-not-found", "--timeout=170s", timeout=180)
        self._box.wait("benchmark volumes gone", lambda: not self._volumes(), PATIENCE)

    def _volumes(self) -> list[str]:
        found = self._box.get("pv")["items"]
        refs = [item["spec"].get("claimRef", {}).get("name", "") for item in found]
        return [name for name in refs if name.startswith(f"{LABEL}-")]

    def _claim_and_pod(self, number: int) -> None:
        alone, used = (f"{LABEL}-{self._run}-{what}-{number}" for what in ("claim", "used"))
        with watching(self._box, "pvc", is_bound) as claims, watching(self._box, "pod", is_ready) as pods:
            started = time.monotonic()
            self._box.apply(labelled(claim(alone)))
            self.figures.bound.append(claims.last([alone], PATIENCE) - started)
            started = time.monotonic()
            self._box.apply(labelled(claim(used)), labelled(pod(used, used, "sleep 3600")))
            self.figures.ready.append(pods.last([used], PATIENCE) - started)
        self._say(f"round {number + 1}: bound {self.figures.bound[-1]:.2f} s, ready {self.figures.ready[-1]:.2f} s")
        self.clean()

    def _burst(self, number: int) -> None:
        names = [f"{LABEL}-{self._run}-burst-{number}-{n}" for n in range(self._options.burst)]
        with watching(self._box, "pvc", is_bound) as claims:
            started = time.monotonic()
            self._box.apply(*[labelled(claim(name)) for name in names])
            self.figures.burst.append(claims.last(names, PATIENCE) - started)
        self._say(f"burst {number + 1}: {len(names)} claims bound after {self.figures.burst[-1]:.2f} s")
        self.clean()


def table(figures: Figures) -> Table:
    out = output.columns(("WHAT", "ROUNDS", "MEDIAN", "WORST", "AT MOST", "VERDICT"), left=("WHAT", "VERDICT"))
    for what, key, values in (
        ("PVC → Bound", "bound", figures.bound),
        ("pod with a new volume → Ready", "ready", figures.ready),
        (f"burst of {figures.claims} PVCs, all Bound", "burst", figures.burst),
    ):
        if values:
            middle, worst = middle_and_worst(values)
            verdict = word_at_most(GOALS[key], worst)
            out.add_row(
                what, str(len(values)), f"{middle:.2f} s", f"{worst:.2f} s", f"{GOALS[key].least:g} s",
                "met" if verdict == "aim" else verdict,
            )  # fmt: skip
    return out


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.kubernetes", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="of a claim and of a pod")
    parser.add_argument("--bursts", type=int, default=1)
    parser.add_argument("--burst", type=int, default=100, help="claims of a burst")
    parser.add_argument("--output", type=Path, default=Path("build/kubernetes.json"))
    options = parser.parse_args(argv)
    if options.burst < 1 or options.rounds < 0 or options.bursts < 0:
        parser.error("numbers must not be negative, and a burst has at least one claim")
    return options


def main() -> None:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    box = Box()
    if not box.running():
        sys.exit("bench: there is no box; start one with `make up`")
    measurement = Measurement(box, options, progress())
    try:
        measurement.all()
    except (CurveError, RuntimeError) as error:
        sys.exit(f"bench: {error}")
    output.write(options.output, asdict(measurement.figures))
    out = output.console(120)
    out.print(table(measurement.figures))
    out.print(f"written to {options.output}")


if __name__ == "__main__":
    main()

"""Many seeds of the simulations, in parallel: python tests/sim/run_seeds.py --seeds 100000

With --seeds it goes through the seeds from --base and notes in build/sim-seeds.json how far it has come: the same
command goes on there after an interruption. With --seconds it draws new seeds until the time is over. A failed seed is
printed with its last 100 events and the command that repeats it. Exit status 1 when a seed has failed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from seed_kinds import FAILED, KINDS

ROOT = Path(__file__).resolve().parents[2]
STATE = ROOT / "build" / "sim-seeds.json"
EVERY = 10.0
"""Seconds between lines of progress."""

Failure = tuple[str, str]


def run(kind: str, seed: int) -> Failure | None:
    """What was wrong and the trace of the last 100 events, or None."""
    try:
        KINDS[kind](seed)
    except Exception as error:
        source: BaseException | None = error
        while source is not None and not getattr(source, "trace", None):
            source = source.__cause__
        lines = getattr(source, "trace", []) or traceback.format_exc().splitlines()
        trace = [str(line) for line in lines[-100:]]
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", "\n".join(trace)
    return None


class State:
    """How far a run of --seeds has come: per kind and base, the next seed, and those that failed."""

    def __init__(self, path: Path, kind: str, base: int) -> None:
        self._path = path
        self._key = f"{kind} {base}"
        mine = self._load().get(self._key, {})
        self.next = int(mine.get("next", base))
        self.failed: dict[str, str] = dict(mine.get("failed", {}))
        self._done: set[int] = set()

    def _load(self) -> dict[str, dict[str, object]]:
        try:
            found = json.loads(self._path.read_text())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise SystemExit(f"{self._path} is not readable ({error}): remove it to begin anew") from error
        return dict(found)

    def done(self, seed: int) -> None:
        """Seeds end in any order: `next` stops before the first that has not."""
        self._done.add(seed)
        while self.next in self._done:
            self._done.discard(self.next)
            self.next += 1

    def save(self) -> None:
        everything = self._load()  # now: the runs of other kinds write it too
        everything[self._key] = {"next": self.next, "failed": self.failed}
        self._path.parent.mkdir(exist_ok=True)
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps(everything, indent=1))
        fresh.replace(self._path)


def repeat(kind: str, seed: int) -> str:
    return f"python tests/sim/run_seeds.py --kind {kind} --seed {seed}"


def report(kind: str, seed: int, failure: Failure) -> None:
    print(f"\nFAILED {kind} seed {seed}: {failure[0]}\n{failure[1]}")
    print(f"repeat: {repeat(kind, seed)}")
    print(f"keep:   echo '{kind} {seed} <what was wrong>' >> {FAILED.relative_to(ROOT)}", flush=True)


class Runner:
    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._started = self._told = time.monotonic()
        self.finished = 0
        self.failures = 0

    def run(self, work: Iterator[tuple[str, int]], states: dict[str, State], what: str) -> None:
        waiting: dict[Future[Failure | None], tuple[str, int]] = {}
        with ProcessPoolExecutor(self._workers) as pool:
            try:
                more = True
                while more or waiting:
                    while more and len(waiting) < 2 * self._workers:
                        item = next(work, None)
                        if item is None:
                            more = False
                        else:
                            waiting[pool.submit(run, *item)] = item
                    done, _ = wait(waiting, timeout=1.0, return_when=FIRST_COMPLETED)
                    for future in done:
                        self._ended(*waiting.pop(future), future.result(), states)
                    self._progress(states, what)
            finally:
                for future in waiting:
                    future.cancel()
                for state in states.values():
                    state.save()
        self._progress(states, what, now=True)

    def _ended(self, kind: str, seed: int, failure: Failure | None, states: dict[str, State]) -> None:
        self.finished += 1
        state = states.get(kind)
        if failure is not None:
            self.failures += 1
            report(kind, seed, failure)
            if state is not None:
                state.failed[str(seed)] = failure[0]
        if state is not None:
            state.done(seed)

    def _progress(self, states: dict[str, State], what: str, *, now: bool = False) -> None:
        time_ = time.monotonic()
        if not now and time_ - self._told < EVERY:
            return
        self._told = time_
        elapsed = time_ - self._started
        for state in states.values():
            state.save()
        rate = self.finished / max(elapsed, 0.1)
        print(f"{self.finished} {what}, {self.failures} failed, {elapsed:.0f} s, {rate:.1f}/s", flush=True)


def fresh(kinds: list[str], base: int, until: float) -> Iterator[tuple[str, int]]:
    """New seeds, the kinds in turn, until the monotonic time `until`."""
    rng = random.Random(base)
    while time.monotonic() < until:
        for kind in kinds:
            yield kind, rng.randrange(1 << 31)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=sorted(KINDS), action="append", help="all when not given")
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--seeds", type=int, help="how many, of each kind")
    mode.add_argument("--seconds", type=float, help="new seeds for so long")
    mode.add_argument("--seed", type=int, help="this one only")
    parser.add_argument("--base", type=int, help="the first seed (1); with --seconds: what the new ones are drawn from")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--state", type=Path, default=STATE)
    arguments = parser.parse_args()
    kinds = arguments.kind or list(KINDS)
    for name in ("seeds", "seconds", "workers"):
        value = getattr(arguments, name)
        if value is not None and value <= 0:
            parser.error(f"--{name}: {value} is not above 0")
    runner = Runner(arguments.workers)
    if arguments.seed is not None:
        if len(kinds) != 1:
            parser.error("--seed needs one --kind")
        failure = run(kinds[0], arguments.seed)
        if failure is not None:
            report(kinds[0], arguments.seed, failure)
        print(f"{kinds[0]} seed {arguments.seed}: {'failed' if failure else 'ok'}")
        raise SystemExit(1 if failure else 0)
    if arguments.seconds is not None:
        base = arguments.base if arguments.base is not None else random.SystemRandom().randrange(1 << 31)
        print(f"new seeds of {', '.join(kinds)} for {arguments.seconds:.0f} s, base {base}", flush=True)
        runner.run(fresh(kinds, base, time.monotonic() + arguments.seconds), {}, "new seeds")
        raise SystemExit(1 if runner.failures else 0)
    base = arguments.base if arguments.base is not None else 1
    states = {kind: State(arguments.state, kind, base) for kind in kinds}
    earlier = 0
    for kind, state in states.items():
        if state.next > base:
            print(f"{kind}: goes on at seed {state.next}, {len(state.failed)} failed before ({arguments.state})")
        earlier += sum(int(seed) < base + arguments.seeds for seed in state.failed)
    for kind, state in states.items():
        work = ((kind, seed) for seed in range(state.next, base + arguments.seeds))
        runner.run(work, {kind: state}, f"seeds (now {kind})")
    raise SystemExit(1 if runner.failures or earlier else 0)


if __name__ == "__main__":
    main()

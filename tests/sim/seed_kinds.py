"""What can be run from a seed: name → a function that raises when something is wrong, with `trace` where it has one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

FAILED = Path(__file__).parent / "failed_seeds.txt"


def _consensus(seed: int) -> None:
    import consensus_cluster

    consensus_cluster.run(seed)


def _cluster(seed: int) -> None:
    import cluster_simulation

    cluster_simulation.run(seed, 300)


def _log(seed: int) -> None:
    import test_log_crash_sweep

    test_log_crash_sweep.sweep(seed, 25)


def _copyset(seed: int) -> None:
    import copyset_crash_sweep

    copyset_crash_sweep.sweep(seed, 40, 7)


KINDS: dict[str, Callable[[int], None]] = {
    "consensus": _consensus,
    "cluster": _cluster,
    "log": _log,
    "copyset": _copyset,
}


def stored() -> list[tuple[str, int, str]]:
    """(kind, seed, reason) of every seed that ever failed. Raises ValueError naming the line."""
    found = []
    for number, line in enumerate(FAILED.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        kind, _, rest = line.partition(" ")
        seed, _, reason = rest.partition(" ")
        if kind not in KINDS or not seed.isdigit() or not reason:
            raise ValueError(f"{FAILED.name}:{number}: {line!r} is not: kind seed reason; kinds: {', '.join(KINDS)}")
        found.append((kind, int(seed), reason))
    return found

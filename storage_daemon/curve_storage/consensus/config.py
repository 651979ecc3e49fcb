"""Tunables of the raft core, the shared log and the host. Times in seconds, sizes in bytes."""

from __future__ import annotations

from dataclasses import dataclass

from curve_storage.errors import ConfigError
from curve_storage.units import GiB, KiB, MiB


@dataclass(frozen=True, slots=True)
class RaftConfig:
    """One group member's timing and flow control.

    A voter refuses votes for `lease` after it has heard the leader; a leader serves lease reads for
    `lease * (1 - drift)` after a quorum has confirmed a message, counted from the moment it was sent. `drift` covers
    clocks that run at different speeds. Elections start between `election_timeout` and
    `election_timeout * (1 + election_spread)` without a leader.
    """

    heartbeat: float = 0.12
    election_timeout: float = 1.0
    election_spread: float = 0.3
    lease: float = 0.6
    drift: float = 0.1
    pause: float = 0.5
    """A longer gap between two ticks means that the process stood still."""
    hibernate_after: float = 10.0
    """Idle time before a group falls asleep; 0 = never."""
    max_append_bytes: int = MiB
    max_append_entries: int = 1024
    max_inflight_bytes: int = 8 * MiB
    max_inflight_messages: int = 256
    max_apply_bytes: int = 4 * MiB
    window_bytes: int = MiB
    """Entries kept in memory for followers that lag, per group; older ones are read from the log."""
    learner_lag: int = 256
    """A learner that lacks at most this many entries may become a voter."""
    change_timeout: float = 300.0
    """A membership change whose learners make no progress for this long fails."""

    def __post_init__(self) -> None:
        if not 0 < self.heartbeat * 2 < self.lease <= self.election_timeout:
            raise ConfigError(
                "the raft timing needs 2 x heartbeat < lease <= election timeout",
                where="consensus",
                todo="Raise the election timeout or lower the heartbeat interval",
            )


def timing(election_timeout: float) -> RaftConfig:
    """The defaults scaled to another election timeout."""
    scale = election_timeout / 1.0
    return RaftConfig(
        heartbeat=0.12 * scale,
        election_timeout=election_timeout,
        lease=0.6 * scale,
        pause=0.5 * scale,
    )


@dataclass(frozen=True, slots=True)
class LogConfig:
    """`max_size` bounds all segments together; `ready_segments` are kept pre-written beyond the live ones."""

    segment_size: int = 64 * MiB
    max_size: int = GiB
    ready_segments: int = 1

    def __post_init__(self) -> None:
        if self.segment_size % (4 * KiB) or self.segment_size < 32 * KiB:
            raise ConfigError("segment_size must be a multiple of 4 KiB, at least 32 KiB", where="log")
        if self.max_size < 3 * self.segment_size:
            raise ConfigError("max_size must hold at least three segments", where="log", todo="Raise log.max_size")


@dataclass(frozen=True, slots=True)
class ConsensusConfig:
    """Everything about one process' consensus host."""

    raft: RaftConfig = RaftConfig()
    log: LogConfig = LogConfig()
    tick: float = 0.04
    max_queued_requests: int = 8192
    """Proposals of all groups without a result; beyond it they are answered `overloaded`."""
    max_queued_bytes: int = 128 * MiB
    max_frame_bytes: int = 8 * MiB
    checkpoint_bytes: int = 64 * MiB
    """A group is checkpointed after this many log bytes …"""
    checkpoint_interval: float = 60.0
    """… or after this time, when it has applied anything since."""
    snapshot_piece: int = MiB
    snapshot_bytes_per_second: int = 200 * MiB
    snapshot_concurrency: int = 2
    snapshot_timeout: float = 20.0
    """For one piece, retries included; a transfer without progress for this long starts anew."""

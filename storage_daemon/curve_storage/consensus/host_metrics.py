"""Metrics of the consensus host, in the process' registry."""

from __future__ import annotations

from curve_storage.telemetry import metrics


class HostMetrics:
    """Shared by all hosts of a process (there is one, but for tests)."""

    def __init__(self) -> None:
        self.sync_seconds = metrics.histogram("curve_raft_log_sync_seconds", "Write and sync of one log batch")
        self.log_bytes = metrics.counter("curve_raft_log_written_bytes", "Bytes written to the log")
        self.segments = metrics.gauge("curve_raft_log_segments", "Live log segments")
        self.ready_segments = metrics.gauge("curve_raft_log_ready_segments", "Pre-written segments in the pool")
        self.stalled = metrics.gauge("curve_raft_log_stalled", "1 while writes wait for room in the log")
        self.blocking_group = metrics.gauge(
            "curve_raft_log_blocking_group", "Group whose checkpoint keeps the oldest segment while writes wait, else 0"
        )
        self.groups = metrics.gauge("curve_raft_groups", "Groups on this node")
        self.leaders = metrics.gauge("curve_raft_leaders", "Groups that this node leads")
        self.corrupt = metrics.gauge("curve_raft_corrupt_groups", "Groups whose replica here is damaged")
        self.hibernating = metrics.gauge("curve_raft_hibernating_groups", "Groups asleep on this node")
        self.proposals = metrics.counter("curve_raft_proposals", "Commands proposed on this node")
        self.overloaded = metrics.counter("curve_raft_overloaded", "Commands refused because too much was queued")
        self.applied = metrics.counter("curve_raft_applied_entries", "Entries applied")
        self.inflight = metrics.gauge("curve_raft_inflight_bytes", "Bytes of commands without a result yet")
        self.leaderships = metrics.counter("curve_raft_leaderships", "Leaderships won by groups on this node")
        self.frames = metrics.counter("curve_raft_frames", "Frames sent to peers", ["result"])
        self.checkpoints = metrics.histogram("curve_raft_checkpoint_seconds", "Checkpoints of state machines")
        self.snapshot_bytes = metrics.counter("curve_raft_snapshot_bytes", "Snapshot bytes", ["direction"])
        self.snapshots = metrics.counter("curve_raft_snapshots", "Snapshot transfers", ["direction", "result"])
        # Counted here in the data path, and given to the registry a few times a second: that is ten times cheaper.
        self.counted_proposals = 0
        self.counted_sent = 0
        self.counted_unsent = 0
        self.counted_log_bytes = 0

    def publish(self) -> None:
        self.proposals.inc(self.counted_proposals)
        self.frames.labels("sent").inc(self.counted_sent)
        self.frames.labels("unsent").inc(self.counted_unsent)
        self.log_bytes.inc(self.counted_log_bytes)
        self.counted_proposals = self.counted_sent = self.counted_unsent = self.counted_log_bytes = 0

"""A shared log on a real directory, moved by hand: what the host and its threads do, in one call."""

from __future__ import annotations

from pathlib import Path

from curve_storage.consensus.api import Membership
from curve_storage.consensus.config import LogConfig
from curve_storage.consensus.disk import RealDisk
from curve_storage.consensus.log import SharedLog

SEGMENT = 32 * 1024
SMALL = LogConfig(segment_size=SEGMENT, max_size=4 * SEGMENT)
MEMBERS = Membership(voters=(1, 2, 3))


def opened(path: Path, config: LogConfig = SMALL) -> SharedLog:
    log = SharedLog(RealDisk(path), config)
    log.open()
    return log


def commit(log: SharedLog) -> None:
    """Makes durable what was put into the log since the last time: something, unless the log is full."""
    while log.pool.wants_more():
        log.pool.prepare()
    log.resume()
    batch = log.take_batch()
    if batch is None:
        assert log.stalled
        return
    batch.write()
    log.finish(batch)

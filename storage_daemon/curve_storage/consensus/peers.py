"""What this process knows of the processes it shares groups with.

Every frame counts as a heartbeat of the whole process; when there is nothing to say for a heartbeat interval, an empty
frame says that. Sleeping groups rely on this alone: when their leader's process falls silent they are woken with
the moment it was last heard, so that sleeping delays no election.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from curve_storage.consensus.config import RaftConfig
from curve_storage.consensus.engine import Engine

_SILENT_AFTER = 3


@dataclass(slots=True)
class Peer:
    node: int
    heard: float
    sent: float = 0.0
    incarnation: int = 0
    silent: bool = False
    connected: bool = False
    lost_ticks: int = 0


class Peers:
    def __init__(self, config: RaftConfig, engine: Engine) -> None:
        self._config = config
        self._engine = engine
        self.known: dict[int, Peer] = {}

    def retain(self, nodes: Iterable[int], now: float) -> list[Peer]:
        """Keeps exactly these peers; returns the ones that went."""
        wanted = set(nodes)
        gone = [peer for node, peer in self.known.items() if node not in wanted]
        for peer in gone:
            peer.silent = False
        self.known = {
            node: self.known.get(node) or Peer(node, now) for node in sorted(wanted) if node != self._engine.node
        }
        return gone

    def received(self, node: int, incarnation: int, now: float) -> bool:
        """A frame of this process arrived; False when it comes from a process that has been replaced since."""
        peer = self.known.get(node)
        if peer is None:
            peer = self.known[node] = Peer(node, now)
        if incarnation < peer.incarnation:
            return False
        if incarnation > peer.incarnation:
            if peer.incarnation:
                self._engine.peer_restarted(node, now)
            peer.incarnation = incarnation
        peer.heard = now
        peer.silent = False
        return True

    def tick(self, now: float) -> None:
        limit = _SILENT_AFTER * self._config.heartbeat
        for peer in self.known.values():
            if now - peer.heard > limit:
                peer.silent = True
                self._engine.peer_silent(peer.node, peer.heard, now)

    def link(self, peer: Peer, connected: bool, now: float) -> None:
        """A connection that worked and is gone hints that the process is; it only makes elections start earlier."""
        if connected:
            peer.connected = True
            peer.lost_ticks = 0
        elif peer.connected:
            peer.lost_ticks += 1
            if peer.lost_ticks >= 2:
                peer.connected = False
                self._engine.peer_suspected(peer.node, peer.heard, now)

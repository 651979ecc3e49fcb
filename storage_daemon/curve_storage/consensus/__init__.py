"""Raft core without I/O (raft*), shared write-ahead log (log*), multi-raft host (host*)."""

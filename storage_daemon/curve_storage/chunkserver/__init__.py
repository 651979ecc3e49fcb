"""The chunkserver: one process per disk, block data of many copysets on one raft host.

Bottom to top: `atomic_file`, `identity`, `pool`, `chunk_file`, `chunk_directory` (bytes on the disk); `writers`,
`commands`, `copyset_meta`, `copyset`, `snapshot` (one replicated state machine); `repair`, `scrub`, `copysets`
(all of them); `service` (the data port); `registration`, `heartbeat` (the MDS); `daemon`, `main` (the process).
"""

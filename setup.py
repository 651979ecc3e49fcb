"""The hot modules of the data path as C extensions, made by mypyc from the same source: only with CURVE_COMPILE=1.

`make compiled` builds them beside the checkout's own modules, which stay pure Python: everything runs without them.
What is compiled keeps to what mypyc can do: no generators that are async, no weak references, no attributes added from
outside (tests that plant mistakes patch the pure form), and types that are true at run time.
"""

from __future__ import annotations

import os
import sys

from setuptools import setup

HOT = {
    "attach": "device nbd_protocol nbd_server volume_file",
    "chunkserver": "chunk_directory chunk_file commands copyset reading service statistics writers",
    "client": "datapath health ordering segments sequence throttle volume",
    "consensus": "api codec disk engine entry host host_state log log_group log_record log_segment log_sync peers raft"
    " raft_election raft_log raft_membership raft_messages raft_progress raft_quorum raft_reads raft_replication"
    " raft_state",
    "fuse": "abi dispatch session",
    "wire": "channel frame messages receiver server",
}

arguments = {}
# Only where something is built: the same file is asked for the metadata, too.
if os.environ.get("CURVE_COMPILE") == "1" and {"bdist_wheel", "build_ext"} & set(sys.argv):
    from mypyc.build import mypycify

    sources = [
        f"storage_daemon/curve_storage/{package}/{module}.py"
        for package, modules in HOT.items()
        for module in modules.split()
    ]
    arguments = {
        "ext_modules": mypycify(
            ["--config-file=pyproject.toml", "--no-incremental", *sources],
            opt_level="2",
            separate=True,
            target_dir="build/mypyc",
        ),
        "options": {"build_ext": {"parallel": os.cpu_count()}},
    }

if __name__ == "__main__":
    setup(**arguments)

"""Curve: replicated block volumes. See docs/architecture.md for the layers."""

import os
from importlib.metadata import PackageNotFoundError, version

# gRPC's handlers for fork() crash the child between fork and exec now and then; our children never use gRPC before
# exec. The library reads this when it is first imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

try:
    __version__ = version("curve-storage")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0+source"

"""Curve: replicated block volumes. See docs/architecture.md for the layers."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("curve-storage")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0+source"

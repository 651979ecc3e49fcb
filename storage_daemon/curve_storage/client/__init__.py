"""Block volume client: one open volume (`BlockVolume`) over a connection to a cluster (`Cluster`).

The names are loaded when they are first used: commands that need only the configuration start faster without the data
path.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curve_storage.client.cluster import Cluster
    from curve_storage.client.config import ClientConfig, find_config_file, load_client_config
    from curve_storage.client.volume import BlockVolume

__all__ = ["BlockVolume", "ClientConfig", "Cluster", "find_config_file", "load_client_config"]

_HOME = {
    "BlockVolume": "volume",
    "Cluster": "cluster",
    "ClientConfig": "config",
    "find_config_file": "config",
    "load_client_config": "config",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"curve_storage.client.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

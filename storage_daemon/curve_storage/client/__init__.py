"""Block volume client: one open volume (`BlockVolume`) over a connection to a cluster (`Cluster`)."""

from curve_storage.client.cluster import Cluster
from curve_storage.client.config import ClientConfig, find_config_file, load_client_config
from curve_storage.client.volume import BlockVolume

__all__ = ["BlockVolume", "ClientConfig", "Cluster", "find_config_file", "load_client_config"]

"""A whole cluster as local processes: `Playground` starts, repairs and removes one in a directory."""

from curve_storage.cli.playground.cluster import Playground, PlaygroundOptions
from curve_storage.cli.playground.state import Place

__all__ = ["Place", "Playground", "PlaygroundOptions"]

"""Where everything of the box lies.

Caches (programs, images, the seed of the nodes' image stores) and the box's data share one file system, because nodes
get their images by hard links. What finds a running box again, the state file and the control socket, is machine-
wide: there can be one box per machine, and any checkout may take it down.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM_SOURCES = Path(__file__).resolve().parent / "programs"
MANIFESTS = Path(__file__).resolve().parent / "manifests"
RUNTIME = Path("/run/curve-box")


def cache_from_environment() -> Path:
    """$CURVE_CACHE, else $XDG_CACHE_HOME/curve, else ~/.cache/curve."""
    if given := os.environ.get("CURVE_CACHE"):
        return Path(given).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "curve"


@dataclass(frozen=True)
class Places:
    """Folders below one cache folder. Nothing is created here."""

    cache: Path
    runtime: Path = RUNTIME

    @classmethod
    def default(cls) -> Places:
        return cls(cache_from_environment())

    @property
    def bin(self) -> Path:
        return self.cache / "bin"

    @property
    def images(self) -> Path:
        """OCI archives, one per image and content."""
        return self.cache / "images"

    @property
    def layers(self) -> Path:
        """The container storage in which the Dockerfile is built."""
        return self.cache / "containers"

    @property
    def seed(self) -> Path:
        """The containerd root into which every image is imported once."""
        return self.cache / "seed"

    @property
    def box(self) -> Path:
        """Data of the one box: control plane, nodes, logs."""
        return self.cache / "box"

    @property
    def logs(self) -> Path:
        return self.box / "logs"

    @property
    def kubeconfig(self) -> Path:
        return self.box / "kubeconfig"

    @property
    def state(self) -> Path:
        return self.runtime / "state.json"

    @property
    def control(self) -> Path:
        return self.runtime / "control.sock"

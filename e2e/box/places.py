"""Where everything of the box lies.

Caches (programs, images, the seed of the nodes' image stores) and the box's data share one file system, because nodes
get their images by hard links. What finds a running box again, the state file and the control socket, is machine-
wide: any checkout may take a box down. A second box beside the first needs a name of its own, in $CURVE_BOX_NAME.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from curve_storage.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM_SOURCES = Path(__file__).resolve().parent / "programs"
MANIFESTS = Path(__file__).resolve().parent / "manifests"


def box_name(given: str) -> str:
    """Checks $CURVE_BOX_NAME. Raises ConfigError for a name whose traces could not be told from another box's."""
    if not re.fullmatch(r"curve-box(-[a-z]+)?", given):
        raise ConfigError(f"not a name for a box: {given!r}", where="CURVE_BOX_NAME", todo="Use curve-box-LETTERS.")
    return given


# Every trace of a box carries its name: network namespaces, control groups, the folder in /run, nodes.
NAME = box_name(os.environ.get("CURVE_BOX_NAME", "curve-box"))
RUNTIME = Path("/run") / NAME


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
        """Data of the box: control plane, nodes, logs."""
        return self.cache / NAME.removeprefix("curve-")

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

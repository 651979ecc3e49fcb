"""Which images the nodes hold, under which names, and their archives in the cache.

Images made of Go programs are written by `oci`; the product's and the workload image come from the Dockerfile
(`dockerfile`). An archive's file name carries a hash of what went into it: a file that exists is current.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from e2e.box import gobuild, oci
from e2e.box.gobuild import GoBuilder
from e2e.box.node import PAUSE_IMAGE
from e2e.box.places import Places
from e2e.box.progress import Progress

RECIPE = "1"
PRODUCT = "localhost/curve:dev"
WORKLOAD = "localhost/curve-workload:dev"


@dataclass(frozen=True)
class Archive:
    """An image as a file; `key` names its content."""

    reference: str
    key: str
    path: Path


@dataclass(frozen=True)
class GoImage:
    """An image of static programs. files: path in the image → program; `entrypoint` is run, without one the pod names
    its command.
    """

    name: str
    files: tuple[tuple[str, str], ...]
    entrypoint: tuple[str, ...] = ()
    reference: str = ""

    @property
    def programs(self) -> list[gobuild.Program]:
        return gobuild.find(program for _, program in self.files)

    def tagged(self) -> str:
        """Its full name, tagged with the version of its first program."""
        return self.reference or f"localhost/{self.name}:{gobuild.version_of(self.programs[0])}"


SIDECARS = ("csi-provisioner", "csi-attacher", "csi-resizer", "csi-snapshotter", "snapshot-controller")
GO_IMAGES = (
    GoImage("pause", (("pause", "pause"),), ("/pause",), PAUSE_IMAGE),
    GoImage("coredns", (("coredns", "dns"),), ("/coredns",)),
    GoImage("etcd", (("usr/local/bin/etcd", "etcd"), ("usr/local/bin/etcdctl", "etcdctl"), ("tmp/", "etcd"))),
    *(GoImage(name, ((name, name),), (f"/{name}",)) for name in SIDECARS),
)


def references() -> dict[str, str]:
    """Short name → full name of every image of the box, for values of charts and manifests of tests."""
    return {
        **{image.name: image.tagged() for image in GO_IMAGES},
        "curve": PRODUCT,
        "curve-workload": WORKLOAD,
    }


def go_archives(places: Places, progress: Progress, images: Iterable[GoImage] = GO_IMAGES) -> list[Archive]:
    """Archives of the images of Go programs, written where they are missing; builds the programs they need."""
    wanted = list(images)
    GoBuilder(places, progress).ensure(gobuild.find({p.name for image in wanted for p in image.programs}))
    archives = [_go_archive(places, image) for image in wanted]
    missing = [(image, archive) for image, archive in zip(wanted, archives, strict=True) if not archive.path.exists()]
    if missing:
        with progress.step("images of Go programs") as step:
            for image, archive in missing:
                step.detail = image.name
                content = {
                    path: places.bin / program if not path.endswith("/") else b"" for path, program in image.files
                }
                config = oci.ImageConfig(entrypoint=image.entrypoint)
                oci.write_archive(archive.path, archive.reference, oci.layer(content), config)
                forget_older(places, image.name, archive.path)
    return archives


def _go_archive(places: Places, image: GoImage) -> Archive:
    parts = [RECIPE, image.tagged(), repr(image.files), *image.entrypoint]
    parts += [gobuild.source_hash(program) for program in image.programs]
    parts += [gobuild.go_version() or ""]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return Archive(image.tagged(), key, places.images / f"{image.name}-{key}.tar")


def forget_older(places: Places, name: str, newest: Path) -> None:
    """Removes the archives of an image that `newest` replaces."""
    for file in places.images.glob(f"{name}-{'[0-9a-f]' * 16}.tar"):
        if file != newest:
            file.unlink()

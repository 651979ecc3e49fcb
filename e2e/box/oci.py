"""OCI image archives, written from files alone: enough for images that are a few static binaries.

Layout and media types: OCI image specification 1.0 (image layout, manifest, configuration). The same input gives the
same bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import platform
import tarfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

MEDIA = "application/vnd.oci.image"
BLOBS = "blobs/sha256/"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
SEARCH_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class ImageConfig:
    entrypoint: tuple[str, ...] = ()
    user: str = ""
    environment: tuple[str, ...] = (SEARCH_PATH,)


def layer(files: Mapping[str, Path | bytes]) -> bytes:
    """An uncompressed layer: path in the image → a file of the machine, or text. A path ending in "/" is a folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        made: set[str] = set()
        for name in sorted(files):
            parents = Path(name).parents if not name.endswith("/") else [Path(name), *Path(name).parents]
            for parent in sorted(map(str, parents)):
                if parent not in made and parent != ".":
                    made.add(parent)
                    entry = tarfile.TarInfo(parent)
                    entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if parent == "tmp" else 0o755
                    archive.addfile(entry)
            if name.endswith("/"):
                continue
            source = files[name]
            content = source.read_bytes() if isinstance(source, Path) else source
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755 if isinstance(source, Path) else 0o644
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def write_archive(target: Path, reference: str, content: bytes, config: ImageConfig) -> None:
    """Writes an OCI archive of one layer that `ctr images import` takes under the name `reference`."""
    blobs: dict[str, bytes | Path] = {}

    def put(kind: str, data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": f"{MEDIA}.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    packed = put("layer.v1.tar+gzip", gzip.compress(content, compresslevel=1, mtime=0))
    settings: dict[str, object] = {"Env": list(config.environment)}
    if config.entrypoint:
        settings["Entrypoint"] = list(config.entrypoint)
    if config.user:
        settings["User"] = config.user
    description = {
        "architecture": ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(content).hexdigest()}"]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{MEDIA}.manifest.v1+json",
        "config": put("config.v1+json", _json(description)),
        "layers": [packed],
    }
    _write(target, reference, _json(manifest), blobs)


def archive_from_folder(folder: Path, target: Path, reference: str) -> None:
    """An OCI archive from a folder in the layout of the `dir:` transport: manifest.json beside the blobs it names."""
    manifest = (folder / "manifest.json").read_bytes()
    content = json.loads(manifest)
    digests = [part["digest"].removeprefix("sha256:") for part in (content["config"], *content["layers"])]
    _write(target, reference, manifest, {digest: folder / digest for digest in digests})


def _write(target: Path, reference: str, manifest: bytes, blobs: Mapping[str, bytes | Path]) -> None:
    """The archive around a manifest and its blobs (hex digest → content), replaced whole."""
    digest = hashlib.sha256(manifest).hexdigest()
    entry = {
        "mediaType": f"{MEDIA}.manifest.v1+json",
        "digest": f"sha256:{digest}",
        "size": len(manifest),
        "annotations": {"io.containerd.image.name": reference, "org.opencontainers.image.ref.name": reference},
    }
    files: dict[str, bytes | Path] = {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": _json({"schemaVersion": 2, "manifests": [entry]}),
        **{f"{BLOBS}{name}": content for name, content in {**blobs, digest: manifest}.items()},
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    with tarfile.open(temporary, "w", format=tarfile.GNU_FORMAT) as archive:
        for name in sorted(files):
            content = files[name]
            info = tarfile.TarInfo(name)
            info.mode = 0o644
            if isinstance(content, Path):
                info.size = content.stat().st_size
                with content.open("rb") as stream:
                    archive.addfile(info, stream)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    os.replace(temporary, target)


def copy_without(source: Path, target: IO[bytes], present: Collection[str]) -> None:
    """Copies an OCI archive, leaving out the blobs whose digest ("sha256:…") the receiver has already."""
    with tarfile.open(source) as given, tarfile.open(fileobj=target, mode="w|") as reduced:
        for member in given:
            if member.isfile() and f"sha256:{member.name.removeprefix(BLOBS)}" not in present:
                reduced.addfile(member, given.extractfile(member))


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

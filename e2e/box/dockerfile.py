"""The Dockerfile's images, built on this machine without a registry or a daemon.

buildah builds them in a storage of its own in the cache. The base image, on other machines fetched by its public
name, is made here from the machine's Debian package sources. The machine's apt and pip configuration goes in as build
secrets and stays out of every layer.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from e2e.box import oci
from e2e.box.command import run, stream
from e2e.box.images import PRODUCT, WORKLOAD, Archive, forget_older
from e2e.box.places import REPOSITORY, Places
from e2e.box.progress import Progress, Step

BASE = "localhost/curve-base:python3.11-bookworm"
SOURCES = Path("/etc/apt/sources.list.d")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
EPOCH = "1767225600"
BASE_PACKAGES = ("usr-is-merged", "ca-certificates", "python3", "python3-venv")
# What is run mounts in a namespace of its own, so that nothing stays mounted however it ends.
OWN_MOUNTS = ("unshare", "--mount", "--propagation", "private", "--")
STORAGE_LIMIT = 12 << 30
# Put in place of what mmdebstrap copies from this machine; and apt leaves no archives behind, as in the public base
# images.
CLEAN = r"""
cd "$1"
rm -rf etc/apt/sources.list.d/* etc/apt/sources.list etc/resolv.conf etc/hostname etc/apt/apt.conf.d/99mmdebstrap
rm -rf var/cache/apt/*.bin var/lib/apt/lists/* var/lib/dpkg/*-old var/cache/debconf/*-old var/log/*.log var/log/apt
echo 'APT::Keep-Downloaded-Packages "false"; DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb || true"; };' \
    > etc/apt/apt.conf.d/curve-no-archives
ln -s /usr/bin/python3 usr/local/bin/python
"""
APT_OPTIONS = ('Acquire::Languages "none"', 'Apt::Install-Recommends "false"')
LEFT_OUT = ("/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/doc/*")
PIP_SETTINGS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "default-timeout")


@dataclass(frozen=True)
class Target:
    """A stage of the Dockerfile that becomes an image, and what in the repository decides its content."""

    stage: str
    reference: str
    sources: tuple[str, ...]


TARGETS = (
    Target(
        "curve",
        PRODUCT,
        (
            "Dockerfile",
            "pyproject.toml",
            "README.md",
            "requirements.lock",
            "requirements.runtime.lock",
            "storage_daemon",
            "operator",
            "csi",
        ),
    ),
    Target("workload", WORKLOAD, ("Dockerfile",)),
)


def source_files(names: Sequence[str], repository: Path = REPOSITORY) -> list[Path]:
    """The files that a build with these sources sees, sorted."""
    found: list[Path] = []
    for name in names:
        path = repository / name
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        found += [file for file in files if not _ignored(file.relative_to(repository))]
    return sorted(found)


def _ignored(path: Path) -> bool:
    return path.suffix == ".pyc" or any(part == "__pycache__" or part.endswith(".egg-info") for part in path.parts)


def content_key(target: Target, repository: Path = REPOSITORY) -> str:
    digest = hashlib.sha256("\0".join(("2", target.stage, CLEAN, *BASE_PACKAGES)).encode())
    for file in source_files(target.sources, repository):
        digest.update(f"\0{file.relative_to(repository)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def pip_configuration(listed: str) -> str:
    """A pip.conf for build steps, from what `pip config list` prints here: where packages come from, no path of this
    machine.
    """
    lines = ["[global]", "cert = /run/build-ca.crt"]
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        setting = name.rpartition(".")[2]
        if setting in PIP_SETTINGS and "file:" not in value:
            lines.append(f"{setting} = {value.strip(chr(39))}")
    return "\n".join(dict.fromkeys(lines)) + "\n"


def archives(places: Places, progress: Progress, targets: Sequence[Target] = TARGETS) -> list[Archive]:
    """OCI archives of the targets, built where their sources have changed."""
    found = []
    for target in targets:
        key = content_key(target)
        name = target.reference.partition("/")[2].partition(":")[0]
        archive = Archive(target.reference, key, places.images / f"{name}-{key}.tar")
        if not archive.path.exists():
            with progress.step(f"image {target.reference}") as step:
                _Builder(places, step).build(target, archive)
            forget_older(places, name, archive.path)
        found.append(archive)
    return found


class _Builder:
    def __init__(self, places: Places, step: Step) -> None:
        self._places = places
        self._step = step

    def build(self, target: Target, archive: Archive) -> None:
        self._places.images.mkdir(parents=True, exist_ok=True)
        self._limit_storage()
        self._buildah("rm", "--all")  # working containers of an interrupted build
        self._ensure_base()
        with tempfile.TemporaryDirectory(prefix="curve-image-") as folder:
            secrets = self._secrets(Path(folder))
            options = ["--isolation", "chroot", "--pull=never", "--layers", "--build-arg", f"BASE={BASE}", *secrets]
            self._buildah("bud", *options, "--target", target.stage, "--tag", target.reference, str(REPOSITORY))
        self._step.detail = "writing the archive"
        # Not compressed: it only goes to the nodes of this machine, and each change of the product makes it anew.
        with tempfile.TemporaryDirectory(prefix="export-", dir=self._places.layers) as folder:
            self._buildah(
                "push", "--quiet", "--disable-compression", "--format", "oci", target.reference, f"dir:{folder}"
            )
            oci.archive_from_folder(Path(folder), archive.path, target.reference)

    def _ensure_base(self) -> None:
        key = hashlib.sha256("\0".join((CLEAN, *BASE_PACKAGES, *APT_OPTIONS, *LEFT_OUT)).encode()).hexdigest()[:16]
        image = f"{BASE}-{key}"
        if image not in self._buildah("images", "--format", "{{.Name}}:{{.Tag}}").split():
            self._step.detail = "base image from Debian packages"
            with tempfile.TemporaryDirectory(prefix="curve-base-", dir=self._places.cache) as folder:
                archive = Path(folder) / "base.tar"
                self._debootstrap(archive)
                container = self._buildah("from", "scratch").strip()
                self._buildah("add", "--quiet", container, str(archive), "/")
                self._buildah("config", "--cmd", "python3", container)
                self._buildah("commit", "--quiet", "--rm", "--timestamp", EPOCH, container, image)
        self._buildah("tag", image, BASE)

    def _debootstrap(self, archive: Path) -> None:
        options = ["--mode=root", "--variant=minbase", "--format=tar", f"--include={','.join(BASE_PACKAGES)}"]
        options += ["--hook-dir=/usr/share/mmdebstrap/hooks/maybe-merged-usr"]
        options += [f"--aptopt={option}" for option in APT_OPTIONS]
        options += [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
        options += ["--dpkgopt=path-include=/usr/share/doc/*/copyright", f"--customize-hook={CLEAN}"]
        sources = [str(file) for file in sorted(SOURCES.glob("debian.*"))]
        command = [*OWN_MOUNTS, "mmdebstrap", *options, "bookworm", str(archive), *sources]
        run(command, env={"SOURCE_DATE_EPOCH": EPOCH}, todo="Are the machine's Debian package sources reachable?")

    def _secrets(self, folder: Path) -> list[str]:
        """Build secrets from this machine's configuration; what it does not have is left to the public defaults."""
        files: dict[str, Path] = {}
        if (sources := SOURCES / "debian.sources").exists():
            files["apt"] = sources
        bundle = Path(os.environ.get("SSL_CERT_FILE", CERTIFICATES))
        if bundle.exists():
            pip = folder / "pip.conf"
            pip.write_text(pip_configuration(run([sys.executable, "-m", "pip", "config", "list"])))
            files |= {"pip": pip, "ca": bundle}
        return [word for name, path in files.items() for word in ("--secret", f"id={name},src={path}")]

    def _buildah(self, *arguments: str) -> str:
        """Runs buildah on the cache's own storage; its standard output."""
        layers = self._places.layers
        layers.mkdir(parents=True, exist_ok=True)
        configuration = layers / "storage.conf"
        configuration.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{layers}/root"\nrunroot = "{layers}/run"\n'
        )
        (layers / "tmp").mkdir(exist_ok=True)
        environment = {"CONTAINERS_STORAGE_CONF": str(configuration), "TMPDIR": str(layers / "tmp")}
        return stream([*OWN_MOUNTS, "buildah", *arguments], self._note, env=environment)

    def _note(self, line: str) -> None:
        if "STEP " in line:
            self._step.detail = line.strip()[:120]

    def _limit_storage(self) -> None:
        """Layers of superseded builds pile up slowly; a storage that has grown large is started anew."""
        root = self._places.layers / "root"
        if root.is_dir() and int(run(["du", "-s", "--block-size=1", root]).split()[0]) > STORAGE_LIMIT:
            shutil.rmtree(root)

"""Debian packages that the box and the tests on real devices use, each with its reason; installed only when missing."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable

from curve_storage.errors import FailedPrecondition, PermissionDenied
from e2e.box.command import CommandFailed, run
from e2e.box.progress import Progress

PACKAGES = {
    "runc": "starts containers under containerd",
    "containernetworking-plugins": "bridge, host-local and portmap for pod networks",
    "iproute2": "network namespaces, bridges, cables",
    "iptables": "the portmap plugin's rules",
    "nftables": "kube-proxy's rules",
    "conntrack": "kube-proxy clears stale connections with it",
    "util-linux": "unshare, nsenter, losetup, blkid, findmnt",
    "buildah": "builds the Dockerfile without a daemon or a registry",
    "mmdebstrap": "makes the base image from the machine's own package sources",
    "e2fsprogs": "mkfs.ext4 and its checks",
    "xfsprogs": "mkfs.xfs, xfs_growfs",
    "fuse3": "fusermount3",
    "fio": "load and verification",
    "libnbd-bin": "nbdinfo and nbdcopy check the NBD server",
    "qemu-utils": "qemu-img checks the NBD server",
    "gcc": "compiles the hot modules of the data path",
    "libc6-dev": "headers for it",
    "strace": "looks into a stuck process",
    "jq": "reads JSON in scripts of the documentation",
    "ca-certificates": "TLS roots for the module and package downloads",
}
ATTEMPTS = 5
LOCK_WAIT = "120"
_TRANSIENT = re.compile(
    r"Could not get lock|Unable to acquire|Temporary failure|Connection failed|Failed to fetch|timed out"
)


def missing(packages: Iterable[str] = PACKAGES) -> list[str]:
    """Those of `packages` that are not installed."""
    wanted = list(packages)
    try:
        listed = run(["dpkg-query", "-W", "-f", "${db:Status-Abbrev}\t${Package}\n", *wanted])
    except CommandFailed as error:
        listed = error.output  # unknown ones make it fail; it lists the known ones all the same
    present = {line.split("\t")[1] for line in listed.splitlines() if line.startswith("ii") and "\t" in line}
    return [package for package in wanted if package not in present]


def ensure(progress: Progress, packages: Iterable[str] = PACKAGES) -> list[str]:
    """Installs what is missing and returns its names.

    Raises FailedPrecondition where there is no apt-get, PermissionDenied without root, CommandFailed when apt-get
    gives up.
    """
    try:
        wanted = missing(packages)
    except FailedPrecondition as error:
        raise FailedPrecondition(
            "this is no Debian system", where="dpkg-query", todo=f"Install these yourself: {' '.join(packages)}."
        ) from error
    if not wanted:
        return []
    if os.geteuid() != 0:
        raise PermissionDenied("only root installs packages", where=" ".join(wanted), todo="Run it as root.")
    with progress.step(f"Debian packages: {' '.join(wanted)}") as step:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                _install(wanted)
                break
            except CommandFailed as error:
                if attempt == ATTEMPTS or not _TRANSIENT.search(error.output):
                    raise
                step.detail = f"attempt {attempt} failed: {error.output.strip().splitlines()[-1]}"
                time.sleep(2.0**attempt)
    return wanted


def _install(packages: list[str]) -> None:
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    options = ["-q", "-o", f"DPkg::Lock::Timeout={LOCK_WAIT}", "-o", "Acquire::Retries=3"]
    install = ["apt-get", *options, "install", "-y", "--no-install-recommends", *packages]
    try:
        run(install, env=environment, timeout=1200)
    except CommandFailed as error:
        if not re.search(r"Unable to locate package|404|Failed to fetch|no installation candidate", error.output):
            raise
        run(["apt-get", *options, "update"], env=environment, timeout=600)
        run(install, env=environment, timeout=1200)

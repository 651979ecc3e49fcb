"""Images: the archive writer, what makes an image stale, the configuration that builds are given."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import tomllib
from pathlib import Path

import pytest

from e2e.box import dockerfile, images, oci
from e2e.box.dockerfile import TARGETS, Target, content_key, pip_configuration, source_files
from e2e.box.places import REPOSITORY, Places


@pytest.fixture
def archive(tmp_path: Path) -> dict[str, bytes]:
    program = tmp_path / "program"
    program.write_bytes(b"ELF")
    content = oci.layer({"usr/bin/program": program, "etc/name": b"text", "tmp/": b""})
    target = tmp_path / "image.tar"
    oci.write_archive(target, "localhost/x:1", content, oci.ImageConfig(entrypoint=("/usr/bin/program",)))
    with tarfile.open(target) as opened:
        return {member.name: opened.extractfile(member).read() for member in opened}  # type: ignore[union-attr]


def test_every_blob_is_named_by_its_digest_and_referenced_with_its_size(archive: dict[str, bytes]) -> None:
    blobs = {name.rpartition("/")[2]: data for name, data in archive.items() if name.startswith("blobs/")}
    assert all(hashlib.sha256(data).hexdigest() == digest for digest, data in blobs.items())
    (entry,) = json.loads(archive["index.json"])["manifests"]
    assert entry["annotations"]["io.containerd.image.name"] == "localhost/x:1"
    manifest = json.loads(blobs[entry["digest"].removeprefix("sha256:")])
    described = [entry, manifest["config"], *manifest["layers"]]
    assert {each["digest"].removeprefix("sha256:") for each in described} == set(blobs)
    assert all(each["size"] == len(blobs[each["digest"].removeprefix("sha256:")]) for each in described)
    config = json.loads(blobs[manifest["config"]["digest"].removeprefix("sha256:")])
    assert config["config"]["Entrypoint"] == ["/usr/bin/program"]


def test_layers_hold_parents_first_and_programs_can_be_run(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"ELF")
    content = oci.layer({"usr/bin/program": program, "etc/name": b"text", "tmp/": b""})
    assert content == oci.layer({"tmp/": b"", "etc/name": b"text", "usr/bin/program": program})
    with tarfile.open(fileobj=io.BytesIO(content)) as opened:
        modes = {member.name: member.mode for member in opened}
        names = opened.getnames()
    assert modes == {
        "etc": 0o755,
        "etc/name": 0o644,
        "tmp": 0o1777,
        "usr": 0o755,
        "usr/bin": 0o755,
        "usr/bin/program": 0o755,
    }
    assert names.index("usr") < names.index("usr/bin") < names.index("usr/bin/program")


def test_a_folder_of_blobs_becomes_an_archive_and_what_is_there_is_not_sent(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()

    def put(data: bytes) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (folder / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    config, base, top = put(b"config"), put(b"base layer"), put(b"top layer")
    (folder / "manifest.json").write_text(json.dumps({"schemaVersion": 2, "config": config, "layers": [base, top]}))
    target, sent = tmp_path / "image.tar", tmp_path / "sent.tar"
    oci.archive_from_folder(folder, target, "localhost/x:1")
    with sent.open("wb") as stream:
        oci.copy_without(target, stream, {str(base["digest"])})

    def content(file: Path) -> dict[str, bytes]:
        with tarfile.open(file) as opened:
            return {member.name: opened.extractfile(member).read() for member in opened}  # type: ignore[union-attr]

    whole, reduced = content(target), content(sent)
    assert whole.items() >= reduced.items()
    assert [whole[name] for name in whole.keys() - reduced.keys()] == [b"base layer"]
    (entry,) = json.loads(whole["index.json"])["manifests"]
    assert whole[f"blobs/sha256/{entry['digest'].removeprefix('sha256:')}"] == (folder / "manifest.json").read_bytes()


def test_every_image_has_a_name_that_is_never_pulled() -> None:
    names = images.references()
    assert len(set(names.values())) == len(names)
    for name in names.values():
        assert re.fullmatch(r"localhost/[a-z-]+:[\w.]+", name)
        assert not name.endswith(":latest")


def test_only_the_newest_archive_is_kept(tmp_path: Path) -> None:
    places = Places(tmp_path)
    places.images.mkdir()
    old, new = (places.images / f"curve-{digit * 16}.tar" for digit in "ab")
    other = places.images / f"curve-workload-{'a' * 16}.tar"
    for file in (old, new, other):
        file.touch()
    images.forget_older(places, "curve", new)
    assert sorted(places.images.iterdir()) == [new, other]


def test_the_key_follows_sources_but_not_what_the_build_ignores(tmp_path: Path) -> None:
    target = Target("stage", "localhost/x:1", ("Dockerfile", "code"))
    (tmp_path / "Dockerfile").write_text("FROM x\n")
    (tmp_path / "code/__pycache__").mkdir(parents=True)
    (tmp_path / "code/a.py").write_text("1\n")
    first = content_key(target, tmp_path)
    (tmp_path / "code/__pycache__/a.pyc").write_text("compiled")
    (tmp_path / "unrelated").write_text("x")
    assert content_key(target, tmp_path) == first
    (tmp_path / "code/a.py").write_text("2\n")
    second = content_key(target, tmp_path)
    (tmp_path / "code/b.py").write_text("")
    assert len({first, second, content_key(target, tmp_path)}) == 3


def test_the_dockerfile_copies_nothing_that_is_not_part_of_the_key() -> None:
    text = (REPOSITORY / "Dockerfile").read_text()
    copied = {word for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE) for word in line.split()[:-1]}
    product = next(target for target in TARGETS if target.stage == "curve")
    assert copied <= set(product.sources)
    allowed = set(re.findall(r"^!(.*)$", (REPOSITORY / ".dockerignore").read_text(), re.MULTILINE))
    assert copied == allowed
    assert source_files(["storage_daemon"])
    for target in TARGETS:
        assert f" AS {target.stage}\n" in text


def test_the_dockerfile_names_no_place_of_a_machine() -> None:
    text = (REPOSITORY / "Dockerfile").read_text()
    assert not re.search(r"https?://|index-url|trusted-host|ENV .*PROXY", text)


def test_pip_settings_of_the_machine_are_passed_on_without_its_paths() -> None:
    listed = (
        ":env:.cert='/etc/ssl/certs/x.crt'\n:env:.find-links='/opt/wheels'\nglobal.index-url='https://mirror/simple'\n"
        "global.extra-index-url='file:///somewhere'\n:env:.default-timeout='180'\n"
    )
    assert pip_configuration(listed).splitlines() == [
        "[global]",
        "cert = /run/build-ca.crt",
        "index-url = https://mirror/simple",
        "default-timeout = 180",
    ]


def pins(file: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==(\S+)", (REPOSITORY / file).read_text(), re.MULTILINE))


def test_the_image_installs_the_versions_that_are_tested() -> None:
    runtime, everything = pins("requirements.runtime.lock"), pins("requirements.lock")
    assert runtime.items() <= everything.items(), "run `make lock`"
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-") for line in project["dependencies"]}
    assert needed <= set(runtime), "run `make lock`"
    assert "setuptools" in everything  # the Dockerfile takes the build backend from there
    assert not {"pytest", "mypy", "ruff"} & set(runtime)


def test_the_base_is_made_of_named_packages() -> None:
    assert "python3" in dockerfile.BASE_PACKAGES

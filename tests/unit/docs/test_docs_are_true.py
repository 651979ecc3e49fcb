"""What the pages say is so: commands parse, targets and objects exist, resources validate, links lead somewhere."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any

import documents
import jsonschema
import pytest
import typer
import yaml
from documents import PAGES, ROOT, Command

from curve_storage.cli import main as cli

GENERATOR = ROOT / "docs" / "generate.py"
CRD = ROOT / "crds" / "operator.curve.io_curveclusters.yaml"

COMMANDS = documents.all_commands()
BLOCKS = [block for page in PAGES for block in documents.blocks(page)]
LANGUAGES = {"sh", "yaml"}
# Programs of the system that the pages may call.
SYSTEM = {
    ".", "base64", "blockdev", "chown", "dd", "df", "docker", "e2fsck", "export", "fuser", "grep", "head", "install",
    "mkdir", "mkfs.ext4", "mount", "printf", "resize2fs", "sha256sum", "systemctl", "umount", "useradd",
}  # fmt: skip


def of(program: str) -> list[Command]:
    return [command for command in COMMANDS if command.words[0] == program]


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("docs_generate", GENERATOR)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- generated pages


@pytest.mark.parametrize("name", ["cli.md", "configuration.md"])
def test_generated_pages_are_current(name: str) -> None:
    files = generator().files()
    assert (ROOT / "docs" / name).read_text() == files[name], f"docs/{name} is old: run `make docs`"


def test_every_command_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    found = list(generator().commands(typer.main.get_command(cli.app)))
    assert len(found) > 25
    for path, _ in found:
        assert f"### `curve {' '.join(path)}" in text


# ---- commands


def test_there_are_commands_to_check() -> None:
    """The extraction itself works: else every test below would pass on nothing."""
    assert len(of("curve")) > 40 and len(of("kubectl")) > 30 and len(of("helm")) > 8 and len(of("make")) > 15
    assert {block.language for block in BLOCKS} <= LANGUAGES


def test_only_known_programs_are_called() -> None:
    known = SYSTEM | {"curve", "kubectl", "helm", "make", "python", "python3", "pytest", "/opt/curve/bin/pip"}
    unknown = [str(command) for command in COMMANDS if command.words[0] not in known]
    assert not unknown


def check_curve(words: tuple[str, ...]) -> None:
    """Raises typer's own usage error when the command, an option or an argument does not exist."""
    program: Any = typer.main.get_command(cli.app)
    context = program.make_context("curve", list(words), resilient_parsing=False)
    while hasattr(context.command, "commands"):
        rest = [*context._protected_args, *context.args]
        name, command, rest = context.command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("command", [c for c in of("curve") if not c.mention], ids=str)
def test_curve_commands_parse(command: Command) -> None:
    check_curve(command.words[1:])


@pytest.mark.parametrize("command", [c for c in of("curve") if c.mention], ids=str)
def test_curve_commands_in_the_text_exist(command: Command) -> None:
    node: Any = typer.main.get_command(cli.app)
    words = list(command.words[1:])
    while words and hasattr(node, "commands") and not words[0].startswith("-"):
        node = node.commands[words.pop(0)]
    options = {option for parameter in node.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("-")} <= options


@pytest.mark.parametrize(
    "words",
    [("volume", "snapshot", "/a"), ("volume", "create", "/a"), ("status", "--colour"), ("chunkserver", "drain", "x")],
)
def test_wrong_curve_commands_do_not(words: tuple[str, ...]) -> None:
    with pytest.raises(Exception) as caught:  # typer brings its own copy of click's exceptions
        check_curve(words)
    assert (
        "Usage" in type(caught.value).__name__
        or "Option" in type(caught.value).__name__
        or hasattr(caught.value, "exit_code")
    )


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))


@pytest.mark.parametrize("command", of("make"), ids=str)
def test_make_targets_exist(command: Command) -> None:
    variables = [word.partition("=")[0] for word in command.words[1:] if "=" in word]
    assert {word for word in command.words[1:] if "=" not in word} <= make_targets()
    assert all(f"$({name}" in (ROOT / "Makefile").read_text() for name in variables)


class Parsed(Exception):
    """Raised where a program would begin its work."""


def check_main(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a program's `main` up to the end of argparse."""
    module = importlib.import_module(name)
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{name}.__main__")
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, *given: Any, **more: Any) -> None:
        parse(self, *given, **more)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr("sys.argv", [name, *arguments])
    with pytest.raises(Parsed):
        module.main()


@pytest.mark.parametrize("arguments", [["--no-such-option"], ["--jobs"]], ids=str)
def test_wrong_arguments_of_a_program_do_not(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit):
        check_main("bench.block", arguments, monkeypatch)


@pytest.mark.parametrize("command", [c for c in of("python") if c.words[1] == "-m"], ids=str)
def test_python_modules_take_these_arguments(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    if command.words[2] == "e2e.chaos":
        from e2e.chaos.cli import parser

        parser().parse_args(list(command.words[3:]))
        return
    if command.words[2].startswith("bench."):
        check_main(command.words[2], list(command.words[3:]), monkeypatch)
        return
    assert command.words[2] == "e2e.box", "say here how to check another module"
    from e2e.box.cli import app

    program: Any = typer.main.get_command(app)
    arguments = list(command.words[3:])
    assert arguments[0] in program.commands
    if arguments[0] == "kubectl":
        check_kubectl(tuple(arguments))
        return
    context = program.commands[arguments[0]].make_context(arguments[0], arguments[1:])
    if arguments[0] == "node":
        assert context.params["action"] in program.commands["node"].params[0].help


@pytest.mark.parametrize("command", of("pytest"), ids=str)
def test_named_tests_exist(command: Command) -> None:
    path = ROOT / command.words[1]
    assert path.exists()
    if "-k" in command.words:
        assert command.words[command.words.index("-k") + 1] in path.read_text()


def test_test_files_named_in_the_text_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"`(tests/[\w/.]+|e2e/[\w/.]+|charts/[\w/.-]+)`", page.read_text()):
            assert (ROOT / name).exists(), f"{page.name}: {name}"


# ---- kubectl and helm


def chart_objects() -> dict[str, set[str]]:
    """Kind → names of the charts' own objects, and of the default cluster that the operator makes."""
    found: dict[str, set[str]] = {}
    for template in ROOT.glob("charts/*/templates/*.yaml"):
        text = template.read_text()
        for kind, name in re.findall(r"^kind: (\w+)\nmetadata:\n  name: ([\w-]+)$", text, re.M):
            found.setdefault(kind.lower(), set()).add(name)
    found["deploy"] = found["deployment"]
    found["ds"] = found["daemonset"]
    found["statefulset"] = {"curve-mds"}
    return found


VERBS = {
    "get", "describe", "logs", "wait", "exec", "annotate", "label", "create", "delete", "drain", "uncordon", "taint",
    "apply", "edit", "explain",
}  # fmt: skip


def kubectl_arguments(words: tuple[str, ...]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="kubectl", exit_on_error=False)
    parser.add_argument("-n", "--namespace")
    parser.add_argument("-A", action="store_true")
    parser.add_argument("-o", "--output", choices=["wide", "yaml", "json"])
    parser.add_argument("-l", "--selector")
    parser.add_argument("-c", "--container")
    for flag in ("--watch", "--ignore-daemonsets", "--delete-emptydir-data"):
        parser.add_argument(flag, action="store_true")
    for option in ("--for", "--timeout", "--tail", "-f"):
        parser.add_argument(option)
    parser.add_argument("verb", choices=sorted(VERBS))
    parser.add_argument("rest", nargs="*")
    found, unknown = parser.parse_known_args(words)
    assert not unknown, unknown
    return found


def check_kubectl(words: tuple[str, ...]) -> None:
    rest: tuple[str, ...] = ()
    if "--" in words:
        words, rest = words[: words.index("--")], words[words.index("--") + 1 :]
    options = kubectl_arguments(words[1:])
    if rest:
        assert options.verb == "exec" and rest[0] == "curve"
        check_curve(rest[1:])
    objects = chart_objects()
    for word in options.rest:
        kind, slash, name = word.partition("/")
        if slash and kind in objects:
            assert name in objects[kind], f"no {kind} {name} in the charts"
    if options.container:
        charts = "".join(path.read_text() for path in ROOT.glob("charts/curve-csi/templates/*"))
        assert f"name: {options.container}" in charts or f'"{options.container}"' in charts
    annotations = [word for word in options.rest if "operator.curve.io/" in word]
    names = (ROOT / "operator" / "curve_operator" / "names.py").read_text()
    for word in annotations:
        assert "/" + word.split("/")[1].split("=")[0].rstrip("-") in names


@pytest.mark.parametrize("command", of("kubectl"), ids=str)
def test_kubectl_commands(command: Command) -> None:
    check_kubectl(command.words)


def deep(values: dict[str, Any], key: str) -> bool:
    node: Any = values
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def chart_values(chart: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((chart / "values.yaml").read_text())
    return found


@pytest.mark.parametrize("command", of("helm"), ids=str)
def test_helm_commands(command: Command) -> None:
    words = [word for word in command.words[1:] if word]
    if words[0] == "show":
        assert (ROOT / words[2] / "Chart.yaml").exists()
        return
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("verb", choices=["upgrade", "uninstall"])
    parser.add_argument("release")
    parser.add_argument("chart", nargs="?")
    parser.add_argument("-n", dest="namespace", required=True)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--values")
    for flag in ("--install", "--create-namespace", "--reuse-values"):
        parser.add_argument(flag, action="store_true")
    options = parser.parse_args(words)
    if options.verb == "uninstall":
        assert (ROOT / "charts" / options.release / "Chart.yaml").exists()
        return
    values = chart_values(ROOT / options.chart)
    for setting in options.set:
        assert deep(values, setting.partition("=")[0]), f"{options.chart} has no value {setting}"


# Values that the text names, without the rest of their context.
@pytest.mark.parametrize(
    ("chart", "key"),
    [
        ("curve-csi", "keeper.image"), ("curve-csi", "volumehost.config"), ("curve-csi", "metrics.podMonitor.enabled"),
        ("curve-cluster", "monitoring.podMonitor.enabled"), ("curve-cluster", "storageClasses"),
        ("curve-operator", "metrics.serviceMonitor.enabled"), ("curve-operator", "daemonImage"),
        ("curve-operator", "global.imagePullSecrets"), ("curve-csi", "global.imageRegistry"),
    ],
)  # fmt: skip
def test_values_named_in_the_text_exist(chart: str, key: str) -> None:
    assert deep(chart_values(ROOT / "charts" / chart), key)
    assert any(f"`{key}" in page.read_text() or f"{key}`" in page.read_text() for page in PAGES)


# ---- YAML


def yaml_blocks() -> list[documents.Block]:
    return [block for block in BLOCKS if block.language == "yaml"]


def closed(schema: Any) -> Any:
    """The API server refuses unknown fields under strict validation; a plain schema would let them pass."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items()}
    if "properties" in result and not result.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    return result


def cluster_schema() -> dict[str, Any]:
    found = yaml.safe_load(CRD.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    result: dict[str, Any] = closed(found)
    result["properties"]["metadata"] = {"type": "object"}
    return result


def test_clusters_validate() -> None:
    from curve_operator.interpret import interpret

    count = 0
    for block in yaml_blocks():
        for document in yaml.safe_load_all(block.text):
            if document.get("kind") != "CurveCluster":
                continue
            jsonschema.validate(document, cluster_schema())
            resource = {**document, "metadata": {**document["metadata"], "uid": "0"}}
            assert not interpret(resource, default_image="curve:0").problems, block.where
            count += 1
    assert count >= 2


def test_a_wrong_cluster_would_be_found() -> None:
    wrong = {
        "apiVersion": "operator.curve.io/v1",
        "kind": "CurveCluster",
        "metadata": {"name": "a"},
        "spec": {"storage": {"useEveryNode": True}},
    }
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, cluster_schema())


def merged(defaults: Any, own: Any) -> Any:
    """As Helm does it: maps are merged, null takes a default back, everything else replaces."""
    if not (isinstance(defaults, dict) and isinstance(own, dict)):
        return own
    result = dict(defaults)
    for key, value in own.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(defaults.get(key), value)
    return result


def test_values_validate() -> None:
    import json

    from curve_operator.interpret import interpret

    count = 0
    for block in yaml_blocks():
        named = re.match(r"# values of ([\w-]+)\n", block.text)
        if named is None:
            continue
        chart = ROOT / "charts" / named.group(1)
        values = merged(chart_values(chart), yaml.safe_load(block.text))
        jsonschema.validate(values, json.loads((chart / "values.schema.json").read_text()))
        resource = {"metadata": {"name": "curve", "namespace": "curve-system", "uid": "0"}, "spec": values["spec"]}
        jsonschema.validate({"spec": values["spec"]}, cluster_schema())
        assert not interpret(resource, default_image="curve:0").problems, block.where
        count += 1
    assert count >= 2


def test_every_yaml_block_is_one_of_the_checked_kinds() -> None:
    for block in yaml_blocks():
        for document in yaml.safe_load_all(block.text):
            known = document.get("kind") in ("CurveCluster", "PersistentVolumeClaim")
            assert known or block.text.startswith("# values of "), block.where


def test_storage_class_parameters() -> None:
    from curve_csi.parameters import KNOWN

    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "install.md").read_text(), re.M)
    named = {name for row in rows for name in re.findall(r"`([\w./-]+)`", row)}
    assert {"fsType", "mkfsOptions", "onDelete", "poolset", "accessibility", "owner"} <= named & set(KNOWN)

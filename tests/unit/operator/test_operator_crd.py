"""The CRD: generated files are current, the schema is structural, and defaults satisfy their own rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from curve_operator import crd

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("path", sorted(crd.files()), ids=str)
def test_generated_files_are_current(path: Path) -> None:
    assert (ROOT / path).read_text() == crd.files()[path], "run `make crds` and commit what it writes"


def walk(node: dict[str, Any], path: str = "spec") -> list[tuple[str, dict[str, Any]]]:
    found = [(path, node)]
    for name, child in node.get("properties", {}).items():
        found += walk(child, f"{path}.{name}")
    if isinstance(node.get("items"), dict):
        found += walk(node["items"], f"{path}[]")
    return found


def schema() -> dict[str, Any]:
    version = crd.definition()["spec"]["versions"][0]
    found: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    return found


def test_schema_is_structural() -> None:
    for part in ("spec", "status"):
        for path, node in walk(schema()["properties"][part], part):
            assert "type" in node, path
            assert not {"anyOf", "$ref", "title", "oneOf", "allOf"} & set(node), path
            if node["type"] == "array":
                assert "items" in node, path
            if "properties" in node:
                assert "additionalProperties" not in node, path


def test_rules_have_messages_and_bounded_cost() -> None:
    """CEL's cost estimate needs bounds on every list under a rule, or the API server refuses the CRD."""
    ruled = [(path, node) for path, node in walk(schema()["properties"]["spec"]) if "x-kubernetes-validations" in node]
    assert len(ruled) >= 6
    for path, node in ruled:
        for rule in node["x-kubernetes-validations"]:
            assert rule["message"], path
    for path, node in walk(schema()["properties"]["spec"]):
        if node["type"] == "array":
            assert node["maxItems"] <= 1000, path


def test_defaults_are_complete_and_valid() -> None:
    spec = schema()["properties"]["spec"]
    for path, node in walk(spec):
        if "default" in node and node["type"] == "object":
            jsonschema.validate(node["default"], node)
            for name, child in node.get("properties", {}).items():
                assert ("default" in child) == (name in node["default"]), f"{path}.{name}"
    assert spec["properties"]["storage"]["default"]["pool"] == {"name": "default", "replicas": 3}
    assert not [path for path, node in walk(schema()["properties"]["status"], "status") if "default" in node]


def test_conditions_are_a_list_map_and_columns_exist() -> None:
    status = schema()["properties"]["status"]["properties"]
    assert status["conditions"]["x-kubernetes-list-type"] == "map"
    assert status["conditions"]["x-kubernetes-list-map-keys"] == ["type"]
    version = crd.definition()["spec"]["versions"][0]
    assert version["subresources"] == {"status": {}}
    columns = {column["name"]: column["jsonPath"] for column in version["additionalPrinterColumns"]}
    assert set(columns) >= {"Phase", "Health", "Ready", "Capacity", "Used", "Version", "Age"}
    for path in columns.values():
        node = schema()["properties"] if path.startswith(".status") else None
        for part in path.strip(".").split(".") if node else ():
            assert node is not None
            node = node[part].get("properties", {}) if part in node else pytest.fail(f"{path} does not exist")


def test_kept_when_the_chart_goes() -> None:
    document = yaml.safe_load(crd.render())
    assert document["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"

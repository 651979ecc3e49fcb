"""`values.schema.json` of the curve-cluster chart: its `spec` is the resource's own, so a typo fails at install."""

from __future__ import annotations

import json
from typing import Any

from curve_operator import names
from curve_operator.models.schema import structural
from curve_operator.models.spec import ClusterSpec

STRING: dict[str, Any] = {"type": "string"}
STRINGS: dict[str, Any] = {"type": "object", "additionalProperties": {"type": "string"}}


def cluster_chart() -> dict[str, Any]:
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the curve-cluster chart",
        **_closed(
            {
                "global": {"type": "object"},
                "name": {
                    "type": "string",
                    "maxLength": names.MAX_CLUSTER_NAME,
                    "pattern": "^[a-z]([a-z0-9-]*[a-z0-9])?$",
                },
                "spec": _strict(structural(ClusterSpec)),
                "labels": STRINGS,
                "annotations": STRINGS,
                "driverName": STRING,
                "storageClasses": {
                    "type": "array",
                    "items": _closed(
                        {
                            "name": {"type": "string", "minLength": 1},
                            "default": {"type": "boolean"},
                            "reclaimPolicy": {"enum": ["Delete", "Retain"]},
                            "volumeBindingMode": {"enum": ["Immediate", "WaitForFirstConsumer"]},
                            "allowVolumeExpansion": {"type": "boolean"},
                            "mountOptions": {"type": "array", "items": STRING},
                            "parameters": STRINGS,
                        },
                        ["name"],
                    ),
                },
                "networkPolicy": _closed({"enabled": {"type": "boolean"}}),
                "monitoring": _closed(
                    {
                        "podMonitor": _closed(
                            {"enabled": {"type": "boolean"}, "interval": STRING, "labels": STRINGS},
                        )
                    }
                ),
            },
            ["name", "spec"],
        ),
    }


def render() -> str:
    return json.dumps(cluster_chart(), indent=2) + "\n"


def _closed(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    closed: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**closed, "required": required} if required else closed


def _strict(node: Any) -> Any:
    """The resource's schema as plain JSON schema: unknown fields refused, Kubernetes' extensions left out."""
    if isinstance(node, list):
        return [_strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    result = {key: _strict(value) for key, value in node.items() if not key.startswith("x-kubernetes-")}
    if "properties" in node and isinstance(node["properties"], dict) and node.get("type") == "object":
        result["properties"] = {name: _strict(child) for name, child in node["properties"].items()}
        result["additionalProperties"] = False
    return result

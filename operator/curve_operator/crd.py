"""The CustomResourceDefinition of `CurveCluster`, generated from the models.

`python -m curve_operator.crd [REPOSITORY]` writes it and what else follows from the models; a test fails on drift.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from curve_operator import names, values_schema
from curve_operator.models.schema import structural
from curve_operator.models.spec import ClusterSpec
from curve_operator.models.status import ClusterStatus

FILE = f"{names.GROUP}_{names.PLURAL}.yaml"
HEADER = "# Generated from the models of curve_operator: change those, then run `make crds`.\n"

COLUMNS = (
    ("Phase", "string", ".status.phase", 0),
    ("Health", "string", ".status.health", 0),
    ("Ready", "string", ".status.ready", 0),
    ("Capacity", "string", ".status.capacity.total", 0),
    ("Used", "string", ".status.capacity.used", 0),
    ("Version", "string", ".status.version", 0),
    ("Message", "string", ".status.message", 1),
    ("Age", "date", ".metadata.creationTimestamp", 0),
)


def definition() -> dict[str, Any]:
    schema = {
        "type": "object",
        "required": ["spec"],
        "description": "A Curve storage cluster: etcd, MDS and one chunkserver per disk",
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": structural(ClusterSpec),
            "status": structural(ClusterStatus, defaults=False),
        },
        "x-kubernetes-validations": [
            {
                "rule": f"size(self.metadata.name) <= {names.MAX_CLUSTER_NAME}",
                "message": f"a cluster's name has at most {names.MAX_CLUSTER_NAME} characters: "
                "the names of its pods are made from it",
            }
        ],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{names.PLURAL}.{names.GROUP}",
            "annotations": {"helm.sh/resource-policy": "keep"},
        },
        "spec": {
            "group": names.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": names.KIND,
                "listKind": f"{names.KIND}List",
                "plural": names.PLURAL,
                "singular": "curvecluster",
                "shortNames": ["curve"],
                "categories": ["storage"],
            },
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [
                        {"name": name, "type": kind, "jsonPath": path, **({"priority": priority} if priority else {})}
                        for name, kind, path, priority in COLUMNS
                    ],
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def render() -> str:
    return HEADER + yaml.safe_dump(definition(), sort_keys=False, width=110)


def files() -> dict[Path, str]:
    """Every generated file of the repository, by its path in it."""
    return {
        Path("crds") / FILE: render(),
        Path("charts/curve-operator/files") / FILE: render(),
        Path("charts/curve-cluster/values.schema.json"): values_schema.render(),
    }


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
    for path, text in files().items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
        print(root / path)


if __name__ == "__main__":
    main()

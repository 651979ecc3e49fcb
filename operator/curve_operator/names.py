"""Names and labels of everything the operator makes. Deterministic: the same resource always gets the same names."""

from __future__ import annotations

import hashlib
import re

GROUP = "operator.curve.io"
VERSION = "v1"
KIND = "CurveCluster"
PLURAL = "curveclusters"
FIELD_MANAGER = "curve-operator"
FINALIZER = f"{GROUP}/cluster-protection"

LABEL_COMPONENT = "app.kubernetes.io/component"
LABEL_INSTANCE = "app.kubernetes.io/instance"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_DAEMON = f"{GROUP}/daemon"
ANNOTATION_TEMPLATE = f"{GROUP}/template-hash"
ANNOTATION_ZONE = f"{GROUP}/zone"
ANNOTATION_NODE = f"{GROUP}/node"
ANNOTATION_PATH = f"{GROUP}/path"
ANNOTATION_KEYRING = f"{GROUP}/keyring"
ANNOTATION_CONFIRM = f"{GROUP}/confirm-deletion"
ANNOTATION_PAUSE = f"{GROUP}/pause"

MAX_CLUSTER_NAME = 30
MAX_WORKLOAD_NAME = 52
"""A StatefulSet's name with its revision hash must fit a label value of 63 characters."""

_BAD = re.compile(r"[^a-z0-9]+")


def slug(text: str) -> str:
    return _BAD.sub("-", text.lower()).strip("-")


def short_hash(text: str, length: int = 6) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def chunkserver_name(cluster: str, node: str, path: str) -> str:
    """Readable where it fits, with a hash of node and path always: two disks never get one name."""
    digest = short_hash(f"{node}\0{path}")
    room = MAX_WORKLOAD_NAME - len(f"{cluster}-cs--{digest}")
    readable = slug(f"{node}-{path.removeprefix('/dev/').rsplit('/', 1)[-1]}")[: max(room, 0)].strip("-")
    return "-".join(part for part in (cluster, "cs", readable, digest) if part)


def member_suffix(index: int) -> str:
    return "abcdefghij"[index]


def labels(cluster: str, component: str = "") -> dict[str, str]:
    base = {
        "app.kubernetes.io/name": "curve",
        LABEL_INSTANCE: cluster,
        LABEL_MANAGED_BY: FIELD_MANAGER,
    }
    return {**base, LABEL_COMPONENT: component} if component else base


def selector(cluster: str) -> str:
    return ",".join(f"{key}={value}" for key, value in labels(cluster).items())

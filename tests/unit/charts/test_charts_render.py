"""The charts: values fit their schemas, schemas refuse typos; with Helm at hand, variants render to sound objects."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
CHARTS = ROOT / "charts"
NAMES = ("curve-operator", "curve-cluster", "curve-csi")


def helm() -> str:
    cache = Path(os.environ.get("CURVE_CACHE") or Path.home() / ".cache" / "curve")
    for candidate in (os.environ.get("CURVE_HELM", ""), str(cache / "bin" / "helm"), shutil.which("helm") or ""):
        if candidate and Path(candidate).exists():
            return candidate
    pytest.skip("helm is not built: `python -m e2e.box tools`")


def values(chart: str) -> Any:
    return yaml.safe_load((CHARTS / chart / "values.yaml").read_text())


def schema(chart: str) -> Any:
    return json.loads((CHARTS / chart / "values.schema.json").read_text())


def render(chart: str, *settings: str) -> list[dict[str, Any]]:
    command = [helm(), "template", "release", str(CHARTS / chart), "--namespace", "curve"]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def pods(documents: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (document["metadata"]["name"], document["spec"]["template"]["spec"])
        for document in documents
        if document["kind"] in ("Deployment", "DaemonSet", "StatefulSet")
    ]


@pytest.mark.parametrize("chart", NAMES)
def test_values_fit_their_schema(chart: str) -> None:
    jsonschema.Draft7Validator.check_schema(schema(chart))
    jsonschema.validate(values(chart), schema(chart))


@pytest.mark.parametrize("chart", NAMES)
def test_every_value_is_described_by_the_schema(chart: str) -> None:
    def check(node: Any, described: Any, path: str) -> None:
        if not isinstance(node, dict) or not described.get("properties"):
            return
        for key, value in node.items():
            assert key in described["properties"], f"{path}.{key} is missing in values.schema.json"
            check(value, described["properties"][key], f"{path}.{key}")

    check(values(chart), schema(chart), chart)


@pytest.mark.parametrize(
    ("chart", "wrong"),
    [
        ("curve-operator", {"replica": 1}),
        ("curve-operator", {"replicas": 0}),
        ("curve-operator", {"image": {"repo": "x"}}),
        ("curve-cluster", {"spec": {"storge": {}}}),
        ("curve-cluster", {"spec": {"storage": {"pool": {"replicas": "three"}}}}),
        ("curve-cluster", {"storageClasses": [{"name": "x", "reclaimPolicy": "Keep"}]}),
        ("curve-csi", {"kubeletDir": "relative"}),
        ("curve-csi", {"keeper": {"updateStrategy": {"type": "RollingUpdate"}}}),
        ("curve-csi", {"csiDriver": {"fsGroupPolicy": "Always"}}),
    ],
)
def test_typos_are_refused(chart: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**values(chart), **wrong}, schema(chart))


@pytest.mark.parametrize("chart", NAMES)
def test_lint(chart: str) -> None:
    done = subprocess.run(
        [helm(), "lint", "--strict", str(CHARTS / chart)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("chart", NAMES)
def test_images_can_come_from_another_registry(chart: str) -> None:
    for _, spec in pods(render(chart, "global.imageRegistry=registry.local:5000")):
        for container in spec["containers"]:
            assert container["image"].startswith("registry.local:5000/"), container["image"]
            assert container["resources"]["requests"]
            assert container["imagePullPolicy"] == "IfNotPresent"


def test_crd_is_in_the_operator_chart_and_kept() -> None:
    found = [item for item in render("curve-operator") if item["kind"] == "CustomResourceDefinition"]
    assert len(found) == 1
    assert found[0]["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert not [
        item for item in render("curve-operator", "crds.enabled=false") if item["kind"] == "CustomResourceDefinition"
    ]


def test_operator_is_restricted_and_may_do_what_it_does() -> None:
    documents = render("curve-operator")
    ((_, spec),) = pods(documents)
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["containers"][0]["securityContext"]["readOnlyRootFilesystem"]
    rules = [rule for item in documents if item["kind"] in ("ClusterRole", "Role") for rule in item["rules"]]

    def allowed(group: str, resource: str, verb: str) -> bool:
        return any(
            group in rule["apiGroups"] and resource in rule["resources"] and verb in rule["verbs"] for rule in rules
        )

    from curve_operator.handlers import OWNED
    from curve_operator.kube import RESOURCES
    from curve_operator.observe import KINDS

    for api, kind in KINDS:
        group = api.rpartition("/")[0]
        for verb in ("list", "create", "patch"):
            assert allowed(group, RESOURCES[api, kind], verb), (kind, verb)
    for group, _, plural in OWNED:
        assert allowed(group, plural, "watch"), plural
    for verb in ("get", "create", "update"):
        assert allowed("coordination.k8s.io", "leases", verb)
    assert allowed("operator.curve.io", "curveclusters/status", "patch")
    for resource in ("nodes", "persistentvolumes", "pods"):
        assert allowed("", resource, "list")


def test_only_the_own_namespace() -> None:
    documents = render("curve-operator", "currentNamespaceOnly=true")
    ((_, spec),) = pods(documents)
    assert "--namespace=$(POD_NAMESPACE)" in spec["containers"][0]["args"]
    cluster_roles = [
        item for item in documents if item["kind"] == "ClusterRole" and item["metadata"]["name"].endswith("operator")
    ]
    assert [rule["resources"] for rule in cluster_roles[0]["rules"]] == [["nodes", "persistentvolumes"]]


def test_node_side() -> None:
    documents = render("curve-csi")
    sets = {item["metadata"]["name"]: item for item in documents if item["kind"] == "DaemonSet"}
    assert set(sets) == {"curve-csi-node", "curve-volumehost", "curve-keeper"}
    assert sets["curve-keeper"]["spec"]["updateStrategy"] == {"type": "OnDelete"}
    specs = {name: item["spec"]["template"]["spec"] for name, item in sets.items()}
    assert specs["curve-volumehost"]["hostPID"]
    assert not any(spec.get("hostNetwork") for spec in specs.values())
    mounts = {
        name: {mount["mountPath"]: mount.get("mountPropagation") for mount in spec["containers"][0]["volumeMounts"]}
        for name, spec in specs.items()
    }
    assert mounts["curve-csi-node"]["/var/lib/kubelet"] == "Bidirectional"
    assert mounts["curve-volumehost"]["/var/lib/curve"] == "Bidirectional"
    assert "/var/lib/curve/volumehost" in mounts["curve-keeper"]
    assert not specs["curve-keeper"]["containers"][0]["securityContext"].get("privileged")
    assert all(spec["tolerations"] == [{"operator": "Exists"}] for spec in specs.values())
    for name in ("curve-volumehost",):
        assert "limits" not in specs[name]["containers"][0]["resources"], "the kernel writes dirty pages through it"


def test_controller_is_unprivileged_and_shares_one_user_for_the_socket() -> None:
    spec = dict(pods(render("curve-csi")))["curve-csi-controller"]
    assert spec["securityContext"]["runAsUser"] == 10001
    assert [container["name"] for container in spec["containers"]] == ["driver", "provisioner", "attacher", "resizer"]
    for container in spec["containers"]:
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert "runAsUser" not in container["securityContext"]


def test_driver_object() -> None:
    (driver,) = [item for item in render("curve-csi") if item["kind"] == "CSIDriver"]
    assert driver["metadata"]["name"] == "block.csi.curve.io"
    assert driver["spec"]["attachRequired"] is True
    assert driver["spec"]["fsGroupPolicy"] == "File"


def test_configuration_of_the_volume_host_is_one_it_reads() -> None:
    from curve_storage.config import parse
    from curve_storage.volumehost.config import VolumeHostConfig

    (config,) = [
        item
        for item in render("curve-csi", "volumehost.config.watchdog=7")
        if item["kind"] == "ConfigMap" and item["metadata"]["name"] == "curve-volumehost"
    ]
    read = parse(VolumeHostConfig, yaml.safe_load(config["data"]["volumehost.yaml"]), where="chart")
    assert read.watchdog == 7
    assert str(read.client) == "/etc/curve/client.yaml"


@pytest.mark.parametrize("role", ["controller", "node"])
def test_command_lines_are_ones_the_driver_reads(role: str) -> None:
    from curve_csi.main import parse

    spec = dict(pods(render("curve-csi")))[f"curve-csi-{role}"]
    options = parse([role, *spec["containers"][0]["args"]])
    assert options.driver == "block.csi.curve.io"
    assert options.endpoint == "unix:///csi/csi.sock"


def test_default_storage_class_and_cluster() -> None:
    documents = render("curve-cluster", "storageClasses[0].default=true", "storageClasses[0].name=fast")
    classes = [item for item in documents if item["kind"] == "StorageClass"]
    assert classes[0]["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"] == "true"
    assert classes[0]["allowVolumeExpansion"] is True
    (cluster,) = [item for item in documents if item["kind"] == "CurveCluster"]
    from curve_operator.interpret import interpret

    cluster["metadata"]["uid"] = "u"
    assert interpret(cluster, default_image="i").problems == ()


@pytest.mark.parametrize("chart", NAMES)
def test_optional_parts_render(chart: str) -> None:
    monitor = {
        "curve-operator": "metrics.serviceMonitor.enabled",
        "curve-cluster": "monitoring.podMonitor.enabled",
        "curve-csi": "metrics.podMonitor.enabled",
    }[chart]
    kinds = {item["kind"] for item in render(chart, "networkPolicy.enabled=true", f"{monitor}=true")}
    assert {"NetworkPolicy", "PodMonitor"} <= kinds

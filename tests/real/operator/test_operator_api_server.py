"""The CRD in a real API server: upstream's samples apply unchanged, bad ones are refused with what to do, and a round
of the operator makes objects that the server accepts and that the next round finds as they should be."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from curve_operator import crd
from curve_operator.kube import Kube, connect
from curve_operator.reconcile import Reconciler

pytestmark = [pytest.mark.etcd, pytest.mark.timeout(300)]
START = 120.0


def program(name: str) -> str:
    cache = Path(os.environ.get("CURVE_CACHE") or Path.home() / ".cache" / "curve")
    for candidate in (os.environ.get(f"CURVE_{name.upper().replace('-', '_')}", ""), str(cache / "bin" / name)):
        if candidate and Path(candidate).exists():
            return candidate
    found = shutil.which(name)
    if found:
        return found
    pytest.skip(f"{name} is not built: `python -m e2e.box tools`")


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports


@pytest.fixture(scope="module")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    etcd, server = program("etcd"), program("kube-apiserver")
    folder = tmp_path_factory.mktemp("api-server")
    client, peer, port = free_ports(3)
    subprocess.run(["openssl", "genrsa", "-out", str(folder / "sa.key"), "2048"], check=True, capture_output=True)
    (folder / "tokens.csv").write_text("token,admin,admin,system:masters\n")
    endpoint = f"http://127.0.0.1:{client}"
    commands = [
        [etcd, f"--data-dir={folder}/etcd", f"--listen-client-urls={endpoint}", f"--advertise-client-urls={endpoint}",
         f"--listen-peer-urls=http://127.0.0.1:{peer}", f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
         f"--initial-cluster=default=http://127.0.0.1:{peer}", "--unsafe-no-fsync"],
        [server, f"--etcd-servers={endpoint}", f"--secure-port={port}", "--bind-address=127.0.0.1",
         f"--cert-dir={folder}/certs", f"--service-account-key-file={folder}/sa.key",
         f"--service-account-signing-key-file={folder}/sa.key", "--service-account-issuer=https://kubernetes.default.svc",
         f"--token-auth-file={folder}/tokens.csv", "--authorization-mode=RBAC", "--allow-privileged=true",
         "--service-cluster-ip-range=10.96.0.0/16", "--disable-admission-plugins=TaintNodesByCondition"],
    ]  # fmt: skip
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for number, command in enumerate(commands):
            with (folder / f"{number}.log").open("wb") as log:
                processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        path = folder / "kubeconfig"
        config = {
            "clusters": [
                {"name": "c", "cluster": {"server": f"https://127.0.0.1:{port}", "insecure-skip-tls-verify": True}}
            ],
            "users": [{"name": "u", "user": {"token": "token"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path.write_text(yaml.safe_dump(config))
        path_crd = folder / "crd.yaml"
        path_crd.write_text(crd.render())
        deadline = time.monotonic() + START
        while kubectl(path, "get", "--raw", "/readyz").returncode != 0:
            assert time.monotonic() < deadline, (folder / "1.log").read_text()[-2000:]
            assert all(process.poll() is None for process in processes), (folder / "1.log").read_text()[-2000:]
            time.sleep(0.5)
        done = kubectl(path, "apply", "-f", str(path_crd))
        assert done.returncode == 0, done.stderr
        done = kubectl(
            path, "wait", "--for=condition=Established", "crd/curveclusters.operator.curve.io", "--timeout=60s"
        )
        assert done.returncode == 0, done.stderr
        nodes = [{"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"node{index}"}} for index in range(3)]
        done = kubectl(path, "apply", "-f", "-", text="---\n".join(yaml.safe_dump(node) for node in nodes))
        assert done.returncode == 0, done.stderr
        yield path
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def kubectl(path: Path, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [program("kubectl"), f"--kubeconfig={path}", *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=90, check=False)


def resource(name: str, spec: Any) -> str:
    document = {
        "apiVersion": "operator.curve.io/v1",
        "kind": "CurveCluster",
        "metadata": {"name": name, "namespace": "default"},
        "spec": yaml.safe_load(spec) if isinstance(spec, str) else spec,
    }
    return json.dumps(document)


ONE_HOST = """
curveVersion: {image: "curve2operator/curvebs:monitor-v1.2.6", imagePullPolicy: IfNotPresent}
nodes: [curve-operator-node1]
hostDataDir: /curvebs
etcd: {peerPort: 23800, clientPort: 23790}
mds: {port: 6700, dummyPort: 7700}
storage:
  useSelectedNodes: false
  nodes: [curve-operator-node1]
  port: 8200
  copySets: 100
  devices:
  - {name: /dev/vdc, mountPath: /data/chunkserver0, percentage: 30}
  - {name: /dev/vdd, mountPath: /data/chunkserver1, percentage: 30}
snapShotClone:
  enable: false
  port: 5555
  s3Config: {ak: "<>", sk: "<>", nosAddress: "<>", bucketName: "<>"}
monitor: {enable: false, monitorHost: curve-operator-node1, prometheus: {listenPort: 9090, retentionTime: 7d}}
"""


def test_an_upstream_sample_applies_unchanged(kubeconfig: Path) -> None:
    done = kubectl(
        kubeconfig, "apply", "--dry-run=server", "--validate=strict", "-f", "-", text=resource("one", ONE_HOST)
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "spec", "words"),
    [
        ("bad", {"unknownField": 1}, 'unknown field "spec.unknownField"'),
        ("bad", {"etcd": {"count": 2}}, "supported values"),
        ("bad", {"dataDir": "/a", "hostDataDir": "/b"}, "give one"),
        ("bad", {"storage": {"useSelectedNodes": True}}, "list each node"),
        (
            "bad",
            {"storage": {"useAllNodes": True, "useSelectedNodes": True, "selectedNodes": [{"node": "a"}]}},
            "one of",
        ),
        ("bad", {"storage": {"directories": [{"path": "/d", "size": "1Gi", "percentage": 5}]}}, "not both"),
        ("bad", {"etcd": {"endpoints": ["a:1"], "volumeClaim": {}}}, "remove etcd.volumeClaim"),
        ("a" * 31, {}, "at most 30 characters"),
    ],
)
def test_bad_resources_are_refused_with_what_to_do(kubeconfig: Path, name: str, spec: Any, words: str) -> None:
    done = kubectl(kubeconfig, "apply", "--dry-run=server", "-f", "-", text=resource(name, spec))
    assert done.returncode != 0 and words in done.stderr, done.stderr


def test_what_is_fixed_stays_fixed(kubeconfig: Path) -> None:
    done = kubectl(kubeconfig, "apply", "-f", "-", text=resource("fixed", {"hostDataDir": "/a"}))
    assert done.returncode == 0, done.stderr
    patches: list[dict[str, Any]] = [
        {"tls": {"enabled": False}},
        {"hostDataDir": "/x"},
        {"etcd": {"count": 1}},
        {"etcd": {"endpoints": ["a:1"]}},
        {"storage": {"pool": {"replicas": 2}}},
        {"storage": {"pool": {"copysets": 9}}},
    ]
    for patch in patches:
        body = json.dumps({"spec": patch})
        done = kubectl(kubeconfig, "patch", "curvecluster", "fixed", "--type=merge", f"--patch={body}")
        assert done.returncode != 0 and "invalid" in done.stderr, patch
    allowed = json.dumps({"spec": {"dataDir": "/a", "hostDataDir": None, "storage": {"useAllNodes": True}}})
    done = kubectl(kubeconfig, "patch", "curvecluster", "fixed", "--type=merge", f"--patch={allowed}")
    assert done.returncode == 0, done.stderr


async def test_rounds_settle(kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every object is accepted as it is sent, and the server's own additions are no drift to the next round."""
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    spec = {
        "storage": {"useAllNodes": True, "directories": [{"path": "/d0", "size": "4Gi"}], "devices": [{"name": "vdc"}]}
    }
    done = await asyncio.to_thread(kubectl, kubeconfig, "apply", "-f", "-", text=resource("demo", spec))
    assert done.returncode == 0, done.stderr
    applied: list[str] = []
    original = Kube.apply

    async def counting(self: Kube, manifest: dict[str, Any], manager: str) -> dict[str, Any]:
        applied.append(f"{manifest['kind']} {manifest['metadata']['name']}")
        return await original(self, manifest, manager)

    monkeypatch.setattr(Kube, "apply", counting)
    async with connect() as kube:
        reconciler = Reconciler(kube, "curve:test", "test", lambda: True)
        try:
            for _ in range(4):
                await reconciler.round("default", "demo")
            assert len([item for item in applied if item.startswith("StatefulSet demo-cs-")]) == 6
            assert len([item for item in applied if item.startswith("StatefulSet demo-etcd-")]) == 3
            applied.clear()
            await reconciler.round("default", "demo")
            assert applied == [], "what the server stored is taken for drift"
            found = await kube.get("operator.curve.io/v1", "CurveCluster", "demo", "default")
            assert found is not None
            status = found["status"]
            assert status["phase"] == "Creating" and "etcd" in status["message"]
            reconciled = [item for item in status["conditions"] if item["type"] == "Reconciled"]
            assert reconciled[0]["status"] == "True", reconciled
            await kube.delete("operator.curve.io/v1", "CurveCluster", "demo", "default")
            await reconciler.round("default", "demo")
            assert await kube.get("operator.curve.io/v1", "CurveCluster", "demo", "default") is None
        finally:
            await reconciler.close()

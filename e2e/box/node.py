"""A node: its folders and what its daemons are told. Its process 1 is `node_init`."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.box import cgroups, network, pki
from e2e.box.command import run
from e2e.box.control_plane import API_URL
from e2e.box.network import NodeNetwork
from e2e.box.places import Places
from e2e.box.supervisor import ProcessSpec, with_parent

CONFIG = "/etc/curve-box"
PROGRAMS = "/opt/curve-box/bin"
LOGS = "/var/log/curve-box"
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
CNI_PROGRAMS = "/usr/lib/cni"
PAUSE_IMAGE = "localhost/pause:box"
NODE_INIT = Path(__file__).with_name("node_init.py")
# Where a node's data lies on the machine's file system itself rather than in the overlay.
BINDS = {
    "/var/lib/containerd": "containerd",
    "/var/lib/kubelet": "kubelet",
    "/var/lib/cni": "cni",
    "/var/log/pods": "pods",
    "/var/lib/curve": "curve",
    CONFIG: "config",
}


@dataclass(frozen=True)
class Node:
    places: Places
    net: NodeNetwork

    @property
    def name(self) -> str:
        return self.net.name

    @property
    def data(self) -> Path:
        return self.places.box / self.name

    @property
    def group(self) -> str:
        """Below the box's control group."""
        return f"node-{self.net.number}"

    @property
    def zone(self) -> str:
        return f"z{self.net.number}"

    def prepare(self, authority: pki.Authority, proxy_config: str) -> None:
        """The node's folders, credentials and configuration files, once per box. Image stores come from `seed`."""
        config = self.data / "config"
        (config / "cni").mkdir(parents=True)
        identity = authority.issue(f"system:node:{self.name}", "system:nodes", [self.name, self.net.address])
        identity.save(config, "kubelet")
        (config / "ca.crt").write_text(authority.certificate)
        pki.write_secret(config / "kubelet.conf", pki.kubeconfig(API_URL, authority.certificate, identity))
        pki.write_secret(config / "kube-proxy.conf", proxy_config)
        (config / "resolv.conf").write_text(f"nameserver {network.DNS_SERVICE}\n")
        (config / "containerd.toml").write_text(containerd_configuration())
        for file, content in {
            "cni/10-curve-box.conflist": cni_configuration(self.net),
            "kubelet.json": kubelet_configuration(self.group),
            "kube-proxy.json": proxy_configuration(self.name),
            "init.json": self._init_configuration(),
        }.items():
            (config / file).write_text(json.dumps(content, indent=1))

    def take_images(self, seed: Path) -> None:
        """Gives the node the seed's image store: hard links for what never changes, copies of the databases that do."""
        store = self.data / "containerd"
        # Launched so that it dies with this process: a copy outliving a killed start would race with `down`.
        run([*with_parent(), "cp", "--archive", "--link", "--no-target-directory", seed, store])
        for database in seed.rglob("*.db"):
            own = store / database.relative_to(seed)
            own.unlink()
            shutil.copy2(database, own)

    def process(self) -> ProcessSpec:
        unshare = [
            "unshare",
            "--mount",
            "--uts",
            "--ipc",
            "--pid",
            "--fork",
            "--kill-child",
            "--propagation",
            "private",
        ]
        init = [sys.executable, "-I", "-S", str(NODE_INIT), str(self.data / "config/init.json")]
        return ProcessSpec(
            name=self.name,
            command=[*unshare, "--", *init],
            log=str(self.places.logs / f"{self.name}.log"),
            cgroup=f"{cgroups.TOP}/{self.group}/system",
            netns=str(self.net.namespace),
            restart=False,
        )

    def _init_configuration(self) -> dict[str, Any]:
        environment = {
            "PATH": f"{PROGRAMS}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
        }

        def daemon(name: str, *arguments: str, socket: str = "") -> dict[str, Any]:
            command = [f"{PROGRAMS}/{name}", *arguments]
            return {"command": command, "env": environment, "log": f"{LOGS}/{self.name}-{name}.log", "socket": socket}

        return {
            "name": self.name,
            "address": self.net.address,
            "data": str(self.data),
            "binds": {
                **{target: str(self.data / source) for target, source in BINDS.items()},
                LOGS: str(self.places.logs),
            },
            "read_only_binds": {PROGRAMS: str(self.places.bin)},
            "daemons": [
                daemon("containerd", "--config", f"{CONFIG}/containerd.toml", socket=CONTAINERD_SOCKET),
                daemon(
                    "kubelet",
                    f"--config={CONFIG}/kubelet.json",
                    f"--kubeconfig={CONFIG}/kubelet.conf",
                    f"--hostname-override={self.name}",
                    f"--node-ip={self.net.address}",
                    f"--node-labels=topology.kubernetes.io/zone={self.zone}",
                    "--v=2",
                ),
                daemon("kube-proxy", f"--config={CONFIG}/kube-proxy.json", "--v=1"),
            ],
        }


def containerd_configuration() -> str:
    """containerd 2: overlay snapshots, runc from Debian, no AppArmor, and no lowering of oom_score_adj, which needs a
    capability.
    """
    return f"""version = 3
root = "/var/lib/containerd"
state = "/run/containerd"

[grpc]
  address = "{CONTAINERD_SOCKET}"

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{PAUSE_IMAGE}"

[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{CNI_PROGRAMS}"]
    conf_dir = "{CONFIG}/cni"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = "/usr/sbin/runc"
      SystemdCgroup = false
"""


def cni_configuration(net: NodeNetwork) -> dict[str, Any]:
    ranges = [[{"subnet": net.pods}]]
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]},
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, ports]}


def kubelet_configuration(group: str) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroups.TOP}/{group}",
        "kubeletCgroups": f"/{cgroups.TOP}/{group}/system",
        "cgroupsPerQOS": True,
        "enforceNodeAllocatable": ["none"],
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "oomScoreAdj": 0,
        "failSwapOn": False,
        # Images cannot be fetched again: they are never collected.
        "imageGCHighThresholdPercent": 100,
        # Amounts, not shares: with a percentage a large disk that others fill would count as full long before it is.
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "200Mi",
            "imagefs.available": "200Mi",
        },
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{CONFIG}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{CONFIG}/kubelet.crt",
        "tlsPrivateKeyFile": f"{CONFIG}/kubelet.key",
        "nodeStatusUpdateFrequency": "2s",
        "nodeLeaseDurationSeconds": 10,
        "syncFrequency": "5s",
        "serializeImagePulls": False,
        "resolvConf": f"{CONFIG}/resolv.conf",
        "clusterDNS": [network.DNS_SERVICE],
        "clusterDomain": "cluster.local",
    }


def proxy_configuration(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clusterCIDR": network.POD_NETWORK,
        "clientConnection": {"kubeconfig": f"{CONFIG}/kube-proxy.conf"},
        "hostnameOverride": name,
        # Nonzero would make it set a connection-tracking limit of the whole kernel.
        "conntrack": {"maxPerCore": 0},
        "metricsBindAddress": "127.0.0.1:10249",
        "healthzBindAddress": "127.0.0.1:10256",
    }

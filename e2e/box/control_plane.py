"""The control plane: what its programs are told. Credentials lie in one folder, made by `write_credentials`."""

from __future__ import annotations

from pathlib import Path

from e2e.box import network, pki
from e2e.box.places import NAME, Places
from e2e.box.supervisor import ProcessSpec

API_PORT = 6443
API_URL = f"https://{network.CONTROL_PLANE}:{API_PORT}"
CGROUP = f"{NAME}/control-plane"
ETCD_URL = "http://127.0.0.1:2379"
CLIENTS = {
    "controller-manager": "system:kube-controller-manager",
    "scheduler": "system:kube-scheduler",
    "kube-proxy": "system:kube-proxy",
}


def write_credentials(folder: Path) -> tuple[pki.Authority, pki.Credential]:
    """Everything the control plane presents and trusts; returns the cluster's authority and the administrator."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority, front = pki.Authority("curve-box"), pki.Authority("curve-box-front-proxy")
    authority.credential.save(folder, "ca")
    front.credential.save(folder, "front-ca")
    service = "kubernetes.default.svc.cluster.local"
    names = [service.rsplit(".", cut)[0] if cut else service for cut in range(5)]
    addresses = [network.CONTROL_PLANE, network.API_SERVICE, "127.0.0.1", "localhost"]
    authority.issue("kube-apiserver", alternatives=[*addresses, *names]).save(folder, "apiserver")
    authority.issue("kube-apiserver-kubelet-client", "system:masters").save(folder, "kubelet-client")
    front.issue("front-proxy-client").save(folder, "front-proxy")
    pki.save_signing_key(folder, "service-accounts")
    for file, user in CLIENTS.items():
        client = authority.issue(user)
        pki.write_secret(folder / f"{file}.conf", pki.kubeconfig(API_URL, authority.certificate, client))
    return authority, authority.issue("curve-box-admin", "system:masters")


def processes(places: Places, credentials: Path) -> list[ProcessSpec]:
    """In the order in which they are started."""
    commands = [
        _etcd(places),
        _apiserver(places, credentials),
        _manager(places, credentials),
        _scheduler(places, credentials),
    ]
    return [
        ProcessSpec(
            name=Path(command[0]).name,
            command=command,
            log=str(places.logs / f"{Path(command[0]).name}.log"),
            cgroup=CGROUP,
            netns=str(network.control_plane_namespace()),
        )
        for command in commands
    ]


def _flags(values: dict[str, object]) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items()]


def _etcd(places: Places) -> list[str]:
    return [
        str(places.bin / "etcd"),
        *_flags(
            {
                "data-dir": places.box / "etcd",
                "listen-client-urls": ETCD_URL,
                "advertise-client-urls": ETCD_URL,
                "listen-peer-urls": "http://127.0.0.1:2380",
                # The box does not outlive a power cut; its pods' own data is synced as ever.
                "unsafe-no-fsync": "true",
                "log-level": "warn",
            }
        ),
    ]


def _apiserver(places: Places, credentials: Path) -> list[str]:
    return [
        str(places.bin / "kube-apiserver"),
        *_flags(
            {
                "etcd-servers": ETCD_URL,
                "advertise-address": network.CONTROL_PLANE,
                "secure-port": API_PORT,
                "allow-privileged": "true",
                "service-cluster-ip-range": network.SERVICE_NETWORK,
                "authorization-mode": "Node,RBAC",
                "enable-admission-plugins": "NodeRestriction",
                "client-ca-file": credentials / "ca.crt",
                "tls-cert-file": credentials / "apiserver.crt",
                "tls-private-key-file": credentials / "apiserver.key",
                "kubelet-client-certificate": credentials / "kubelet-client.crt",
                "kubelet-client-key": credentials / "kubelet-client.key",
                "kubelet-certificate-authority": credentials / "ca.crt",
                "kubelet-preferred-address-types": "InternalIP",
                "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
                "service-account-key-file": credentials / "service-accounts.pub",
                "service-account-signing-key-file": credentials / "service-accounts.key",
                "requestheader-client-ca-file": credentials / "front-ca.crt",
                "requestheader-allowed-names": "front-proxy-client",
                "requestheader-username-headers": "X-Remote-User",
                "requestheader-group-headers": "X-Remote-Group",
                "requestheader-extra-headers-prefix": "X-Remote-Extra-",
                "proxy-client-cert-file": credentials / "front-proxy.crt",
                "proxy-client-key-file": credentials / "front-proxy.key",
                # The control plane runs no kube-proxy: webhooks and aggregated APIs are reached at their pods.
                "enable-aggregator-routing": "true",
                "v": 1,
            }
        ),
    ]


def _manager(places: Places, credentials: Path) -> list[str]:
    config = credentials / "controller-manager.conf"
    return [
        str(places.bin / "kube-controller-manager"),
        *_flags(
            {
                "kubeconfig": config,
                "authentication-kubeconfig": config,
                "authorization-kubeconfig": config,
                "use-service-account-credentials": "true",
                "service-account-private-key-file": credentials / "service-accounts.key",
                "root-ca-file": credentials / "ca.crt",
                "cluster-signing-cert-file": credentials / "ca.crt",
                "cluster-signing-key-file": credentials / "ca.key",
                "allocate-node-cidrs": "false",
                "leader-elect": "false",
                "node-monitor-grace-period": "20s",
                "attach-detach-reconcile-sync-period": "5s",
                "v": 1,
            }
        ),
    ]


def _scheduler(places: Places, credentials: Path) -> list[str]:
    config = credentials / "scheduler.conf"
    return [
        str(places.bin / "kube-scheduler"),
        *_flags(
            {
                "kubeconfig": config,
                "authentication-kubeconfig": config,
                "authorization-kubeconfig": config,
                "leader-elect": "false",
                "v": 1,
            }
        ),
    ]

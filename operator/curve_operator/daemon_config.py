"""The daemons' configuration files and etcd's command line, from settings. Pure."""

from __future__ import annotations

from typing import Any

import yaml

from curve_operator.placement import Slot
from curve_operator.settings import Settings

DATA = "/data"
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
MAX_PERCENT = 95
"""The rest of a disk is for the log and for copysets' state."""
TLS = {"ca": "/etc/curve/tls/ca.crt", "cert": "/etc/curve/tls/tls.crt", "key": "/etc/curve/tls/tls.key"}
ETCD_TLS = {
    "ca": "/etc/curve-etcd-tls/ca.crt",
    "cert": "/etc/curve-etcd-tls/tls.crt",
    "key": "/etc/curve-etcd-tls/tls.key",
}
KEYRING = "/etc/curve/keyring/keyring.json"


def mds_yaml(settings: Settings) -> str:
    etcd: dict[str, Any] = {"endpoints": settings.etcd_endpoints}
    if settings.etcd.external:
        etcd["prefix"] = f"/curve/{settings.namespace}/{settings.name}/"
        if settings.etcd.external_secret:
            etcd["tls"] = ETCD_TLS
    elif settings.tls:
        etcd["tls"] = TLS
    config: dict[str, Any] = {
        "name": settings.mds_service,
        "listen": f"0.0.0.0:{settings.mds.port}",
        "advertise": settings.mds_addresses[0],
        "http": f"0.0.0.0:{settings.mds.http_port}",
        "etcd": etcd,
        "keyring": KEYRING,
        "log_level": settings.log_level,
    }
    if settings.tls:
        config["tls"] = TLS
    if settings.storage.copysets_per_chunkserver:
        config["copysets_per_chunkserver"] = settings.storage.copysets_per_chunkserver
    return dump(merge(config, settings.mds.pods.config))


def chunkserver_yaml(settings: Settings, slot: Slot) -> str:
    config: dict[str, Any] = {
        "name": slot.name,
        "data": f"{DATA}/store",  # beside the marker that `disk prepare` leaves
        "listen": f"0.0.0.0:{settings.storage.port}",
        "advertise": f"127.0.0.1:{settings.storage.port}",
        "http": f"0.0.0.0:{settings.storage.http_port}",
        "mds": settings.mds_addresses,
        "server": slot.server,
        "zone": slot.zone,
        "physical_pool": settings.storage.pool.name,
        "keyring": KEYRING,
        "log_level": settings.log_level,
    }
    if slot.disk.size:
        config["pool"] = {"size": slot.disk.size}
    elif slot.disk.percent:
        config["pool"] = {"size": f"{min(slot.disk.percent, MAX_PERCENT)}%"}
    if settings.tls:
        config["tls"] = TLS
    return dump(merge(config, settings.storage.pods.config))


def client_yaml(settings: Settings) -> str:
    config: dict[str, Any] = {"mds": settings.mds_addresses}
    if settings.tls:
        config["tls"] = TLS
    return dump(config)


def etcd_command(settings: Settings, index: int) -> list[str]:
    etcd = settings.etcd
    scheme = "https" if settings.tls else "http"
    peers = ",".join(
        f"{settings.etcd_member(number)}={scheme}://{settings.etcd_host(number)}:{etcd.peer_port}"
        for number in range(etcd.count)
    )
    host = settings.etcd_host(index)
    flags: dict[str, Any] = {
        "name": settings.etcd_member(index),
        "data-dir": "/var/lib/etcd/member",
        "listen-peer-urls": f"{scheme}://0.0.0.0:{etcd.peer_port}",
        "listen-client-urls": f"{scheme}://0.0.0.0:{etcd.client_port}",
        "listen-metrics-urls": "http://0.0.0.0:2381",
        "initial-advertise-peer-urls": f"{scheme}://{host}:{etcd.peer_port}",
        "advertise-client-urls": f"{scheme}://{host}:{etcd.client_port}",
        "initial-cluster": peers,
        "initial-cluster-state": "new",
        "initial-cluster-token": f"{settings.namespace}-{settings.name}",
        "auto-compaction-mode": "periodic",
        "auto-compaction-retention": "1h",
        "quota-backend-bytes": str(8 << 30),
        "heartbeat-interval": "200",
        "election-timeout": "2000",
    }
    if settings.tls:
        for prefix in ("", "peer-"):
            flags[f"{prefix}cert-file"] = TLS["cert"]
            flags[f"{prefix}key-file"] = TLS["key"]
            flags[f"{prefix}trusted-ca-file"] = TLS["ca"]
            flags[f"{prefix}client-cert-auth"] = "true"
    for key, value in etcd.pods.config.items():
        flags[key.lower().replace("_", "-").lstrip("-")] = value
    return ["etcd", *(f"--{key}={value}" for key, value in flags.items())]


def merge(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """`extra` wins, section by section."""
    result = dict(base)
    for key, value in extra.items():
        present = result.get(key)
        result[key] = merge(present, value) if isinstance(present, dict) and isinstance(value, dict) else value
    return result


def dump(config: dict[str, Any]) -> str:
    text: str = yaml.dump(config, Dumper=_DUMPER, sort_keys=False)
    return text

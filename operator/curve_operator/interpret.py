"""A resource as users write it, in any generation of spellings → `Settings`, with notes and problems in plain words."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from curve_operator import names
from curve_operator.models.spec import ClusterSpec, Daemon, Device, Directory, Storage
from curve_operator.settings import (
    DiskRequest,
    EtcdSettings,
    MdsSettings,
    NodeRequest,
    Settings,
    StorageSettings,
    options_of,
)
from curve_storage.errors import InvalidArgument

DEFAULT_DATA_DIR = "/var/lib/curve"
DEFAULT_ETCD_IMAGE = "quay.io/coreos/etcd:v3.6.5"
MDS_HTTP_PORT = 6701

_EARLIER_IMAGE = re.compile(r"(^|/)(opencurvedocker|curve2operator|curve)/curvebs:")
_SECTION = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$")

T = TypeVar("T")


def interpret(resource: Mapping[str, Any], *, default_image: str) -> Settings:
    """Raises InvalidArgument only when the resource does not fit the model at all; bad combinations are `problems`."""
    metadata = resource["metadata"]
    try:
        spec = ClusterSpec.model_validate(resource.get("spec") or {})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidArgument(
            f"spec.{field}: {first['msg']}",
            where=f"CurveCluster {metadata['namespace']}/{metadata['name']}",
            todo="Correct the field with kubectl edit or kubectl apply",
        ) from error
    return _Reader(spec, default_image).settings(metadata)


class _Reader:
    def __init__(self, spec: ClusterSpec, default_image: str) -> None:
        self.spec = spec
        self.default_image = default_image
        self.notes: list[str] = []
        self.problems: list[str] = []
        self.common = Daemon(placement=spec.placement)

    def settings(self, metadata: Mapping[str, Any]) -> Settings:
        spec = self.spec
        annotations = metadata.get("annotations") or {}
        wipe = (spec.cleanup_confirm or "").lower() == "confirm"
        version = spec.curve_version
        settings = Settings(
            name=metadata["name"],
            namespace=metadata["namespace"],
            uid=metadata["uid"],
            generation=metadata.get("generation", 0),
            image=self._image(),
            pull_policy=spec.image_pull_policy or (version and version.image_pull_policy) or "IfNotPresent",
            pull_secrets=tuple(spec.image_pull_secrets or ()),
            nodes=tuple(dict.fromkeys(spec.nodes or ())),
            data_dir=self._data_dir(),
            tls=spec.tls.enabled,
            log_level=spec.log_level,
            confirm_deletion=wipe or annotations.get(names.ANNOTATION_CONFIRM) == metadata["name"],
            wipe_data=wipe,
            paused=annotations.get(names.ANNOTATION_PAUSE, "").lower() in ("true", "yes", "1"),
            etcd=self._etcd(),
            mds=self._mds(),
            storage=self._storage(),
        )
        self._unused()
        if len(settings.name) > names.MAX_CLUSTER_NAME:
            self.problems.append(f"the name has {len(settings.name)} characters: use at most {names.MAX_CLUSTER_NAME}")
        return replace(settings, notes=tuple(dict.fromkeys(self.notes)), problems=tuple(dict.fromkeys(self.problems)))

    def _image(self) -> str:
        if self.spec.image:
            return self.spec.image
        older = self.spec.curve_version.image if self.spec.curve_version else None
        if older and _EARLIER_IMAGE.search(older):
            self.notes.append(
                f"curveVersion.image {older} is of the earlier C++ daemons: {self.default_image} is used. "
                "Set spec.image to choose another"
            )
            return self.default_image
        return older or self.default_image

    def _data_dir(self) -> str:
        spec = self.spec
        chosen = self._one_of(
            "dataDir", spec.data_dir, ("hostDataDir", spec.host_data_dir), ("dataDirHostPath", spec.data_dir_host_path)
        )
        return (chosen or DEFAULT_DATA_DIR).rstrip("/") or "/"

    def _one_of(self, name: str, value: T | None, *others: tuple[str, T | None]) -> T | None:
        """The present spelling, or an older one with a note; both with different values is a problem."""
        chosen = value
        for other, older in others:
            if older is None:
                continue
            if chosen is None:
                chosen = older
                self.notes.append(f"{other} is an older spelling of {name}")
            elif chosen != older:
                self.problems.append(f"{name} is {chosen} and {other} is {older}: give one of them")
        return chosen

    def _config(self, where: str, *maps: Mapping[str, str] | None) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for entries in maps:
            for key, text in (entries or {}).items():
                if not _SECTION.match(key):
                    self.problems.append(f"{where}.config: {key!r} is not a key: write words joined by dots")
                    continue
                try:
                    value = yaml.safe_load(text)
                except yaml.YAMLError:
                    self.problems.append(f"{where}.config.{key}: {text!r} is not valid YAML")
                    continue
                node = result
                *sections, last = key.split(".")
                for section in sections:
                    node = node.setdefault(section, {})
                node[last] = value
        return result

    def _etcd(self) -> EtcdSettings:
        etcd = self.spec.etcd
        external = tuple(etcd.endpoints or ())
        peer = etcd.port if etcd.port else etcd.peer_port
        client = etcd.listen_port if etcd.listen_port else etcd.client_port
        if peer == client:
            self.problems.append(f"etcd.peerPort and etcd.clientPort are both {peer}: give two ports")
        if etcd.tls_secret_name and not external:
            self.problems.append("etcd.tlsSecretName is for an existing etcd: give etcd.endpoints too, or remove it")
        if etcd.config:
            self.notes.append("etcd.config becomes etcd's command-line flags")
        return EtcdSettings(
            external=external,
            external_secret=etcd.tls_secret_name or "",
            count=etcd.count,
            image=etcd.image or DEFAULT_ETCD_IMAGE,
            client_port=client,
            peer_port=peer,
            claim=etcd.volume_claim.model_dump(exclude_none=True) if etcd.volume_claim else None,
            pods=options_of(etcd, self.common, dict(etcd.config or {})),
        )

    def _mds(self) -> MdsSettings:
        mds = self.spec.mds
        http = self._one_of("mds.httpPort", mds.http_port, ("mds.dummyPort", mds.dummy_port)) or MDS_HTTP_PORT
        if http == mds.port:
            self.problems.append(f"mds.port and mds.httpPort are both {http}: give two ports")
        return MdsSettings(
            count=mds.instances or mds.count,
            port=mds.port,
            http_port=http,
            pods=options_of(mds, self.common, self._config("mds", mds.config)),
        )

    def _storage(self) -> StorageSettings:
        storage = self.spec.storage
        older = self.spec.chunkserver
        copysets = self._one_of(
            "storage.copySets",
            storage.copy_sets,
            ("storage.copysets", storage.copysets),
            ("copysets", self.spec.copysets),
        )
        port = storage.port
        if older and older.port and older.port != port:
            port = older.port
            self.notes.append("chunkserver.port is an older spelling of storage.port")
        if port == storage.http_port:
            self.problems.append(f"storage.port and storage.httpPort are both {port}: give two ports")
        disks = self._disks("storage", storage.devices, storage.directories)
        if older and not disks and not storage.selected_nodes:
            base = self._data_dir_quiet()
            disks = tuple(
                DiskRequest(f"{base}/chunkserver{index}", device=False) for index in range(older.instances or 1)
            )
            self.notes.append(f"chunkserver.instances: {len(disks)} directories under {base} on each node")
        requests = self._requests(storage, disks)
        if not storage.use_all_nodes and not requests:
            self.problems.append(
                "no storage nodes: list them in storage.nodes or storage.selectedNodes, or set storage.useAllNodes"
            )
        if not disks and not any(request.disks for request in requests):
            self.problems.append(
                "no disks: list block devices in storage.devices or directories in storage.directories "
                "(on each node), or per node in storage.selectedNodes"
            )
        pool = storage.pool
        if (pool.zones or pool.replicas) > pool.replicas:
            self.problems.append(
                f"storage.pool.zones {pool.zones} exceeds replicas {pool.replicas}: give at most replicas"
            )
        return StorageSettings(
            all_nodes=storage.use_all_nodes,
            node_selector=dict(storage.node_selector or {}),
            requests=requests,
            disks=disks,
            port=port,
            http_port=storage.http_port,
            copysets_per_chunkserver=copysets or 0,
            wipe_devices=storage.wipe_devices,
            pool=pool,
            pods=options_of(
                storage,
                self.common,
                self._config("storage", older.config if older else None, storage.config),
            ),
        )

    def _data_dir_quiet(self) -> str:
        spec = self.spec
        return (spec.data_dir or spec.host_data_dir or spec.data_dir_host_path or DEFAULT_DATA_DIR).rstrip("/")

    def _requests(self, storage: Storage, disks: tuple[DiskRequest, ...]) -> tuple[NodeRequest, ...]:
        selected = {item.node: item for item in storage.selected_nodes or ()}
        if len(selected) < len(storage.selected_nodes or ()):
            self.problems.append("storage.selectedNodes names a node twice: give each node one entry")
        if storage.use_selected_nodes or (selected and not storage.nodes and not storage.use_all_nodes):
            chosen = list(selected)
        elif storage.use_all_nodes:
            chosen = list(selected)  # entries refine single nodes; the others come from the cluster
        else:
            chosen = list(dict.fromkeys(storage.nodes or self.spec.nodes or ()))
        requests = []
        for node in chosen:
            entry = selected.get(node)
            own = self._disks(f"storage.selectedNodes[{node}]", entry.devices, entry.directories) if entry else ()
            requests.append(NodeRequest(node, (entry and entry.zone) or "", own or disks))
        return tuple(requests)

    def _disks(
        self, where: str, devices: list[Device] | None, directories: list[Directory] | None
    ) -> tuple[DiskRequest, ...]:
        found: dict[str, DiskRequest] = {}
        for device in devices or ():
            path = device.name if device.name.startswith("/") else f"/dev/{device.name}"
            if not path.startswith("/dev/"):
                self.problems.append(f"{where}.devices: {path} is not under /dev: use directories for a directory")
                continue
            if path in found:
                self.problems.append(f"{where}.devices: {path} is listed twice: list it once")
            found[path] = DiskRequest(path, device=True, percent=device.percentage)
        for directory in directories or ():
            path = directory.path.rstrip("/")
            if path in ("", "/etc", "/usr", "/var", "/proc", "/sys", "/dev", "/root", "/home"):
                self.problems.append(
                    f"{where}.directories: {directory.path} belongs to the system: use a folder of its own"
                )
                continue
            if path in found:
                self.problems.append(f"{where}.directories: {path} is listed twice: list it once")
            found[path] = DiskRequest(path, device=False, percent=directory.percentage or 0, size=directory.size or "")
        paths = sorted(item.path for item in found.values() if not item.device)
        for shorter, longer in itertools.pairwise(paths):
            if longer.startswith(shorter + "/"):
                self.problems.append(f"{where}.directories: {longer} lies inside {shorter}: give separate directories")
        return tuple(found.values())

    def _unused(self) -> None:
        spec = self.spec
        clone = spec.snap_shot_clone or spec.snapshotclone
        if clone and clone.enable:
            self.notes.append("snapShotClone.enable is not acted on: this version has no snapshot service yet")
        if clone and any(config and (config.ak or config.sk) for config in (clone.s3_config, clone.s3)):
            self.notes.append(
                "snapShotClone holds S3 keys in clear text, readable by everyone who may read the resource"
            )
        if spec.monitor and spec.monitor.enable:
            self.notes.append("monitor.enable is not acted on: scrape the daemons by the charts' ServiceMonitor")
        if spec.log_dir or spec.log_dir_host_path:
            self.notes.append("logDir is not used: daemons log to standard error, read them with kubectl logs")
        devices = [*(spec.storage.devices or ())]
        if any(device.mount_path for device in devices):
            self.notes.append("devices[].mountPath is not used: the disk is mounted inside its pod only")

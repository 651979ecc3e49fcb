"""The box: a real Kubernetes of several nodes on this machine. `Box` is what tests and the command line use."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from curve_storage.errors import Aborted, DeadlineExceeded, FailedPrecondition, NotFound
from e2e.box import cgroups, control_plane, dockerfile, images, machine, network, packages, pki
from e2e.box.command import Argument, CommandFailed, run
from e2e.box.control import Control, start_supervisor
from e2e.box.gobuild import GoBuilder
from e2e.box.images import Archive
from e2e.box.network import NodeNetwork
from e2e.box.node import Node
from e2e.box.node_operations import BoxNode
from e2e.box.places import MANIFESTS, Places
from e2e.box.progress import Progress
from e2e.box.seed import Seed
from e2e.box.state import State, StateFile, boot_id, cache_in_use, sole_operation, start_time
from e2e.box.sweep import sweep

API_PORT = 16443
API_PATIENCE = 120.0
NODE_PATIENCE = 180.0
SUPERVISOR_GROUP = "supervisor"


class Box:
    """The one box of this machine. Every method may be called from any process that is root."""

    def __init__(self, places: Places | None = None, progress: Progress | None = None) -> None:
        self._given = places or Places.default()
        self._progress = progress or Progress()
        self._file = StateFile(self._given.state)

    # Life

    def up(self, nodes: int = 3, *, product: bool = True, room: int = 0) -> None:
        """Starts the box, or brings a running one up to date, and returns when it can be used.

        product: also build the image of the product's present code. room: bytes that what will run in a new box takes
        on the machine's disk. Raises a CurveError that names what to do; what was started until then stays for a look
        at its logs, and `down` removes it.
        """
        with sole_operation():
            machine.check(self._given, 0 if self.running() else room)
            packages.ensure(self._progress)
            GoBuilder(self._given, self._progress).ensure()
            archives, seed = self._images(product)
            state = self._file.load()
            if state is None or state.phase != "up" or state.supervisor_pid() is None:
                self._remove_leftovers(state)
                self._start(nodes, archives, seed)
            else:
                self._load_changed(archives)
            self._await_ready()

    def down(self) -> None:
        """Takes the box down, whatever state it is in, and leaves only caches and logs. Raises Aborted when something
        stays.
        """
        with sole_operation():
            state = self._file.load()
            with self._progress.step("taking the box down"):
                complaints = sweep(self._given, state)
        if complaints:
            raise Aborted("; ".join(complaints), where="box", todo="End what uses it, then run `down` again.")

    def exists(self) -> bool:
        """Whether there is anything to take down."""
        return self._file.load() is not None or bool(network.namespaces()) or bool(cgroups.processes())

    def running(self) -> bool:
        state = self._file.load()
        return state is not None and state.phase == "up" and state.supervisor_pid() is not None

    # Use

    @property
    def places(self) -> Places:
        """Of the running box, which another checkout may have started."""
        state = self._file.load()
        return state.places if state else self._given

    @property
    def kubeconfig(self) -> Path:
        """Leads to the box from the machine, through loopback; for any kubectl."""
        return self.places.kubeconfig

    def kubectl(self, *arguments: Argument, stdin: str | None = None, timeout: float = 120.0) -> str:
        """Standard output of kubectl. Raises CommandFailed with its complaint."""
        return run(self.command("kubectl", *arguments), stdin=stdin, timeout=timeout, env=self.environment())

    def get(self, *arguments: Argument) -> Any:
        """`kubectl get … -o json`, decoded."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def apply(self, *documents: Mapping[str, Any], server_side: bool = True) -> None:
        """Applies objects."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(documents)}
        flags = ["--server-side", "--force-conflicts"] if server_side else []
        self.kubectl("apply", *flags, "-f", "-", stdin=json.dumps(listed))

    def helm(self, *arguments: Argument, timeout: float = 300.0) -> str:
        """Standard output of helm."""
        return run(self.command("helm", *arguments), timeout=timeout, env=self.environment())

    def command(self, program: str, *arguments: Argument) -> list[str]:
        """The full command line of one of the box's programs."""
        return [str(self.places.bin / program), *map(str, arguments)]

    def environment(self) -> dict[str, str]:
        """Variables under which kubectl and helm reach the box. Raises FailedPrecondition when there is none."""
        if not self.kubeconfig.exists():
            raise FailedPrecondition("the box is not up", where="box", todo="Run `python -m e2e.box up`.")
        return {"KUBECONFIG": str(self.kubeconfig)}

    def load_image(self, archive: Path) -> None:
        """Gives an OCI archive to every node that is on."""
        for node in self.nodes():
            if node.running():
                node.load_image(archive)

    def refresh_images(self) -> list[str]:
        """Builds the images whose sources changed, gives them to the nodes, and returns their names."""
        with sole_operation():
            archives, _ = self._images(product=True)
            return self._load_changed(archives)

    def nodes(self) -> list[BoxNode]:
        state = self._running_state()
        nodes = _nodes(state)
        return [BoxNode(node, nodes, Control(self._given.control)) for node in nodes]

    def node(self, name: str) -> BoxNode:
        """By its name, `curve-box-2`, or its number, `2`. Raises NotFound."""
        for node in self.nodes():
            if name in (node.name, node.name.rpartition("-")[2]):
                return node
        known = ", ".join(node.name for node in self.nodes())
        raise NotFound("no such node", where=name, todo=f"Known are: {known}.")

    def processes(self) -> list[dict[str, Any]]:
        """What the supervisor runs."""
        self._running_state()
        return Control(self._given.control).processes()

    def wait(self, what: str, done: Callable[[], object], patience: float = 120.0, every: float = 0.25) -> None:
        """Polls until `done` returns something true; a failing kubectl counts as not yet. Raises DeadlineExceeded."""
        end = time.monotonic() + patience
        reason = ""
        with self._progress.step(what) as step:
            while True:
                try:
                    if done():
                        return
                except CommandFailed as error:
                    reason = step.detail = error.what.splitlines()[-1][:160]
                if time.monotonic() > end:
                    last = f"; last seen: {reason}" if reason else ""
                    raise DeadlineExceeded(f"not within {patience:.0f} s{last}", where=what, todo="Look at `box logs`.")
                time.sleep(every)

    # Starting

    def _images(self, product: bool) -> tuple[list[Archive], Path]:
        """Archives of all images, and the seed that holds them."""
        with cache_in_use(self._given):
            archives = images.go_archives(self._given, self._progress)
            targets = [target for target in dockerfile.TARGETS if product or target.reference != images.PRODUCT]
            archives += dockerfile.archives(self._given, self._progress, targets)
            return archives, Seed(self._given, self._progress).ensure(archives)

    def _remove_leftovers(self, state: State | None) -> None:
        if state is None and not self.exists():
            return
        with self._progress.step("removing what is left of an earlier box"):
            if complaints := sweep(self._given, state):
                raise Aborted("; ".join(complaints), where="box", todo="End what uses it, then run `down`.")

    def _start(self, count: int, archives: Sequence[Archive], seed: Path) -> None:
        places = self._given
        state = self._file.save(State(cache=str(places.cache), boot=boot_id(), nodes=count))
        with self._progress.step("namespaces, certificates, image stores"):
            run(["rm", "-rf", "--one-file-system", places.logs])
            places.logs.mkdir(parents=True)
            self._raise_sysctls()
            nodes = _nodes(state)
            cgroups.create(SUPERVISOR_GROUP)
            cgroups.create("control-plane")
            network.create_control_plane()
            supervisor = start_supervisor(
                places.control, places.logs / "supervisor.log", f"{cgroups.TOP}/{SUPERVISOR_GROUP}"
            )
            self._file.update(supervisor=(supervisor, start_time(supervisor)))
            credentials = places.box / "credentials"
            authority, admin = control_plane.write_credentials(credentials)
            control = Control(places.control)
            inside = network.control_plane_namespace()
            port = control.forward(inside, network.CONTROL_PLANE, control_plane.API_PORT, API_PORT)
            self._file.update(api_port=port)
            pki.write_secret(
                places.kubeconfig, pki.kubeconfig(f"https://127.0.0.1:{port}", authority.certificate, admin)
            )
            store, server, *clients = control_plane.processes(places, credentials)
            for process in (store, server):
                control.start(process)
            proxy = (credentials / "kube-proxy.conf").read_text()
            with cache_in_use(places):
                for node in nodes:
                    node.prepare(authority, proxy)
                    node.take_images(seed)
            self._remember_images(archives)
        self.wait("API server", lambda: self.kubectl("get", "--raw=/readyz") == "ok", API_PATIENCE)
        for process in clients:
            control.start(process)
        self._install_dns()
        with self._progress.step("starting the nodes"), ThreadPoolExecutor(count) as pool:
            list(pool.map(BoxNode.start, [BoxNode(node, nodes, control) for node in nodes]))
        self._file.update(phase="up")

    def _raise_sysctls(self) -> None:
        changes = machine.sysctls_to_raise()
        self._file.update(sysctls=changes)
        for name, (_, value) in changes.items():
            Path("/proc/sys", name).write_text(value)

    def _install_dns(self) -> None:
        text = (MANIFESTS / "dns.yaml").read_text()
        text = text.replace("IMAGE", images.references()["coredns"]).replace("ADDRESS", network.DNS_SERVICE)
        self.kubectl("apply", "--server-side", "-f", "-", stdin=text)

    def _await_ready(self) -> None:
        expected = sum(node.running() and not node.partitioned() for node in self.nodes())

        def ready() -> bool:
            conditions = [_condition(node, "Ready") for node in self.get("nodes")["items"]]
            return conditions.count("True") >= expected

        def named() -> bool:
            status = self.get("deployment", "coredns", "-n", "kube-system").get("status", {})
            return bool(status.get("availableReplicas", 0))

        self.wait("nodes ready", ready, NODE_PATIENCE)
        self.wait("cluster DNS", named, NODE_PATIENCE)

    # Images of a running box

    def _remember_images(self, archives: Sequence[Archive]) -> None:
        present = {archive.reference: archive.key for archive in archives}
        (self._given.box / "images.json").write_text(json.dumps(present, indent=1))

    def _load_changed(self, archives: Sequence[Archive]) -> list[str]:
        loaded: dict[str, str] = {}
        with suppress(FileNotFoundError):
            loaded = json.loads((self.places.box / "images.json").read_text())
        changed = [archive for archive in archives if loaded.get(archive.reference) != archive.key]
        for archive in changed:
            with self._progress.step(f"giving {archive.reference} to the nodes"):
                self.load_image(archive.path)
        (self.places.box / "images.json").write_text(
            json.dumps({**loaded, **{archive.reference: archive.key for archive in changed}}, indent=1)
        )
        return [archive.reference for archive in changed]

    def _running_state(self) -> State:
        state = self._file.load()
        if state is None or state.supervisor_pid() is None:
            raise FailedPrecondition("the box is not up", where="box", todo="Run `python -m e2e.box up`.")
        return state


def _nodes(state: State) -> list[Node]:
    return [Node(state.places, NodeNetwork(number)) for number in range(1, state.nodes + 1)]


def _condition(item: Mapping[str, Any], kind: str) -> str:
    conditions = item.get("status", {}).get("conditions", [])
    return next((str(each["status"]) for each in conditions if each["type"] == kind), "Unknown")

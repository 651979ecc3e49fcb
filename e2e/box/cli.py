"""`python -m e2e.box`: the box's command line."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from curve_storage.errors import CurveError, InvalidArgument, NotFound
from e2e.box import packages as debian
from e2e.box.box import Box
from e2e.box.gobuild import PROGRAMS, GoBuilder, find
from e2e.box.images import references
from e2e.box.places import Places
from e2e.box.progress import Progress
from e2e.box.state import sole_operation

app = typer.Typer(
    help="The box: a real Kubernetes of three nodes on this machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def tools(
    only: Annotated[list[str] | None, typer.Option(help="Build just this program; may be repeated.")] = None,
) -> None:
    """Build the Go programs (etcd, containerd, Kubernetes, CSI sidecars, helm …) into the cache; minutes when cold."""
    places = Places.default()
    GoBuilder(places, Progress()).ensure(find(only) if only else PROGRAMS)
    print(places.bin)


@app.command()
def packages() -> None:
    """Install the Debian packages that are missing."""
    installed = debian.ensure(Progress())
    print(f"installed: {' '.join(installed)}" if installed else "nothing is missing")


@app.command()
def up(
    nodes: Annotated[int, typer.Option(help="How many nodes a new box has.", min=1, max=9)] = 3,
    bare: Annotated[bool, typer.Option("--bare", help="Without an image of the product.")] = False,
) -> None:
    """Start the box, or bring a running one up to date: packages, programs, images, control plane, nodes, DNS."""
    box = Box()
    box.up(nodes, product=not bare)
    print(f"The box is up. Try: python -m e2e.box kubectl get nodes; export KUBECONFIG={box.kubeconfig}")


@app.command()
def down() -> None:
    """Take the box down and leave nothing but caches and logs, also after a crash."""
    Box().down()


@app.command()
def status() -> None:
    """What runs: nodes, processes, the kubeconfig."""
    box = Box()
    if not box.running():
        sys.exit(
            "The box is not up." if not box.exists() else "Pieces of a box are left: run `python -m e2e.box down`."
        )
    for node in box.nodes():
        word = "off" if not node.running() else "partitioned" if node.partitioned() else "on"
        print(f"{node.name:24} {node.address:14} {word}")
    for process in box.processes():
        word = "runs" if process["alive"] else "ended, starts again"
        print(f"{process['name']:24} pid {process['pid']:<10} {word}, {process['restarts']} restarts")
    print(f"kubeconfig               {box.kubeconfig}")
    print(f"logs                     {box.places.logs}")


@app.command()
def kubeconfig() -> None:
    """Print the path of a kubeconfig that leads to the box: export KUBECONFIG=$(python -m e2e.box kubeconfig)."""
    box = Box()
    box.environment()
    print(box.kubeconfig)


PASSED_ON = ("kubectl", "helm")


def _become(program: str, arguments: list[str]) -> None:
    box = Box()
    command = box.command(program, *arguments)
    os.execve(command[0], command, {**os.environ, **box.environment()})


@app.command(context_settings={"ignore_unknown_options": True})
def kubectl(arguments: list[str]) -> None:
    """kubectl on the box; every argument is passed on."""
    _become("kubectl", arguments)


@app.command(context_settings={"ignore_unknown_options": True})
def helm(arguments: list[str]) -> None:
    """helm on the box; every argument is passed on."""
    _become("helm", arguments)


@app.command()
def images(
    refresh: Annotated[bool, typer.Option("--refresh", help="Build what changed and give it to the nodes.")] = False,
) -> None:
    """Names of the images that the nodes hold."""
    if refresh:
        for name in Box().refresh_images():
            print(f"loaded {name}")
        return
    for short, name in references().items():
        print(f"{short:24} {name}")


@app.command("load-image")
def load_image(archive: Annotated[Path, typer.Argument(help="An OCI archive.", exists=True)]) -> None:
    """Give an image to every node."""
    Box().load_image(archive)


@app.command()
def node(
    action: Annotated[str, typer.Argument(help="stop, start, reboot, partition, heal, or exec.")],
    name: Annotated[str, typer.Argument(help="curve-box-2, or 2.")],
    command: Annotated[list[str] | None, typer.Argument(help="For exec: what to run inside the node.")] = None,
) -> None:
    """Power (stop, start, reboot), cable (partition, heal), or a command inside a node (exec NAME -- COMMAND …)."""
    one = Box().node(name)
    if action == "exec":
        enter = ["nsenter", "--target", str(one.init()), "--all", "--wdns=/", "--", *(command or ["bash"])]
        os.execvp(enter[0], enter)
    actions = {
        "stop": one.stop,
        "start": one.start,
        "reboot": one.reboot,
        "partition": one.partition,
        "heal": one.heal,
    }
    if action not in actions:
        raise InvalidArgument("no such action", where=action, todo=f"Known are: {', '.join(actions)}, exec.")
    with Progress().step(f"{one.name}: {action}"), sole_operation():
        actions[action]()


@app.command()
def logs(
    name: Annotated[str | None, typer.Argument(help="Such as kube-apiserver or curve-box-1-kubelet.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n")] = 50,
) -> None:
    """The log of one process, or the names of all logs; they are kept until the next start of a box."""
    folder = Box().places.logs
    if name is None:
        for file in sorted(folder.glob("*.log")):
            print(file.stem)
        return
    file = folder / f"{name}.log"
    if not file.exists():
        raise NotFound("no such log", where=name, todo="`python -m e2e.box logs` lists them.")
    os.execvp("tail", ["tail", f"--lines={lines}", *(["--follow=name"] if follow else []), str(file)])


def main() -> None:
    try:
        # Ahead of the option parser, which would take "--" and "--help" out of what is passed on.
        if sys.argv[1:2] and sys.argv[1] in PASSED_ON:
            _become(sys.argv[1], sys.argv[2:])
        app()
    except CurveError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; `python -m e2e.box down` takes down what was started")

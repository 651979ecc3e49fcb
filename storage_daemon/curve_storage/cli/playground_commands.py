"""`curve playground …`: a whole cluster as processes of this machine."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.status import Status
from rich.text import Text

from curve_storage.cli.connect import OutputOption, run
from curve_storage.cli.output import Column, Format, show_rows, size
from curve_storage.cli.playground import Playground, PlaygroundOptions
from curve_storage.client.config import playground_directory
from curve_storage.errors import NotFound
from curve_storage.units import parse_size

app = typer.Typer(help="A whole cluster on this machine, for trying things out and for tests.", no_args_is_help=True)

DirectoryOption = Annotated[
    Path | None,
    typer.Option("--dir", help="Where it lives; default: ~/.local/share/curve/playground.", show_default=False),
]

PROCESS_COLUMNS = (
    Column("PROCESS", lambda r: r["name"]),
    Column("STATE", lambda r: Text("running", "green") if r["running"] else Text("not running", "red")),
    Column("PID", lambda r: str(r["pid"] or "-"), right=True),
    Column("CPU", lambda r: f"{r['cpu_seconds']:.1f} s", right=True),
    Column("MEMORY", lambda r: size(r["memory"]), right=True),
    Column("PORTS", lambda r: " ".join(f"{k}={v}" for k, v in r["ports"].items())),
    Column("LOG", lambda r: r["log"]),
)


class Steps:
    """Progress on standard error: one line that changes on a terminal, else a line per step."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._started = time.monotonic()
        self._last = ""
        self._status: Status | None = None
        if self._console.is_terminal:
            self._status = self._console.status("starting")
            self._status.start()

    def __call__(self, text: str) -> None:
        if text == self._last:
            return
        self._last = text
        line = Text(f"{time.monotonic() - self._started:5.1f} s  {text}")
        if self._status is not None:
            self._status.update(line)
        else:
            self._console.print(line, soft_wrap=True)

    def stop(self) -> float:
        if self._status is not None:
            self._status.stop()
        return time.monotonic() - self._started


def _playground(directory: Path | None) -> tuple[Playground, Steps]:
    steps = Steps()
    return Playground(directory or playground_directory(), steps), steps


@app.command()
def up(
    directory: DirectoryOption = None,
    chunkservers: Annotated[
        int | None, typer.Option(help="How many; each is its own zone. Default 3.", show_default=False)
    ] = None,
    pool_size: Annotated[
        str | None, typer.Option("--pool-size", help="Most each may use, like 4Gi (the default).", show_default=False)
    ] = None,
    volumehost: Annotated[
        bool | None,
        typer.Option("--volumehost/--no-volumehost", help="To attach volumes; default: where root runs it."),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait until it is healthy.")] = 90.0,
) -> None:
    """Start etcd, three MDS, chunkservers, keeper and volume host, and wait until the cluster is healthy.

    Starts only what does not run: harmless when everything does, and the way back after a crash or a reboot.
    """
    options = PlaygroundOptions(
        chunkservers=chunkservers,
        pool_size=parse_size(pool_size) if pool_size is not None else None,
        volumehost=volumehost,
    )
    playground, steps = _playground(directory)
    try:
        layout = run(playground.up(options, timeout=timeout))
    finally:
        seconds = steps.stop()
    out = Console(highlight=False, soft_wrap=True)
    out.print(
        f"The playground is [bold green]healthy[/bold green]: etcd, 3 MDS, {layout.state.chunkservers} chunkservers"
        f"{', volume host' if layout.state.volumehost else ''} ({seconds:.1f} s). It keeps running."
    )
    at_default = playground.directory == playground_directory().absolute()
    if not at_default:
        out.print(f"\n  export CURVE_CLIENT_CONFIG={layout.client_file}")
        if layout.state.volumehost:
            out.print(f"  export CURVE_VOLUMEHOST={layout.host_socket}")
    out.print("\n  curve status")
    out.print("  curve volume create /demo --size 1Gi")
    if layout.state.volumehost:
        out.print("  curve volume attach /demo          # prints a block device: mkfs.ext4, mount")
    out.print(f"  curve playground down{'' if at_default else f' --dir {playground.directory}'}")


@app.command()
def down(
    directory: DirectoryOption = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete all its data too.")] = False,
) -> None:
    """Detach volumes and end all processes. The data stay for the next `up` unless --delete is given."""
    playground, steps = _playground(directory)
    existed = playground.exists
    try:
        problems = run(playground.down(delete=delete))
    finally:
        steps.stop()
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
    if not existed:
        print(f"There is no playground in {playground.directory}.")
    elif delete:
        print("The playground is down, its data are deleted.")
    else:
        print(f"The playground is down. Its data stay in {playground.directory}; `up` goes on with them.")
    if problems:
        raise typer.Exit(1)


def _rows(playground: Playground) -> list[dict[str, Any]]:
    return [
        {
            "name": one.name,
            "running": one.running,
            "pid": one.pid,
            "cpu_seconds": one.usage.cpu_seconds if one.usage else 0.0,
            "memory": one.usage.memory if one.usage else 0,
            "ports": one.ports,
            "log": str(one.log),
        }
        for one in playground.status()
    ]


@app.command()
def status(directory: DirectoryOption = None, output: OutputOption = Format.TABLE) -> None:
    """List its processes. Exit status 4 when one does not run."""
    rows = _rows(Playground(directory or playground_directory()))
    show_rows(rows, PROCESS_COLUMNS, output, empty="")
    if not all(row["running"] for row in rows):
        raise typer.Exit(4)


@app.command()
def logs(
    process: Annotated[str | None, typer.Argument(metavar="[PROCESS]", help="Like mds1; all when not given.")] = None,
    directory: DirectoryOption = None,
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many from the end.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing until interrupted.")] = False,
) -> None:
    """Print the end of the logs."""
    known = {one.name: one.log for one in Playground(directory or playground_directory()).status()}
    if process is not None and process not in known:
        raise NotFound(f"no process {process}", todo=f"Choose one of {', '.join(known)}")
    chosen = {process: known[process]} if process is not None else known
    offsets: dict[str, int] = {}
    for name, path in chosen.items():
        text = path.read_bytes() if path.exists() else b""
        offsets[name] = len(text)
        _print_lines(name, text.decode(errors="replace").splitlines()[-lines:] if lines > 0 else [])
    while follow:
        time.sleep(0.3)
        for name, path in chosen.items():
            if path.exists() and path.stat().st_size > offsets[name]:
                with path.open("rb") as file:
                    file.seek(offsets[name])
                    text = file.read()
                offsets[name] += len(text)
                _print_lines(name, text.decode(errors="replace").splitlines())


def _print_lines(name: str, lines: list[str]) -> None:
    for line in lines:
        print(f"{name}: {line}", flush=True)

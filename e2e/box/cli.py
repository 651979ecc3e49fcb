"""`python -m e2e.box`: the box's command line."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from curve_storage.errors import CurveError
from e2e.box import packages as debian
from e2e.box.gobuild import PROGRAMS, GoBuilder, find
from e2e.box.places import Places
from e2e.box.progress import Progress

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


def main() -> None:
    try:
        app()
    except CurveError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; `python -m e2e.box down` takes down what was started")

"""The `curve` command: one program for volumes, cluster and playground.

Exit status: 0 done; 1 failed; 2 wrong usage or argument; 3 not found; 4 the cluster or volume host cannot be reached
or is not ready in time; 5 refused in the present state (in use, fenced, exists already); 6 no permission; 7 no space.
"""

from __future__ import annotations

import sys

import typer
from rich.console import Console
from rich.text import Text

from curve_storage import errors
from curve_storage.cli import attach, playground_commands, scheduler, status, topology, volume
from curve_storage.errors import CurveError

app = typer.Typer(
    name="curve",
    help="Replicated block volumes. `curve playground up` starts a cluster on this machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
attach.register(volume.app)
app.add_typer(volume.app, name="volume")
app.add_typer(topology.servers, name="server")
app.add_typer(topology.chunkservers, name="chunkserver")
app.add_typer(topology.pools, name="pool")
app.add_typer(topology.copysets, name="copyset")
app.add_typer(scheduler.app, name="scheduler")
app.add_typer(playground_commands.app, name="playground")
app.command("status")(status.status)

_EXIT: tuple[tuple[type[CurveError], int], ...] = (
    (errors.InvalidArgument, 2),
    (errors.NotFound, 3),
    (errors.Unavailable, 4),
    (errors.DeadlineExceeded, 4),
    (errors.AlreadyExists, 5),
    (errors.FailedPrecondition, 5),
    (errors.Unauthenticated, 6),
    (errors.PermissionDenied, 6),
    (errors.ResourceExhausted, 7),
)


def exit_status(error: CurveError) -> int:
    return next((status for kind, status in _EXIT if isinstance(error, kind)), 1)


def report(error: CurveError) -> None:
    """What happened, to what, and what to do: on standard error, without a traceback."""
    out = Console(stderr=True, highlight=False, soft_wrap=True)
    text = Text("error: ", style="bold red")
    text.append(f"{error.where}: {error.what}" if error.where else error.what, style="")
    out.print(text)
    if error.todo:
        hint = Text("  → ", style="bold")
        hint.append(error.todo, style="")
        out.print(hint)


def main() -> None:
    """Entry point of the program. Wrong usage is reported by typer itself, with status 2."""
    try:
        app()
    except CurveError as error:
        report(error)
        sys.exit(exit_status(error))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()

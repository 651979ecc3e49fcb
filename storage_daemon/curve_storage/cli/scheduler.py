"""`curve scheduler …`: what moves data and leaders around."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console

from curve_storage.cli.connect import ConfigOption, OutputOption, mds, run
from curve_storage.cli.output import Column, Format, plain, show, table
from curve_storage.cli.volume import short_time
from curve_storage.proto import mds_pb2

app = typer.Typer(help="Schedulers: what they do now, switching them on and off.", no_args_is_help=True)

SCHEDULER_COLUMNS = (
    Column("SCHEDULER", lambda r: r["name"]),
    Column("STATE", lambda r: "on" if r["enabled"] else "off"),
)
OPERATOR_COLUMNS = (
    Column("COPYSET", lambda r: f"{r['pool_id']}/{r['copyset_id']}"),
    Column("SCHEDULER", lambda r: r["scheduler"]),
    Column("STEP", lambda r: r["step"]),
    Column("SINCE", lambda r: short_time(r["started"])),
)


@app.command("status")
def scheduler_status(config: ConfigOption = None, output: OutputOption = Format.TABLE) -> None:
    """Show the schedulers and the changes of copysets under way."""

    async def work() -> dict[str, Any]:
        async with mds(config) as client:
            return plain(await client.schedule.GetStatus(mds_pb2.Empty()))

    data = run(work())

    def render(out: Console) -> None:
        out.print(table(data["schedulers"], SCHEDULER_COLUMNS))
        out.print()
        if data["operators"]:
            out.print(table(data["operators"], OPERATOR_COLUMNS))
        else:
            out.print("No copyset is being changed.")

    show(data, output, render)


def _switch(config: ConfigOption, name: str, enabled: bool) -> None:
    async def work() -> None:
        async with mds(config) as client:
            await client.schedule.SetScheduler(mds_pb2.SetSchedulerRequest(name=name, enabled=enabled))

    run(work())
    print(f"scheduler {name} is {'on' if enabled else 'off'}")


NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="As `status` names it.")]


@app.command()
def enable(name: NameArgument, config: ConfigOption = None) -> None:
    """Switch a scheduler on."""
    _switch(config, name, True)


@app.command()
def disable(name: NameArgument, config: ConfigOption = None) -> None:
    """Switch a scheduler off."""
    _switch(config, name, False)


@app.command("rapid-leader")
def rapid_leader(
    pool: Annotated[int, typer.Option(help="Number of the pool; 0: all.")] = 0, config: ConfigOption = None
) -> None:
    """Spread the leaders evenly over the chunkservers at once."""

    async def work() -> None:
        async with mds(config) as client:
            await client.schedule.RapidLeader(mds_pb2.RapidLeaderRequest(pool_id=pool))

    run(work())
    print("leaders are being spread")

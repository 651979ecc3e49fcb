"""`curve status`: one screen, one word of health, reasons."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from curve_storage.cli.connect import ConfigOption, OutputOption, TimeoutOption, mds, run
from curve_storage.cli.output import Column, Format, percent, plain, show, size, table, word
from curve_storage.errors import CurveError, Unavailable
from curve_storage.proto import mds_pb2

POOL_COLUMNS = (
    Column("POOL", lambda r: r["name"]),
    Column("REPLICAS", lambda r: str(r["replicas"]), right=True),
    Column("COPYSETS", lambda r: f"{r['copysets_healthy']}/{r['copysets']}", right=True),
    Column("CAPACITY", lambda r: size(r["capacity"]), right=True),
    Column("ALLOCATED", lambda r: f"{size(r['allocated'])} ({percent(r['allocated'], r['capacity'])})", right=True),
    Column("USED", lambda r: f"{size(r['used'])} ({percent(r['used'], r['capacity'])})", right=True),
)


def status(
    config: ConfigOption = None,
    output: OutputOption = Format.TABLE,
    wait: Annotated[
        float, typer.Option("--wait", help="Seconds to wait for the cluster to be healthy; status 4 if it is not.")
    ] = 0.0,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Repeat every two seconds until interrupted.")] = False,
    timeout: TimeoutOption = 5.0,
) -> None:
    """Health of the cluster in one word, with the reasons, its parts and its space."""
    if watch:
        run(_watch(config, timeout))
        return
    data = run(_fetch(config, timeout, wait))
    show(data, output, lambda out: out.print(screen(data)))
    if wait and data["health"] != "healthy":
        raise typer.Exit(4)


async def _fetch(config: ConfigOption, timeout: float, wait: float = 0.0) -> dict[str, Any]:
    deadline = time.monotonic() + wait
    async with mds(config, timeout) as client:
        while True:
            try:
                data = plain(await client.admin.GetStatus(mds_pb2.Empty(), timeout=timeout))
                if data["health"] == "healthy" or time.monotonic() >= deadline:
                    return data
            except Unavailable:
                if time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(0.2)


async def _watch(config: ConfigOption, timeout: float) -> None:
    with Live(Text("asking the MDS …"), console=Console(highlight=False), auto_refresh=False) as live:
        async with mds(config, timeout) as client:
            while True:
                try:
                    data = plain(await client.admin.GetStatus(mds_pb2.Empty(), timeout=timeout))
                    live.update(screen(data), refresh=True)
                except CurveError as error:
                    live.update(Text.assemble(("unavailable", "bold red"), f"  {error}"), refresh=True)
                await asyncio.sleep(2)


def screen(data: dict[str, Any]) -> Group:
    """What the command prints for a status in plain form."""
    head = Text.assemble(word(data["health"]), "  cluster ", data["cluster_id"] or "without an id")
    parts: list[Any] = [head]
    for reason in data["reasons"]:
        mark = ("  ! ", "bold red") if reason["critical"] else ("  - ", "yellow")
        parts.append(Text.assemble(mark, reason["message"]))
    facts = Table(box=None, pad_edge=False, show_header=False, show_edge=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    leaders = [m for m in data["mds"] if m["leader"]]
    members = ", ".join(f"{m['name']} {m['address']}{' (leader)' if m['leader'] else ''}" for m in data["mds"])
    facts.add_row("mds", members if leaders else Text(f"{members}  no leader", style="red"))
    online = f"{data['chunkservers_online']} of {data['chunkservers']} online"
    whole = data["chunkservers_online"] == data["chunkservers"]
    facts.add_row("chunkservers", Text(online, style="" if whole else "yellow"))
    copysets = f"{data['copysets_healthy']} of {data['copysets']} healthy"
    if data["copysets_available"] != data["copysets"]:
        copysets += f", {data['copysets'] - data['copysets_available']} without a quorum"
    if data["operators_running"]:
        copysets += f", {data['operators_running']} being changed"
    facts.add_row("copysets", copysets)
    facts.add_row("volumes", f"{data['volumes']}, {size(data['volume_bytes'])}")
    facts.add_row("disks", f"{size(data['used'])} of {size(data['capacity'])} used, all replicas counted")
    if len(data["versions"]) > 1:
        facts.add_row("versions", Text(", ".join(data["versions"]), style="yellow"))
    elif data["versions"]:
        facts.add_row("version", data["versions"][0])
    parts += [Text(), facts]
    if data["pools"]:
        parts += [Text(), table(data["pools"], POOL_COLUMNS)]
    return Group(*parts)

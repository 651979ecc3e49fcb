"""`curve server|chunkserver|pool|copyset …`: where data lies."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Annotated, Any

import typer

from curve_storage.cli.connect import ConfigOption, OutputOption, mds, run
from curve_storage.cli.output import Column, Format, percent, plain, show_rows, size, word
from curve_storage.cli.status import POOL_COLUMNS
from curve_storage.errors import InvalidArgument
from curve_storage.proto import mds_pb2

servers = typer.Typer(help="Servers: the machines chunkservers run on.", no_args_is_help=True)
chunkservers = typer.Typer(help="Chunkservers: one per disk.", no_args_is_help=True)
pools = typer.Typer(help="Pools: space with a number of replicas.", no_args_is_help=True)
copysets = typer.Typer(help="Copysets: the replicated groups chunks are placed in.", no_args_is_help=True)

POOL_CREATE_TIMEOUT = 60.0

SERVER_COLUMNS = (
    Column("SERVER", lambda r: r["name"]),
    Column("ZONE", lambda r: r["zone"]),
    Column("PHYSICAL POOL", lambda r: r["physical_pool"]),
    Column("CHUNKSERVERS", lambda r: f"{r['online']} of {r['chunkservers']} online", right=True),
)
CHUNKSERVER_COLUMNS = (
    Column("ID", lambda r: str(r["id"]), right=True),
    Column("ADDRESS", lambda r: r["address"]),
    Column("SERVER", lambda r: r["server"]),
    Column("ZONE", lambda r: r["zone"]),
    Column("STATE", lambda r: word(r["online"])),
    Column("DISK", lambda r: word(r["disk"] + (f" {r['format_percent']} %" if r["disk"] == "formatting" else ""))),
    Column("ADMIN", lambda r: r["admin"]),
    Column("USED", lambda r: f"{size(r['used'])} of {size(r['capacity'])}", right=True),
    Column("", lambda r: percent(r["used"], r["capacity"]), right=True),
    Column("COPYSETS", lambda r: str(r["copysets"]), right=True),
    Column("LEADERS", lambda r: str(r["leaders"]), right=True),
    Column("HEARD", lambda r: _ago(r["last_heartbeat"])),
)
COPYSET_COLUMNS = (
    Column("COPYSET", lambda r: f"{r['pool_id']}/{r['copyset_id']}"),
    Column("STATE", lambda r: word("healthy" if r["healthy"] else "degraded")),
    Column("LEADER", lambda r: str(r["leader"] or "-"), right=True),
    Column("MEMBERS", lambda r: " ".join(str(m["chunkserver_id"]) for m in r["members"])),
    Column("LEARNERS", lambda r: " ".join(map(str, r["learners"]))),
    Column("EPOCH", lambda r: str(r["epoch"]), right=True),
)


def _ago(text: str | None) -> str:
    if not text:
        return "never"
    seconds = max(0.0, time.time() - datetime.fromisoformat(text).timestamp())
    return f"{seconds:.0f} s ago" if seconds < 120 else f"{seconds / 60:.0f} min ago"


@servers.command("list")
def list_servers(config: ConfigOption = None, output: OutputOption = Format.TABLE) -> None:
    """List servers with their zone and how many of their chunkservers are online."""

    async def work() -> list[dict[str, Any]]:
        async with mds(config) as client:
            return [plain(one) for one in (await client.topology.ListServers(mds_pb2.Empty())).servers]

    show_rows(run(work()), SERVER_COLUMNS, output, empty="No chunkserver has registered yet.")


@chunkservers.command("list")
def list_chunkservers(
    physical_pool: Annotated[str, typer.Option("--physical-pool", help="Only this one.")] = "",
    config: ConfigOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """List chunkservers with their state, space and load."""

    async def work() -> list[dict[str, Any]]:
        async with mds(config) as client:
            request = mds_pb2.ListChunkServersRequest(physical_pool=physical_pool)
            return [plain(one) for one in (await client.topology.ListChunkServers(request)).chunkservers]

    show_rows(run(work()), CHUNKSERVER_COLUMNS, output, empty="No chunkserver has registered yet.")


def _set_state(config: ConfigOption, chunkserver: int, admin: mds_pb2.AdminState.ValueType) -> None:
    async def work() -> None:
        async with mds(config) as client:
            request = mds_pb2.SetChunkServerStateRequest(chunkserver_id=chunkserver, admin=admin)
            await client.topology.SetChunkServerState(request)

    run(work())


IdArgument = Annotated[int, typer.Argument(metavar="ID", help="Number of the chunkserver, as `list` shows it.")]


@chunkservers.command()
def drain(chunkserver: IdArgument, config: ConfigOption = None) -> None:
    """Move everything off a chunkserver. `list` shows its copysets go to 0; then `retire` it."""
    _set_state(config, chunkserver, mds_pb2.ADMIN_STATE_PENDING)
    print(f"chunkserver {chunkserver} is being drained; watch it with `curve chunkserver list`")


@chunkservers.command()
def activate(chunkserver: IdArgument, config: ConfigOption = None) -> None:
    """Use a chunkserver again that was being drained."""
    _set_state(config, chunkserver, mds_pb2.ADMIN_STATE_READWRITE)
    print(f"chunkserver {chunkserver} takes data again")


@chunkservers.command()
def retire(chunkserver: IdArgument, config: ConfigOption = None) -> None:
    """Forget a chunkserver for good. It must have been drained."""
    _set_state(config, chunkserver, mds_pb2.ADMIN_STATE_RETIRED)
    print(f"chunkserver {chunkserver} is retired")


@pools.command("list")
def list_pools(config: ConfigOption = None, output: OutputOption = Format.TABLE) -> None:
    """List pools with their space."""

    async def work() -> list[dict[str, Any]]:
        async with mds(config) as client:
            return [plain(one) for one in (await client.topology.ListPools(mds_pb2.Empty())).pools]

    show_rows(run(work()), POOL_COLUMNS, output, empty="There is no pool. Make one: curve pool create NAME")


@pools.command("create")
def create_pool(
    name: Annotated[str, typer.Argument(help="Name of the pool.")],
    physical_pool: Annotated[str, typer.Option("--physical-pool", help="Whose chunkservers it uses.")] = "default",
    poolset: Annotated[str, typer.Option(help="Set of pools it belongs to.")] = "default",
    replicas: Annotated[int, typer.Option(help="Copies of everything.")] = 3,
    copysets: Annotated[int, typer.Option(help="Number of copysets; 0: by the number of chunkservers.")] = 0,
    scatter_width: Annotated[
        int, typer.Option("--scatter-width", help="On how many others the data of one disk lie; 0: the fewest.")
    ] = 0,
    zones: Annotated[int, typer.Option(help="Distinct zones needed; 0: one per replica.")] = 0,
    config: ConfigOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Create a pool. Repeating the same command is harmless."""
    if min(replicas, copysets, scatter_width, zones) < 0:
        raise InvalidArgument("a negative number", where=name, todo="Use positive numbers, 0 where a default exists")
    request = mds_pb2.CreatePoolRequest(
        name=name,
        physical_pool=physical_pool,
        poolset=poolset,
        replicas=replicas,
        copysets=copysets,
        scatter_width=scatter_width,
        zones=zones,
    )

    async def work() -> dict[str, Any]:
        async with mds(config) as client:
            return plain((await client.topology.CreatePool(request, timeout=POOL_CREATE_TIMEOUT)).pool)

    show_rows([run(work())], POOL_COLUMNS, output, empty="")


@copysets.command("list")
def list_copysets(
    pool: Annotated[int, typer.Option(help="Only of this pool (its number); 0: all.")] = 0,
    chunkserver: Annotated[int, typer.Option(help="Only with a member on this chunkserver; 0: all.")] = 0,
    unhealthy: Annotated[bool, typer.Option("--unhealthy", help="Only those that are not healthy.")] = False,
    config: ConfigOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """List copysets with leader and members."""

    async def work() -> list[dict[str, Any]]:
        async with mds(config) as client:
            request = mds_pb2.ListCopysetsRequest(pool_id=pool, chunkserver_id=chunkserver, only_unhealthy=unhealthy)
            return [plain(one) for one in (await client.topology.ListCopysets(request)).copysets]

    show_rows(run(work()), COPYSET_COLUMNS, output, empty="All copysets are healthy." if unhealthy else "No copyset.")

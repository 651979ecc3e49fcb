"""`curve volume …`: the namespace of volumes and directories."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from curve_storage.cli.connect import ConfigOption, OutputOption, mds, run, volume_ref
from curve_storage.cli.output import Column, Format, plain, show_fields, show_rows, size
from curve_storage.errors import InvalidArgument
from curve_storage.proto import mds_pb2
from curve_storage.units import format_size, parse_size

app = typer.Typer(help="Volumes: create, list, attach, extend, delete and recover.", no_args_is_help=True)

VolumeArgument = Annotated[str, typer.Argument(metavar="VOLUME", help="Path (/dir/name) or number.")]
PathArgument = Annotated[str, typer.Argument(metavar="PATH", help="Path, beginning with a slash.")]

COLUMNS = (
    Column("PATH", lambda r: r["path"] + ("/" if r["directory"] and r["path"] != "/" else "")),
    Column("ID", lambda r: str(r["id"]), right=True),
    Column("SIZE", lambda r: "" if r["directory"] else size(r["size"]), right=True),
    Column("ALLOCATED", lambda r: "" if r["directory"] else size(r["allocated"]), right=True),
    Column("ATTACHED TO", lambda r: r["attached_node"]),
    Column("OWNER", lambda r: r["owner"]),
    Column("CREATED", lambda r: short_time(r["created"])),
)
BIN_COLUMNS = (
    Column("ID", lambda r: str(r["id"]), right=True),
    Column("WAS", lambda r: r["original_path"]),
    Column("SIZE", lambda r: size(r["size"]), right=True),
    Column("DELETED", lambda r: short_time(r["deleted"])),
)


def short_time(text: str | None) -> str:
    return text[:16].replace("T", " ") if text else ""


def show_volume(data: dict[str, Any], output: Format) -> None:
    limits = data["throttle"]
    limit_words = [f"{limits['iops']} IOPS"] if limits["iops"] else []
    if limits["bytes_per_second"]:
        limit_words.append(f"{format_size(limits['bytes_per_second'])}/s")
    show_fields(
        data,
        (
            ("path", data["path"]),
            ("id", str(data["id"])),
            ("kind", "directory" if data["directory"] else "volume"),
            ("size", "" if data["directory"] else f"{size(data['size'])} ({data['size']} bytes)"),
            ("allocated", "" if data["directory"] else size(data["allocated"])),
            ("status", data["status"]),
            ("owner", data["owner"]),
            ("poolset", data["poolset"]),
            ("attached to", data["attached_node"] + (" read-only" if data["read_only_attach"] else "")),
            ("epoch", "" if data["directory"] else f"{data['epoch']} (generation {data['generation']})"),
            ("open sessions", str(data["open_sessions"] or "")),
            ("limits", ", ".join(limit_words)),
            ("labels", ", ".join(f"{k}={v}" for k, v in sorted(data["labels"].items()))),
            ("created", short_time(data["created"])),
            ("was", data["original_path"]),
            ("deleted", short_time(data["deleted"])),
        ),
        output,
    )


def parse_labels(labels: list[str]) -> dict[str, str]:
    found = {}
    for label in labels:
        key, equals, value = label.partition("=")
        if not equals or not key:
            raise InvalidArgument(f"{label!r} is not a label", todo="Use --label KEY=VALUE")
        found[key] = value
    return found


def _throttle(iops: int, rate: str) -> mds_pb2.Throttle:
    if iops < 0:
        raise InvalidArgument(f"{iops} operations per second", todo="Use a positive number, or 0 for no limit")
    return mds_pb2.Throttle(iops=iops, bytes_per_second=parse_size(rate) if rate else 0)


@app.command()
def create(
    path: PathArgument,
    size: Annotated[str, typer.Option("--size", "-s", help="Like 10Gi; whole GiB, at least 1Gi.")],
    owner: Annotated[str, typer.Option(help="Free text: whose it is.")] = "",
    poolset: Annotated[str, typer.Option(help="Set of pools to take space from; empty: the default one.")] = "",
    label: Annotated[list[str] | None, typer.Option("--label", help="KEY=VALUE, repeatable.")] = None,
    iops: Annotated[int, typer.Option(help="Limit on requests per second; 0: none.")] = 0,
    bandwidth: Annotated[str, typer.Option(help="Limit on bytes per second, like 100Mi.")] = "",
    parents: Annotated[bool, typer.Option("--parents", "-p", help="Make missing directories.")] = False,
    config: ConfigOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Create a volume. Space is taken when it is written."""
    request = mds_pb2.CreateVolumeRequest(
        path=path,
        size=parse_size(size),
        owner=owner,
        poolset=poolset,
        labels=parse_labels(label or []),
        throttle=_throttle(iops, bandwidth),
        create_parents=parents,
    )

    async def work() -> dict[str, Any]:
        async with mds(config) as client:
            return plain((await client.namespace.CreateVolume(request)).volume)

    show_volume(run(work()), output)


@app.command()
def mkdir(
    path: PathArgument,
    owner: Annotated[str, typer.Option(help="Free text: whose it is.")] = "",
    parents: Annotated[bool, typer.Option("--parents", "-p", help="Make missing directories.")] = False,
    config: ConfigOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Create a directory."""

    async def work() -> dict[str, Any]:
        async with mds(config) as client:
            request = mds_pb2.CreateDirectoryRequest(path=path, owner=owner, create_parents=parents)
            return plain((await client.namespace.CreateDirectory(request)).volume)

    show_volume(run(work()), output)


@app.command("list")
def list_(
    path: Annotated[str, typer.Argument(metavar="[DIRECTORY]", help="Where to look.")] = "/",
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Directories below it too.")] = False,
    deleted: Annotated[bool, typer.Option("--deleted", help="What is in the recycle bin instead.")] = False,
    config: ConfigOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """List volumes and directories."""

    async def work() -> list[dict[str, Any]]:
        async with mds(config) as client:
            if deleted:
                reply = await client.namespace.ListRecycleBin(mds_pb2.ListRecycleBinRequest())
                return [plain(entry) for entry in reply.entries]
            entries: list[dict[str, Any]] = []
            after = ""
            while True:
                request = mds_pb2.ListDirectoryRequest(path=path, recursive=recursive, limit=1000, start_after=after)
                reply = await client.namespace.ListDirectory(request)
                entries += [plain(entry) for entry in reply.entries]
                if not reply.more or not reply.entries:
                    return entries
                after = reply.entries[-1].path

    rows = run(work())
    if deleted:
        show_rows(rows, BIN_COLUMNS, output, empty="The recycle bin is empty.")
    else:
        show_rows(
            rows, COLUMNS, output, empty=f"Nothing in {path}. Make a volume: curve volume create /NAME --size 1Gi"
        )


@app.command("show")
def show_(volume: VolumeArgument, config: ConfigOption = None, output: OutputOption = Format.TABLE) -> None:
    """Show one volume or directory."""

    async def work() -> dict[str, Any]:
        async with mds(config) as client:
            reply = await client.namespace.GetVolume(mds_pb2.GetVolumeRequest(volume=volume_ref(volume)))
            return plain(reply.volume)

    show_volume(run(work()), output)


@app.command()
def delete(
    volume: VolumeArgument,
    force: Annotated[bool, typer.Option("--force", help="For good, without the recycle bin.")] = False,
    config: ConfigOption = None,
) -> None:
    """Delete a volume or an empty directory. A volume can be recovered until its retention ends."""

    async def work() -> None:
        async with mds(config) as client:
            request = mds_pb2.DeleteVolumeRequest(volume=volume_ref(volume), force=force)
            await client.namespace.DeleteVolume(request)

    run(work())
    print(f"{volume} deleted" + ("" if force else "; `curve volume recover` brings it back"))


@app.command()
def recover(
    volume: Annotated[str, typer.Argument(metavar="VOLUME", help="Its number, or the path it had.")],
    to: Annotated[str, typer.Option("--to", help="Another path than it had.")] = "",
    config: ConfigOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Bring a deleted volume back from the recycle bin."""

    async def work() -> dict[str, Any]:
        async with mds(config) as client:
            request = mds_pb2.RecoverVolumeRequest(volume=volume_ref(volume), target_path=to)
            return plain((await client.namespace.RecoverVolume(request)).volume)

    show_volume(run(work()), output)


@app.command()
def rename(
    volume: VolumeArgument,
    target: Annotated[str, typer.Argument(metavar="PATH", help="The new path.")],
    config: ConfigOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Give a volume or directory another path."""

    async def work() -> dict[str, Any]:
        async with mds(config) as client:
            request = mds_pb2.RenameVolumeRequest(volume=volume_ref(volume), target_path=target)
            return plain((await client.namespace.RenameVolume(request)).volume)

    show_volume(run(work()), output)


@app.command()
def throttle(
    volume: VolumeArgument,
    iops: Annotated[int, typer.Option(help="Requests per second; 0: no limit.")] = 0,
    bandwidth: Annotated[str, typer.Option(help="Bytes per second, like 100Mi; 0: no limit.")] = "",
    config: ConfigOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Limit a volume. Clients that have it open follow within seconds."""
    limits = _throttle(iops, bandwidth)

    async def work() -> dict[str, Any]:
        async with mds(config) as client:
            request = mds_pb2.UpdateVolumeRequest(volume=volume_ref(volume), throttle=limits)
            return plain((await client.namespace.UpdateVolume(request)).volume)

    show_volume(run(work()), output)


@app.command()
def release(
    volume: VolumeArgument,
    node: Annotated[str, typer.Option("--node", help="Only if this node holds it; default: whichever does.")] = "",
    config: ConfigOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Give a volume free whose node is lost for good. On a node that lives, use detach: it would go on writing until
    another one attaches the volume."""

    async def work() -> dict[str, Any]:
        async with mds(config) as client:
            request = mds_pb2.ReleaseVolumeRequest(volume=volume_ref(volume), node=node)
            return plain((await client.namespace.ReleaseVolume(request)).volume)

    show_volume(run(work()), output)


@app.command()
def purge(
    older_than: Annotated[float, typer.Option("--older-than", help="Hours in the bin; 0: all.")] = 0.0,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    config: ConfigOption = None,
) -> None:
    """Delete what is in the recycle bin for good."""
    if not yes:
        typer.confirm("Delete the volumes in the recycle bin for good?", abort=True)

    async def work() -> int:
        async with mds(config) as client:
            request = mds_pb2.PurgeRecycleBinRequest(older_than_ms=int(older_than * 3_600_000))
            return int((await client.namespace.PurgeRecycleBin(request)).purged)

    print(f"{run(work())} volumes purged")

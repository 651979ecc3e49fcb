"""`curve volume attach|detach|attachments|extend|upgrade`: volumes as block devices of this node."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from curve_storage.cli.connect import ConfigOption, Host, HostOption, OutputOption, mds, run, volume_host, volume_ref
from curve_storage.cli.output import Column, Format, plain, show, show_rows, size, word
from curve_storage.cli.volume import VolumeArgument, show_volume
from curve_storage.errors import CurveError, NotFound, Unavailable
from curve_storage.proto import mds_pb2, volumehost_pb2
from curve_storage.rpc.leader import MdsClient
from curve_storage.units import parse_size

ATTACH_TIMEOUT = 90.0
DETACH_TIMEOUT = 60.0
UPGRADE_TIMEOUT = 120.0

COLUMNS = (
    Column("PATH", lambda r: r["path"]),
    Column("ID", lambda r: str(r["volume_id"]), right=True),
    Column("DEVICE", lambda r: r["device"] or r["nbd_socket"]),
    Column("SIZE", lambda r: size(r["size"]), right=True),
    Column("HEALTH", lambda r: word(r["health"])),
    Column("PID", lambda r: str(r["pid"] or "-"), right=True),
    Column("TAKEOVERS", lambda r: str(r["takeovers"]), right=True),
    Column("MESSAGE", lambda r: r["message"]),
)


def register(app: typer.Typer) -> None:
    for command in (attach, detach, attachments, extend, upgrade):
        app.command()(command)


async def _node(host: Host) -> str:
    return str((await host.call("Info", volumehost_pb2.InfoRequest())).node)


def attach(
    volume: VolumeArgument,
    read_only: Annotated[bool, typer.Option("--read-only", help="Refuse writes.")] = False,
    nbd: Annotated[bool, typer.Option("--nbd", help="Serve NBD on a Unix socket instead of a loop device.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Take it from the node that has it; that one is fenced.")
    ] = False,
    config: ConfigOption = None,
    host_socket: HostOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Make a volume a block device of this node; prints the device. Attaching twice is harmless."""

    async def work() -> dict[str, Any]:
        async with volume_host(host_socket) as host, mds(config) as client:
            return await _attach(client, host, volume, read_only=read_only, nbd=nbd, force=force)

    data = run(work())
    show(data, output, lambda out: out.print(data["device"] or data["nbd_socket"]))


async def _attach(
    client: MdsClient, host: Host, volume: str, *, read_only: bool, nbd: bool, force: bool
) -> dict[str, Any]:
    node = await _node(host)
    ref = volume_ref(volume)
    before = (await client.namespace.GetVolume(mds_pb2.GetVolumeRequest(volume=ref))).volume
    granted = await client.namespace.AttachVolume(
        mds_pb2.AttachVolumeRequest(volume=ref, node=node, read_only=read_only, force=force), timeout=ATTACH_TIMEOUT
    )
    request = volumehost_pb2.AttachRequest(
        volume_id=granted.volume.id,
        path=granted.volume.path,
        epoch=granted.epoch,
        backend=volumehost_pb2.BACKEND_NBD if nbd else volumehost_pb2.BACKEND_LOOP,
        read_only=read_only,
    )
    try:
        return plain((await host.call("Attach", request, timeout=ATTACH_TIMEOUT)).attachment)
    except CurveError:
        if before.attached_node != node:
            # Nobody here uses it: another node may have it at once.
            await _release(client, granted.volume.id, node)
        raise


async def _release(client: MdsClient, volume_id: int, node: str) -> None:
    try:
        await client.namespace.ReleaseVolume(
            mds_pb2.ReleaseVolumeRequest(volume=mds_pb2.VolumeRef(id=volume_id), node=node)
        )
    except CurveError as error:
        print(f"warning: the volume stays reserved for node {node}: {error}", file=sys.stderr)


def detach(
    volume: VolumeArgument,
    force: Annotated[
        bool, typer.Option("--force", help="Even while it is mounted or open: its I/O fails then.")
    ] = False,
    config: ConfigOption = None,
    host_socket: HostOption = None,
) -> None:
    """Take the block device away and give the volume free for other nodes."""

    async def work() -> None:
        async with volume_host(host_socket) as host:
            found = await _attached(host, volume)
            async with mds(config) as client:
                if found is None:
                    ref = volume_ref(volume)
                    known = (await client.namespace.GetVolume(mds_pb2.GetVolumeRequest(volume=ref))).volume
                    if known.attached_node != await _node(host):
                        raise NotFound(
                            "the volume is not attached to this node",
                            where=known.path,
                            todo=f"It is attached to {known.attached_node}: detach it there"
                            if known.attached_node
                            else "See `curve volume attachments`",
                        )
                    volume_id = known.id
                else:
                    volume_id = found
                    request = volumehost_pb2.DetachRequest(volume_id=volume_id, force=force)
                    await host.call("Detach", request, timeout=DETACH_TIMEOUT)
                await _release(client, volume_id, await _node(host))

    run(work())
    print(f"{volume} detached")


async def _attached(host: Host, volume: str) -> int | None:
    """The number of an attached volume. Asks the host only: detaching must work for one that the MDS has forgotten."""
    ref = volume_ref(volume)
    for one in (await host.call("List", volumehost_pb2.ListRequest())).attachments:
        if one.volume_id == ref.id or (ref.path and one.path == ref.path):
            return int(one.volume_id)
    return None


def attachments(host_socket: HostOption = None, output: OutputOption = Format.TABLE) -> None:
    """List the volumes attached to this node, their devices and health."""

    async def work() -> list[dict[str, Any]]:
        async with volume_host(host_socket) as host:
            return [plain(one) for one in (await host.call("List", volumehost_pb2.ListRequest())).attachments]

    show_rows(run(work()), COLUMNS, output, empty="No volume is attached to this node.")


def extend(
    volume: VolumeArgument,
    new_size: Annotated[str, typer.Option("--size", "-s", help="The new size, like 20Gi. Volumes never shrink.")],
    config: ConfigOption = None,
    host_socket: HostOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Make a volume larger. Where it is attached to this node its device grows too, while in use."""
    wanted = parse_size(new_size)

    async def work() -> dict[str, Any]:
        async with mds(config) as client:
            request = mds_pb2.ExtendVolumeRequest(volume=volume_ref(volume), size=wanted)
            data = plain((await client.namespace.ExtendVolume(request)).volume)
        if data["attached_node"]:
            await _resize_here(data)
        return data

    async def _resize_here(data: dict[str, Any]) -> None:
        try:
            async with volume_host(host_socket) as host:
                if await _node(host) == data["attached_node"]:
                    request = volumehost_pb2.ResizeRequest(volume_id=data["id"], size=data["size"])
                    await host.call("Resize", request, timeout=DETACH_TIMEOUT)
        except (Unavailable, NotFound) as error:
            print(f"note: the device on {data['attached_node']} was not resized from here: {error}", file=sys.stderr)

    show_volume(run(work()), output)


def upgrade(
    volume: Annotated[
        str | None, typer.Argument(metavar="[VOLUME]", help="Path or number; all when not given.")
    ] = None,
    host_socket: HostOption = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Replace the data processes of attached volumes by ones of the installed version, without an interruption."""

    async def work() -> list[dict[str, Any]]:
        async with volume_host(host_socket) as host:
            volume_id = 0
            if volume is not None:
                found = await _attached(host, volume)
                if found is None:
                    raise NotFound("not attached to this node", where=volume, todo="See `curve volume attachments`")
                volume_id = found
            request = volumehost_pb2.UpgradeRequest(volume_id=volume_id)
            reply = await host.call("Upgrade", request, timeout=UPGRADE_TIMEOUT)
            return [plain(one) for one in reply.upgraded]

    rows = run(work())
    columns = (
        Column("ID", lambda r: str(r["volume_id"]), right=True),
        Column("OLD PID", lambda r: str(r["old_pid"]), right=True),
        Column("NEW PID", lambda r: str(r["new_pid"]), right=True),
        Column("STALL", lambda r: f"{r['stall_ms']} ms", right=True),
        Column("ERROR", lambda r: r["error"]),
    )
    show_rows(rows, columns, output, empty="No volume is attached to this node.")
    if any(row["error"] for row in rows):
        raise typer.Exit(1)

"""Inside a chunkserver's pod: make a disk or directory usable, refuse one that holds other data, wipe one when told.

Standard library only. What goes wrong is written as one sentence to the container's termination message, where the
operator reads it and puts it into the cluster's status.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

MARKER = ".curve-cluster"
LABEL = "curve-data"
TERMINATION_LOG = Path("/dev/termination-log")
TOOL_TIMEOUT = 600
HARMLESS = {"lost+found", MARKER}


class Refused(Exception):
    """One sentence for the administrator."""


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    try:
        if options.command == "prepare":
            prepare(options)
        elif options.command == "serve":
            serve(options)
        else:
            wipe(options)
    except (Refused, OSError, subprocess.SubprocessError) as error:
        text = str(error)
        print(json.dumps({"level": "error", "component": "disk", "event": text}), file=sys.stderr, flush=True)
        try:
            TERMINATION_LOG.write_text(text[:4000])
        except OSError:
            pass
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="curve-operator disk", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("prepare", help="check and mark a directory, or format a blank device")
    one.add_argument("--cluster", required=True)
    one.add_argument("--mount", type=Path, required=True)
    one.add_argument("--device", type=Path)
    one.add_argument("--wipe", action="store_true", help="format a device that holds other data")
    one = commands.add_parser("serve", help="mount a device in this container and run the command after --")
    one.add_argument("--device", type=Path, required=True)
    one.add_argument("--mount", type=Path, required=True)
    one.add_argument("run", nargs="+")
    one = commands.add_parser("wipe", help="remove what carries this cluster's marker")
    one.add_argument("--cluster", required=True)
    one.add_argument("--directory", type=Path, action="append", default=[])
    one.add_argument("--device", type=Path, action="append", default=[])
    one.add_argument("--scratch", type=Path, default=Path("/tmp/wipe"))
    return parser


def prepare(options: argparse.Namespace) -> None:
    if options.device is None:
        mark(options.mount, options.cluster)
        return
    check_device(options.device)
    found = probe(options.device)
    if found.get("LABEL") != LABEL or found.get("TYPE") != "ext4":
        if found and not options.wipe:
            what = ", ".join(f"{key} {value}" for key, value in sorted(found.items()) if key in INTERESTING)
            raise Refused(
                f"{options.device} on {node()} holds other data ({what or 'a partition table'}): it is left alone. "
                "Choose another device, clear it with wipefs -a, or lose that data with spec.storage.wipeDevices"
            )
        if found:
            _run(["wipefs", "-a", str(options.device)])
        _run(["mkfs.ext4", "-q", "-F", "-L", LABEL, "-m", "0", "-E", "lazy_itable_init=1", str(options.device)])
    mount(options.device, options.mount)
    try:
        mark(options.mount, options.cluster)
    finally:
        unmount(options.mount)


INTERESTING = {"TYPE", "PTTYPE", "LABEL", "UUID"}


def serve(options: argparse.Namespace) -> None:
    """Replaces this process by the command; the mount lives in this container and ends with it."""
    check_device(options.device)
    mount(options.device, options.mount)
    os.execvp(options.run[0], options.run)


def wipe(options: argparse.Namespace) -> None:
    """What is not ours is left alone and named; only what is ours and cannot be removed is a failure."""
    left: list[str] = []
    failed: list[str] = []
    for directory in options.directory:
        try:
            _wipe_directory(directory, options.cluster, left)
        except OSError as error:
            failed.append(f"{directory} on {node()} cannot be emptied: {error}")
    for device in options.device:
        try:
            _wipe_device(device, options.cluster, options.scratch, left)
        except (Refused, OSError, subprocess.SubprocessError) as error:
            failed.append(str(error))
    for text in left:
        print(json.dumps({"level": "warning", "component": "disk", "event": text}), file=sys.stderr, flush=True)
    if failed:
        raise Refused("; ".join(failed))


def _wipe_directory(directory: Path, cluster: str, left: list[str]) -> None:
    if not directory.is_dir() or not any(directory.iterdir()):
        return
    entries = {entry.name for entry in directory.iterdir()}
    # a marker of this very cluster, or the member folder that etcd made in a folder named after it
    if read_marker(directory) != cluster and entries != {"member"}:
        left.append(f"{directory} on {node()} does not carry this cluster's marker: it is left alone")
        return
    # the marker last: an interrupted wipe is taken up again
    for entry in sorted(directory.iterdir(), key=lambda entry: entry.name == MARKER):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _wipe_device(device: Path, cluster: str, scratch: Path, left: list[str]) -> None:
    if not device.exists():
        left.append(f"{device} does not exist on {node()}")
        return
    check_device(device)
    found = probe(device)
    if not found:
        return
    if found.get("LABEL") != LABEL:
        left.append(f"{device} on {node()} was not formatted by Curve: it is left alone")
        return
    scratch.mkdir(parents=True, exist_ok=True)
    mount(device, scratch)
    try:
        marker = read_marker(scratch)
    finally:
        unmount(scratch)
    if marker != cluster:
        left.append(f"{device} on {node()} belongs to another cluster: it is left alone")
        return
    _run(["wipefs", "-a", str(device)])


def mark(directory: Path, cluster: str) -> None:
    """A directory that is empty or was ours before; that of an earlier resource is taken over: the MDS knows it."""
    if read_marker(directory) is None:
        others = sorted(entry.name for entry in directory.iterdir() if entry.name not in HARMLESS)
        if others:
            raise Refused(
                f"the directory on {node()} is not empty ({', '.join(others[:3])}"
                f"{', …' if len(others) > 3 else ''}): it is left alone. Name an empty directory in spec.storage"
            )
    marker = directory / MARKER
    if read_marker(directory) != cluster:
        temporary = directory / f"{MARKER}.new"
        with temporary.open("w") as file:
            json.dump({"cluster": cluster}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(marker)
        _sync_directory(directory)


def read_marker(directory: Path) -> str | None:
    try:
        return str(json.loads((directory / MARKER).read_text())["cluster"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_device(device: Path) -> None:
    try:
        mode = device.stat().st_mode
    except OSError:
        raise Refused(f"{device} does not exist on {node()}; block devices there: {_devices()}") from None
    if not stat.S_ISBLK(mode):
        raise Refused(f"{device} on {node()} is not a block device: use spec.storage.directories for a directory")


def probe(device: Path) -> dict[str, str]:
    """What blkid sees on the device; empty when it is blank. Any doubt is an error, never "blank"."""
    done = subprocess.run(
        ["blkid", "-p", "-o", "export", str(device)],
        capture_output=True,
        text=True,
        timeout=TOOL_TIMEOUT,
        check=False,
    )
    if done.returncode == 2 and not done.stdout.strip():
        return {} if _starts_blank(device) else {"TYPE": "unknown data"}
    if done.returncode != 0:
        raise Refused(f"{device} on {node()} cannot be examined: {done.stderr.strip() or done.stdout.strip()}")
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def _starts_blank(device: Path) -> bool:
    """No signature is known of raw data; the first MiB must be zeros before anything is written."""
    with device.open("rb", buffering=0) as file:
        head = file.read(1 << 20)
    return not any(head)


def mount(device: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    noatime = 1024
    if libc.mount(os.fsencode(device), os.fsencode(target), b"ext4", noatime, None) != 0:
        number = ctypes.get_errno()
        raise Refused(f"{device} on {node()} cannot be mounted: {os.strerror(number)}")


def unmount(target: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(target), 0) != 0:
        number = ctypes.get_errno()
        raise Refused(f"{target} cannot be unmounted: {os.strerror(number)}")


def node() -> str:
    return os.environ.get("NODE_NAME") or "this node"


def _devices() -> str:
    names = (
        sorted(entry.name for entry in Path("/sys/class/block").iterdir()) if Path("/sys/class/block").is_dir() else []
    )
    real = [name for name in names if not name.startswith(("loop", "ram", "zram", "dm-"))]
    return ", ".join(f"/dev/{name}" for name in real[:12]) or "none"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_TIMEOUT, check=False)
    if done.returncode != 0:
        raise Refused(f"{' '.join(command)} failed on {node()}: {done.stderr.strip() or done.stdout.strip()}")


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""One attached volume: its mount or NBD socket, its loop device, and the data process that must always be there.

The truth is outside of this object: the keeper has the descriptor, mountinfo the mount, sysfs the loop device, `state`
the rest. So an object can be made anew at any time and `resume`.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from curve_storage.attach import loop
from curve_storage.attach.volume_file import FILE_NAME
from curve_storage.clock import Clock
from curve_storage.errors import CurveError, FailedPrecondition, InUse, NotFound, OutOfRange
from curve_storage.fuse import mount
from curve_storage.fuse.handshake import SessionFacts
from curve_storage.mountinfo import Mount, mounts, visible
from curve_storage.telemetry import logs
from curve_storage.volumehost.config import VolumeHostConfig
from curve_storage.volumehost.data_process import DataProcess
from curve_storage.volumehost.loop_search import search
from curve_storage.volumehost.packet_client import KeeperClient
from curve_storage.volumehost.probe import probe
from curve_storage.volumehost.spare import Spare
from curve_storage.volumehost.state import Backend, Phase, StateStore, VolumeState

_log = logs.get("attachment")

_PING_EVERY = 1.0
_UNMOUNT = 15.0
_CLOSE = 8.0  # seconds a data process may take to close its volume after the unmount
_STOP = 5.0
_SHORT_LIFE = 1.0  # a process that lived less than this many seconds is replaced with a growing delay
_STALL_AFTER = 15.0  # age in seconds of the oldest request


class Condition(Enum):
    HEALTHY = "healthy"
    STALLED = "stalled"
    FENCED = "fenced"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Node:
    """What every attachment of this host shares."""

    config: VolumeHostConfig
    store: StateStore
    keeper: KeeperClient
    clock: Clock
    spare: Spare


@dataclass(frozen=True, slots=True)
class Upgraded:
    """stall: seconds during which no process read requests."""

    old_pid: int
    new_pid: int
    stall: float


def kept_name(volume_id: int) -> str:
    return f"volume-{volume_id}"


class Attachment:
    def __init__(self, node: Node, state: VolumeState) -> None:
        self.state = state
        self.lock = asyncio.Lock()  # held by whoever changes the attachment
        self.process: DataProcess | None = None
        self._node = node
        self._facts: dict[str, Any] | None = None
        self._failure: str | None = None
        self._supervision: asyncio.Task[None] | None = None

    # -- what it is

    @property
    def volume_id(self) -> int:
        return self.state.volume_id

    @property
    def file(self) -> Path:
        return self._node.store.mount_point(self.volume_id) / FILE_NAME

    @property
    def nbd_socket(self) -> Path:
        return self._node.store.nbd_socket(self.volume_id)

    @property
    def report(self) -> dict[str, Any]:
        """The last answer of the present data process."""
        return self.process.report if self.process is not None else {}

    def condition(self) -> tuple[Condition, str]:
        """With a sentence for people, empty when healthy."""
        report, process = self.report, self.process
        if self._failure is not None:
            return Condition.FAILED, self._failure
        if self.state.fenced:
            return Condition.FENCED, "another node has the volume: all I/O fails here; unmount and detach it"
        if process is None or not process.alive or not report:
            return Condition.STALLED, "the data process is being replaced"
        if report.get("error"):
            return Condition.FAILED, str(report["error"].get("what"))
        if report.get("stalled"):
            return Condition.STALLED, str(report["stalled"])
        if report.get("oldest", 0.0) > _STALL_AFTER:
            return Condition.STALLED, f"a request has been waiting for {report['oldest']:.0f} s"
        return Condition.HEALTHY, ""

    async def loop_device(self) -> loop.LoopDevice | None:
        """The one bound to this volume's file and no other, wherever it was made."""
        if self.state.backend is not Backend.LOOP:
            return None
        device = loop.known(self.state.loop_number, self.state.loop_sequence)
        if device is None:
            found = self._mount()
            device = await search(self.file, found) if found is not None else None
            if device is not None:
                self._remember(device)
        return device

    def _remember(self, device: loop.LoopDevice) -> None:
        if (device.number, device.sequence) != (self.state.loop_number, self.state.loop_sequence):
            self._save(loop_number=device.number, loop_sequence=device.sequence)

    def _mount(self) -> Mount | None:
        target = self._node.store.mount_point(self.volume_id)
        found = visible(target, mounts())
        return found if found is not None and found.filesystem == mount.FILESYSTEM_TYPE else None

    # -- attaching

    async def attach(self) -> None:
        """Everything from nothing; on failure nothing is left. Hold the lock."""
        self._save(phase=Phase.ATTACHING)
        try:
            descriptor = await self._mount_new() if self.state.backend is Backend.LOOP else None
            try:
                process = self._spawn(descriptor, takeover=False)
            finally:
                if descriptor is not None:
                    os.close(descriptor)
            self.process = process
            self._observe(await process.wait_ready(self._node.config.open_timeout))
            self._supervise()
            if self.state.backend is Backend.LOOP:
                await self._node.keeper.store(kept_name(self.volume_id), self._blob())
                await self.bind()
            self._save(phase=Phase.ATTACHED)
        except BaseException:
            await self._tear_down()
            raise

    async def _mount_new(self) -> int:
        """A fresh connection, mounted and kept: its descriptor."""
        target = self._node.store.mount_point(self.volume_id)
        target.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = mount.open_device()
        try:
            mount.mount(descriptor, target, f"curve:{self.volume_id}")
            await self._node.keeper.store(kept_name(self.volume_id), self._blob(), descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    async def bind(self) -> loop.LoopDevice | None:
        """The loop device, made when it is missing."""
        if self.state.backend is not Backend.LOOP:
            return None
        device = await self.loop_device()
        if device is None:
            block = self._node.config.loop_block_size
            device = await asyncio.to_thread(
                loop.attach, self.file, read_only=self.state.read_only, block_size=0 if block == 512 else block
            )
            self._remember(device)
        else:
            loop.ensure_node(device)
        return device

    def _blob(self) -> dict[str, Any]:
        state = self.state
        return {
            "volume_id": state.volume_id,
            "mount": str(self._node.store.mount_point(state.volume_id)),
            "generation": state.generation,
            "facts": self._facts,
        }

    def _spawn(self, descriptor: int | None, *, takeover: bool, standby: bool = False) -> DataProcess:
        """The next data process, its generation on disk before it runs."""
        self._save(generation=self.state.generation + 1)
        state, store, config = self.state, self._node.store, self._node.config
        arguments = [
            "--volume-id", str(state.volume_id), "--path", state.path, "--epoch", str(state.epoch),
            "--backend", state.backend, "--size", str(state.size), "--node", config.node,
            "--log-level", config.log_level,
        ]  # fmt: skip
        if state.read_only:
            arguments.append("--read-only")
        if config.client is not None:
            arguments += ["--config", str(config.client)]
        if config.device_files is not None:
            arguments += ["--device-file", str(config.device_files / str(state.volume_id))]
            arguments += ["--device-delay", str(config.device_delay)]
        if state.backend is Backend.NBD:
            arguments += ["--nbd-socket", str(store.nbd_socket(state.volume_id))]
        if takeover:
            arguments.append("--takeover")
        if standby:
            arguments.append("--standby")
        if self._facts is not None:
            arguments += ["--facts", json.dumps(self._facts)]
        return DataProcess.spawn(
            arguments,
            store.control(state.volume_id, state.generation),
            descriptor,
            store.folder(state.volume_id) / "process.log",
            self._node.clock,
            None if standby else self._node.spare,  # an upgrade wants the program of now
        )

    # -- staying attached

    async def resume(self) -> None:
        """Go on with what a host before this one has left. Hold the lock."""
        state, store = self.state, self._node.store
        if state.phase is not Phase.ATTACHED:
            _log.warning("an unfinished attachment is taken down", volume=state.volume_id, phase=state.phase)
            await self._tear_down()
            return
        if state.backend is Backend.LOOP and self._mount() is None:
            _log.warning("the node was restarted: its attachment is forgotten", volume=state.volume_id, path=state.path)
            await self._tear_down()
            return
        found = [
            process
            for control in store.controls(state.volume_id)
            if (process := await DataProcess.find(control, self._node.clock, self._node.config.watchdog)) is not None
        ]
        serving = [process for process in found if process.report.get("stage") in ("serving", "opening")]
        for process in found:
            if process is not serving[0] if serving else True:
                process.kill()
                await process.end(_STOP)
        if serving:
            self.process = serving[0]
            self._observe(self.process.report)
        self._supervise()

    def _supervise(self) -> None:
        self._supervision = asyncio.get_running_loop().create_task(self._keep_served())

    async def _stop_supervision(self) -> None:
        if self._supervision is not None:
            self._supervision.cancel()
            await asyncio.wait([self._supervision])
            self._supervision = None

    async def _keep_served(self) -> None:
        """Watch the data process and replace it for as long as the volume is attached."""
        clock = self._node.clock
        delay, born = 0.0, clock.monotonic()
        while self._failure is None:
            process = self.process
            if process is not None and process.alive:
                await process.watch(_PING_EVERY, self._node.config.watchdog, self._observe)
                if process.alive:
                    _log.error("a data process cannot be killed; another one takes over", pid=process.pid)
                served = process.report.get("stage") == "serving" and clock.monotonic() - born > _SHORT_LIFE
                delay = 0.0 if served else min(5.0, delay * 2 or 0.1)
                _log.warning(
                    "a data process ended and is replaced",
                    volume=self.volume_id, path=self.state.path, pid=process.pid, status=process.status,
                )  # fmt: skip
                self.process = None
                if delay > 0.1:
                    await asyncio.sleep(delay)
            try:
                born = clock.monotonic()
                await self._take_over()
            except (CurveError, OSError) as error:
                _log.error("no data process can be started", volume=self.volume_id, reason=str(error))
                delay = min(5.0, delay * 2 or 0.1)
                await asyncio.sleep(delay)

    async def _take_over(self) -> None:
        descriptor = None
        if self.state.backend is Backend.LOOP:
            try:
                descriptor, blob = await self._node.keeper.get(kept_name(self.volume_id))
            except NotFound:
                self._failure = (
                    "the mount is lost: its data process and the keeper ended together; unmount and detach the volume"
                )
                _log.error(self._failure, volume=self.volume_id, path=self.state.path)
                return
            self._facts = blob.get("facts") if isinstance(blob, dict) else None
        try:
            self._save(takeovers=self.state.takeovers + 1)
            self.process = self._spawn(descriptor, takeover=True)
        finally:
            if descriptor is not None:
                os.close(descriptor)
        if self._facts is not None and not SessionFacts.from_dict(self._facts).resend:
            # Before Linux 6.9: a new request tells the new process which numbers are lost.
            try:
                await probe("statfs", self._node.store.mount_point(self.volume_id), deadline=_UNMOUNT)
            except CurveError as error:
                _log.warning("the mount does not answer after a takeover", volume=self.volume_id, reason=str(error))

    def _observe(self, report: dict[str, Any]) -> None:
        """Keep on disk what a later host must know even when no process can tell it."""
        facts = report.get("facts")
        if facts is not None:
            self._facts = facts
        size, fenced = int(report.get("size") or self.state.size), bool(report.get("fenced"))
        if fenced and not self.state.fenced:
            _log.error("fenced: another node has the volume", volume=self.volume_id, path=self.state.path)
        if (size, fenced) != (self.state.size, self.state.fenced):
            self._save(size=size, fenced=fenced or self.state.fenced)

    async def ensure_kept(self, names: dict[str, Any]) -> None:
        """After a restart of the keeper: give it the descriptor again, from the process that has it."""
        process = self.process
        if self.state.backend is not Backend.LOOP or self.state.phase is not Phase.ATTACHED:
            return
        if process is None or not process.alive or process.report.get("facts") is None:
            return
        name = kept_name(self.volume_id)
        if name not in names:
            descriptor = await process.descriptor(timeout=_STOP)
            try:
                await self._node.keeper.store(name, self._blob(), descriptor)
            finally:
                os.close(descriptor)
            _log.warning("the keeper was restarted and has the descriptor again", volume=self.volume_id)
        elif names[name] != self._blob():
            await self._node.keeper.store(name, self._blob())

    # -- changes

    async def resize(self, wanted: int) -> int:
        """Take over a size that has grown: the new one in bytes. Hold the lock. OutOfRange: it is less than wanted."""
        process = self._living()
        reply = await process.ask("resize", timeout=_UNMOUNT)
        size = int(reply["size"])
        self._save(size=size)
        device = await self.loop_device()
        if device is not None:
            await probe("stat", self.file, deadline=_UNMOUNT)  # the kernel learns the size of the file
            await asyncio.to_thread(loop.set_capacity, device)
        if size < wanted:
            raise OutOfRange(
                f"the volume has {size} bytes, {wanted} are wanted",
                where=self.state.path,
                todo="Extend it at the MDS first",
            )
        return size

    async def upgrade(self) -> Upgraded:
        """Replace the data process by one of the program installed now, without an error or a lost request."""
        old = self._living()
        await self._stop_supervision()
        try:
            return await self._hand_over(old)
        finally:
            self._supervise()

    async def _hand_over(self, old: DataProcess) -> Upgraded:
        clock, node = self._node.clock, self._node
        descriptor = None
        if self.state.backend is Backend.LOOP:
            descriptor, _ = await node.keeper.get(kept_name(self.volume_id))
        await old.ask("prepare", timeout=_STOP)
        try:
            new = self._spawn(descriptor, takeover=True, standby=True)
        finally:
            if descriptor is not None:
                os.close(descriptor)
        try:
            await new.wait_ready(node.config.open_timeout)
        except BaseException:
            new.kill()
            await new.end(_STOP)
            reply = await old.ask("resume", timeout=_STOP)
            if reply.get("withheld"):
                old.kill()  # its requests are repeated to the process that takes over
            raise
        stopped = clock.monotonic()
        try:
            await old.ask("stop", timeout=_STOP)
        except CurveError as error:
            _log.warning("the old data process did not stop in order", pid=old.pid, reason=str(error))
            old.kill()
            await old.end(_STOP)
        self.process = new
        new.report = await new.ask("go", timeout=_STOP)
        stall = clock.monotonic() - stopped
        await old.end(_CLOSE)
        _log.info("upgraded", volume=self.volume_id, old_pid=old.pid, new_pid=new.pid, stall_ms=round(stall * 1e3, 1))
        return Upgraded(old.pid, new.pid, stall)

    def _living(self) -> DataProcess:
        if self.process is None or not self.process.alive:
            condition, message = self.condition()
            raise FailedPrecondition(f"{condition.value}: {message}", where=self.state.path, todo="Try again")
        return self.process

    # -- detaching

    async def detach(self, *, force: bool) -> None:
        """Hold the lock. Raises InUse while the device is mounted or open, unless force."""
        device = await self.loop_device()
        if device is not None:
            try:
                async with asyncio.timeout(_UNMOUNT if force else None):
                    await asyncio.to_thread(loop.detach, device, patience=0.2 if force else 2.0)
            except (InUse, TimeoutError):
                if not force:
                    raise
                await self._tear_down()
                return
        process = self.process if self.state.backend is Backend.NBD and not force else None
        if process is not None and await process.connected(timeout=self._node.config.watchdog):
            raise InUse("clients are connected to its NBD socket", where=self.state.path, todo="Disconnect them first")
        await self._stop_supervision()  # the data process ends with the mount
        if self._mount() is not None:
            try:
                await probe("unmount", self._node.store.mount_point(self.volume_id), deadline=_UNMOUNT)
            except NotFound:
                pass
            except CurveError:
                if not force:
                    self._supervise()
                    raise
        self._save(phase=Phase.DETACHING)
        await self._tear_down()

    async def release(self) -> None:
        """Stop watching; the data process goes on. For the end of the host."""
        await self._stop_supervision()

    async def _tear_down(self) -> None:
        """Remove all there is, in an order in which nothing waits for a process that is gone."""
        node, volume_id = self._node, self.volume_id
        await self._stop_supervision()
        if self.process is None:
            for control in node.store.controls(volume_id):
                process = await DataProcess.find(control, node.clock, node.config.watchdog)
                if process is not None:
                    await self._end(process)
        else:
            await self._end(self.process)
        device = await self.loop_device()
        # With the last descriptor the connection ends, and with it every call that waits for an answer.
        if self.state.backend is Backend.LOOP:
            await node.keeper.delete(kept_name(volume_id))
        if device is not None:
            await asyncio.to_thread(loop.detach, device, force=True, patience=0.5)
        if self._mount() is not None:
            try:
                await probe("unmount-lazy", node.store.mount_point(volume_id), deadline=_UNMOUNT)
            except NotFound:
                pass
        node.store.remove(volume_id)
        self.process = None

    async def _end(self, process: DataProcess) -> None:
        """Let it close its volume; after an unmount it ends by itself."""
        try:
            await process.ask("stop", timeout=_STOP)
        except CurveError:
            pass  # it is ending, or does not answer
        await process.end(_CLOSE)

    def _save(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)
        self._node.store.save(self.state)

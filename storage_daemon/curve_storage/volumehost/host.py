"""The volumes attached to this node, by id, and what is done to them one at a time per volume."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

from curve_storage.client.config import load_client_config
from curve_storage.clock import Clock
from curve_storage.errors import (
    Aborted,
    Corruption,
    CurveError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from curve_storage.proto import mds_pb2
from curve_storage.rpc.leader import MdsClient
from curve_storage.telemetry import logs
from curve_storage.volumehost import leftovers
from curve_storage.volumehost.attachment import Attachment, Node, Upgraded
from curve_storage.volumehost.config import VolumeHostConfig
from curve_storage.volumehost.packet_client import KeeperClient
from curve_storage.volumehost.spare import Spare
from curve_storage.volumehost.state import Backend, Phase, StateStore, VolumeState

_log = logs.get("host")
_KEEPER_EVERY = 2.0
_MDS_TIMEOUT = 10.0
T = TypeVar("T")


class VolumeHost:
    def __init__(self, config: VolumeHostConfig, clock: Clock) -> None:
        self.config = config
        self.attachments: dict[int, Attachment] = {}
        self.problems: list[str] = []
        self.keeper_problem: str | None = "the keeper was not asked yet"
        keeper = KeeperClient(config.keeper)
        self._node = Node(config, StateStore(config.volumes), keeper, clock, Spare(config.root))
        self._mds: MdsClient | None = None
        self._keeper_check: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[Any]] = set()

    # -- life

    async def start(self) -> None:
        """Reconcile with what is there: every volume gets its data process back. Waits for the keeper."""
        self.config.volumes.mkdir(parents=True, exist_ok=True, mode=0o700)
        await self._wait_for_keeper()
        store = self._node.store
        resumed: list[Attachment] = []
        unreadable: set[int] = set()
        for volume_id in store.volume_ids():
            try:
                state = store.load(volume_id)
            except Corruption as error:
                unreadable.add(volume_id)
                self.problems.append(str(error))
                _log.error("the state of a volume cannot be read", reason=str(error))
                continue
            if state is not None:
                resumed.append(Attachment(self._node, state))
        results = await asyncio.gather(*(self._resume(attachment) for attachment in resumed), return_exceptions=True)
        for attachment, result in zip(resumed, results, strict=True):
            if isinstance(result, BaseException):
                self.problems.append(f"volume {attachment.volume_id}: {result}")
                _log.error("a volume cannot be resumed", volume=attachment.volume_id, reason=repr(result))
        self.problems += await leftovers.clean(self._node, set(self.attachments) | unreadable)
        self._node.spare.start()
        self._keeper_check = asyncio.get_running_loop().create_task(self._watch_keeper())

    async def _resume(self, attachment: Attachment) -> None:
        self.attachments[attachment.volume_id] = attachment
        async with attachment.lock:
            await attachment.resume()
            if self._node.store.load(attachment.volume_id) is None:
                del self.attachments[attachment.volume_id]

    async def stop(self) -> None:
        """Data processes go on serving; the next host finds them."""
        if self._keeper_check is not None:
            self._keeper_check.cancel()
        self._node.spare.close()
        if self._running:
            await asyncio.wait(self._running, timeout=5.0)
        for attachment in self.attachments.values():
            await attachment.release()
        if self._mds is not None:
            await self._mds.close()

    async def _wait_for_keeper(self) -> None:
        while True:
            try:
                await self._node.keeper.ping()
                self.keeper_problem = None
                return
            except CurveError as error:
                if self.keeper_problem != str(error):
                    _log.warning("waiting for the keeper", reason=str(error))
                    self.keeper_problem = str(error)
                await asyncio.sleep(0.2)

    async def _watch_keeper(self) -> None:
        while True:
            try:
                names = await self._node.keeper.names()
                self.keeper_problem = None
                for attachment in list(self.attachments.values()):
                    if not attachment.lock.locked():
                        await attachment.ensure_kept(names)
            except (CurveError, OSError) as error:
                self.keeper_problem = str(error)
                _log.warning("the keeper is not in order", reason=str(error))
            await asyncio.sleep(_KEEPER_EVERY)

    # -- operations

    async def attach(self, volume_id: int, path: str, epoch: int, backend: Backend, *, read_only: bool) -> Attachment:
        """Idempotent. Raises FailedPrecondition when it is attached in another way, or the opening's own error."""
        if not volume_id:
            volume_id = await self._resolve(path)
        return await self._run(self._attach(volume_id, path, epoch, backend, read_only))

    async def _attach(self, volume_id: int, path: str, epoch: int, backend: Backend, read_only: bool) -> Attachment:
        while True:
            attachment = self.attachments.get(volume_id)
            if attachment is None:
                state = VolumeState(volume_id, path, epoch, backend, read_only, Phase.ATTACHING)
                attachment = self.attachments[volume_id] = Attachment(self._node, state)
                async with attachment.lock:
                    try:
                        await attachment.attach()
                    except BaseException:
                        del self.attachments[volume_id]
                        raise
                _log.info("attached", volume=volume_id, path=path, epoch=epoch, backend=backend)
                return attachment
            async with attachment.lock:
                if self.attachments.get(volume_id) is not attachment:
                    continue  # detached, or failed to attach, while this call waited
                state = attachment.state
                if epoch and epoch < state.epoch:
                    raise FailedPrecondition(
                        f"epoch {epoch} is older than {state.epoch}, at which it is attached",
                        where=path or str(volume_id),
                    )
                if state.fenced or epoch > state.epoch > 0:
                    # It went to another node and came back: what is attached here can write no more.
                    await self._detach_locked(attachment, force=False)
                    continue
                if state.backend is not backend or state.read_only != read_only:
                    raise FailedPrecondition(
                        f"already attached as {state.backend}{' read-only' if state.read_only else ''}",
                        where=path or str(volume_id),
                        todo="Detach it first",
                    )
                await attachment.bind()
                return attachment

    async def detach(self, volume_id: int, *, force: bool) -> None:
        """Idempotent. Raises InUse while the device is mounted or open, unless force."""
        await self._run(self._detach(volume_id, force))

    async def _detach(self, volume_id: int, force: bool) -> None:
        attachment = self.attachments.get(volume_id)
        if attachment is None:
            return
        async with attachment.lock:
            if self.attachments.get(volume_id) is attachment:
                await self._detach_locked(attachment, force=force)

    async def _detach_locked(self, attachment: Attachment, *, force: bool) -> None:
        await attachment.detach(force=force)
        del self.attachments[attachment.volume_id]
        _log.info("detached", volume=attachment.volume_id, path=attachment.state.path, force=force)

    async def resize(self, volume_id: int, size: int) -> Attachment:
        attachment = self.get(volume_id)
        async with attachment.lock:
            await attachment.resize(size)
        return attachment

    async def upgrade(self, volume_id: int) -> list[tuple[int, Upgraded | CurveError]]:
        """One after another: the outcome per volume. volume_id 0: all."""
        self._node.spare.renew()
        chosen = [self.get(volume_id)] if volume_id else list(self.attachments.values())
        return await self._run(self._upgrade(chosen))

    async def _upgrade(self, chosen: list[Attachment]) -> list[tuple[int, Upgraded | CurveError]]:
        outcomes: list[tuple[int, Upgraded | CurveError]] = []
        for attachment in chosen:
            async with attachment.lock:
                try:
                    outcomes.append((attachment.volume_id, await attachment.upgrade()))
                except CurveError as error:
                    _log.error("upgrade failed", volume=attachment.volume_id, reason=str(error))
                    outcomes.append((attachment.volume_id, error))
        return outcomes

    def get(self, volume_id: int) -> Attachment:
        attachment = self.attachments.get(volume_id)
        if attachment is None:
            raise NotFound("not attached to this node", where=f"volume {volume_id}", todo="Attach it first")
        return attachment

    async def _run(self, operation: Coroutine[Any, Any, T]) -> T:
        """To its end, even when the caller gives up: a half-done attachment helps nobody, and a repeated call waits
        for it."""
        task = asyncio.get_running_loop().create_task(operation)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return await _shielded(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # seen: the caller may have left

    async def _resolve(self, path: str) -> int:
        if not path:
            raise InvalidArgument("neither a volume id nor a path", todo="Give one of them")
        if self.config.device_files is not None:
            raise InvalidArgument("with device_files, volumes have ids only", where=path)
        if self._mds is None:
            client = load_client_config(self.config.client)
            self._mds = MdsClient(list(client.mds), tls=client.tls, deadline=_MDS_TIMEOUT)
        request = mds_pb2.GetVolumeRequest(volume=mds_pb2.VolumeRef(path=path))
        reply = await self._mds.namespace.GetVolume(request, timeout=_MDS_TIMEOUT)
        if reply.volume.directory:
            raise InvalidArgument("this is a directory", where=path, todo="Name a volume")
        return int(reply.volume.id)


async def _shielded(task: Awaitable[T]) -> T:
    return await asyncio.shield(task)


def kernel_resends(release: str = os.uname().release) -> bool:
    """Whether this kernel repeats unanswered FUSE requests: Linux 6.9 and newer."""
    try:
        major, minor = (int(part) for part in release.split(".")[:2])
    except ValueError:
        raise Aborted(f"cannot read the kernel release {release!r}") from None
    return (major, minor) >= (6, 9)

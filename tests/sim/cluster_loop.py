"""Virtual time for real coroutines: one scheduler, and one asyncio event loop per life of a process.

A process runs its ready callbacks in order, a few at a time, so that processes interleave; nothing else runs meanwhile.
It can be paused (its callbacks wait), and killed between any two callbacks or file operations: then not one more line
of it runs, `finally` blocks included. What it would have run in threads happens at a later moment of the same loop.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

STEPS_PER_TURN = 8
WALL = 1_700_000_000.0


class Killed(BaseException):
    """Unwinds a process that was killed in the middle of a callback; what it does from here on has no effect."""


class Scheduler:
    """Events in order of virtual time (seconds), then of their making."""

    def __init__(self) -> None:
        self.time = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (max(when, self.time), next(self._order), action))

    def later(self, delay: float, action: Callable[[], None]) -> None:
        self.at(self.time + delay, action)

    def step(self) -> None:
        when, _, action = heapq.heappop(self._queue)
        self.time = when
        action()


class Numbered:
    """Hashes by creation: iteration over sets is the same in every run."""

    numbers = itertools.count()
    """Renewed for each simulation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._number = next(Numbered.numbers)
        super().__init__(*args, **kwargs)

    def __hash__(self) -> int:
        return self._number


class SimTask(Numbered, asyncio.Task):  # type: ignore[type-arg]
    pass


class SimFuture(Numbered, asyncio.Future):  # type: ignore[type-arg]
    pass


class SimExecutor:
    """Stands for a ThreadPoolExecutor: `ProcessLoop.run_in_executor` runs the work."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def shutdown(self, *args: Any, **kwargs: Any) -> None:
        pass


class Process:
    """A program on a machine of its own: survives its lives. rate, offset: of its monotonic clock against the world's.

    boot: makes the coroutine of a new life. network: see cluster_network; steps, errors: reported to `world`."""

    running: Process | None = None

    def __init__(self, world: Any, name: str, boot: Callable[[Process], Coroutine[Any, Any, None]]) -> None:
        self.world = world
        self.name = name
        self.boot = boot
        self.rng: random.Random = world.rng
        self.offset = self.rng.uniform(100, 100_000)
        self.rate = 1 + self.rng.uniform(-0.03, 0.03)
        self.wall_offset = self.rng.uniform(-2, 2)
        self.paused_until = 0.0
        self.loop: ProcessLoop | None = None
        self.lives = 0
        self.crash_after = 0
        """Steps (callbacks, file operations) until it is killed; 0: not armed."""
        self.slow = 1.0
        """Factor on the time that its disk takes."""
        self.on_kill: list[Callable[[], None]] = []
        self._buried: list[ProcessLoop] = []

    # --- its clock -------------------------------------------------------------------------------------------------

    def monotonic(self) -> float:
        return self.offset + self.world.scheduler.time * self.rate

    def wall(self) -> float:
        return WALL + self.world.scheduler.time + self.wall_offset

    # --- life ------------------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        return self.loop is not None

    def start(self) -> None:
        assert self.loop is None
        self.lives += 1
        self.crash_after = 0
        self.paused_until = 0.0
        loop = self.loop = ProcessLoop(self)

        def begin() -> None:
            loop.create_task(self.boot(self)).add_done_callback(ended)

        def ended(main: asyncio.Task[None]) -> None:
            if not main.cancelled() and (error := main.exception()) is not None:
                self.world.ended(self, error)

        loop.call_soon(begin)

    def kill(self) -> None:
        loop, self.loop = self.loop, None
        if loop is None:
            return
        self.crash_after = 0
        self._buried.append(loop)
        for action in self.on_kill:
            action()

    def step(self) -> None:
        """Counts one step of this process; it may be its last. Raises Killed."""
        if self.crash_after:
            self.crash_after -= 1
            if not self.crash_after:
                self.world.note(self.name, "dies in the middle of its work")
                self.kill()
                raise Killed

    def disk_delay(self) -> float:
        rng = self.rng
        delay = rng.uniform(0.0001, 0.003) if rng.random() < 0.95 else rng.uniform(0.01, 0.1)
        return delay * self.slow

    def dispose(self) -> None:
        """Ends the coroutines of all lives, after the simulation: none may see a real event loop."""
        self.kill()
        for loop in self._buried:
            loop.dispose()
        self._buried.clear()


class ProcessLoop(asyncio.AbstractEventLoop):
    """The event loop of one life."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._scheduler: Scheduler = process.world.scheduler
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._order = itertools.count()
        self._woken = float("inf")
        self._tasks: dict[asyncio.Task[Any], None] = {}

    @property
    def alive(self) -> bool:
        return self.process.loop is self

    # --- turns -----------------------------------------------------------------------------------------------------

    def _wake(self, when: float) -> None:
        if when < self._woken:
            self._woken = when
            self._scheduler.at(when, lambda: self._turn(when))

    def _turn(self, when: float) -> None:
        if when != self._woken or not self.alive:
            return
        process, now = self.process, self._scheduler.time
        self._woken = float("inf")
        if process.paused_until > now:
            self._wake(process.paused_until)
            return
        ready, timers = self._ready, self._timers
        local = process.monotonic() + 1e-9
        while timers and timers[0][0] <= local:
            handle = heapq.heappop(timers)[2]
            if not handle._cancelled:
                ready.append(handle)
        self.run(STEPS_PER_TURN)
        if not self.alive:
            return
        if ready:
            self._wake(now + 2e-5)
        elif timers:
            self._wake(now + max(0.0, (timers[0][0] - process.monotonic()) / process.rate))

    def run(self, most: int) -> None:
        process, ready = self.process, self._ready
        Process.running = process
        asyncio._set_running_loop(self)
        try:
            while ready and most and self.alive:
                handle = ready.popleft()
                if handle._cancelled:
                    continue
                most -= 1
                process.world.steps += 1
                process.step()
                handle._run()
        except Killed:
            pass
        finally:
            asyncio._set_running_loop(None)
            Process.running = None

    def dispose(self) -> None:
        self._ready.clear()
        self._timers.clear()
        for task in self._tasks:
            with suppress(BaseException):
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                task.get_coro().close()  # type: ignore[union-attr]
        self._tasks.clear()

    # --- AbstractEventLoop -------------------------------------------------------------------------------------------

    def time(self) -> float:
        return self.process.monotonic()

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if self.alive:
            self._ready.append(handle)
            if Process.running is not self.process:
                self._wake(self._scheduler.time)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        if self.alive:
            heapq.heappush(self._timers, (when, next(self._order), handle))
            if Process.running is not self.process or not self._ready:
                process = self.process
                self._wake(self._scheduler.time + max(0.0, (when - process.monotonic()) / process.rate))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def create_future(self) -> asyncio.Future[Any]:
        return SimFuture(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Any = None) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = SimTask(coro, loop=self, name=name, context=context)
        self._tasks[task] = None
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        future = self.create_future()

        def work() -> None:
            failure: Exception | None = None
            result = None
            try:
                result = func(*args)
            except Exception as error:
                failure = error

            def settle() -> None:
                if future.done():
                    return
                if failure is not None:
                    future.set_exception(failure)
                else:
                    future.set_result(result)

            self.call_soon(settle)

        self.later(self.process.disk_delay(), work)
        return future

    def later(self, delay: float, action: Callable[[], Any]) -> None:
        """After real seconds of the world, not of the process' clock; what threads and devices do."""
        if delay <= 0:
            self.call_soon(action)
        else:
            self._scheduler.later(delay, lambda: self.call_soon(action) and None)

    async def create_server(self, factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        return self.process.world.network.listen(self, factory, host, port)

    async def create_connection(self, factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:
        return await self.process.world.network.connect(self, factory, f"{host}:{port}")

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, Killed) or not self.alive:
            return
        self.process.world.unforeseen(self.process, context.get("message", ""), error)

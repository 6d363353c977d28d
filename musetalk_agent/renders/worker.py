"""A render worker: takes tickets, carries them out, and reports that it is alive. A process of its own, at the lowest priority.

Its standard input says when it may work: a line `wait` stops it within a second of film, `work` lets it go on, and the end of the
input ends it, so it does not outlive the process that started it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import sys
from pathlib import Path

from musetalk_agent.agent_settings import AgentSettings
from musetalk_agent.factory import Factory
from musetalk_agent.protocol.render_queue import RenderQueue, RenderTicket, default_target
from musetalk_agent.protocol.renders import RenderFolder
from musetalk_agent.renders.render_job import RenderJobs

log = logging.getLogger(__name__)

_POLL_S = 0.5
_ALIVE_S = 1.0
_IDLE_S = 60.0
_SWEEP_S = 5.0


class RenderWorker:
    """Works until it is stopped, or has had nothing to do for a minute.

    Args:
        settings: `renders_dir` is set.
        name: what the queue knows it by; never used twice at the same time.
        stay: go on when there is nothing to do.
    """

    def __init__(self, settings: AgentSettings, name: str | None = None, *, stay: bool = False) -> None:
        if settings.renders_dir is None:
            raise ValueError("RENDERS_DIR is not set")
        self._settings, self._stay = settings, stay
        self._root: Path = settings.renders_dir
        self.name = name or f"{os.uname().nodename[:24]}-{os.getpid()}-{secrets.token_hex(3)}"
        self._free = asyncio.Event()
        self._free.set()
        self.ending = asyncio.Event()
        self.holds = False
        """A ticket is taken, and the queue does not know yet that it is done or given back."""

    async def run(self) -> None:
        """Works. What it holds when it ends is given back. Raises EngineUnavailable and the like where no engine can run."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        target = self._settings.renders_queue
        with RenderQueue(target.get_secret_value() if target else default_target(self._root)) as queue:
            factory = Factory(self._settings)
            living = asyncio.create_task(self._say_that_it_lives(queue), name="alive")
            try:
                await factory.start()
                await self._work(queue, self._jobs(factory, queue))
            finally:
                living.cancel()
                await asyncio.gather(living, return_exceptions=True)
                await asyncio.to_thread(queue.give_back, self.name)
                await factory.aclose()

    def hold(self) -> None:
        """Live sessions need the machine."""
        self._free.clear()

    def go_on(self) -> None:
        """They do not any more."""
        self._free.set()

    def _jobs(self, factory: Factory, queue: RenderQueue) -> RenderJobs:
        async def put(tickets: list[RenderTicket]) -> None:
            await asyncio.to_thread(queue.put, *tickets)

        async def turn() -> None:
            await self._free.wait()

        return RenderJobs(factory, RenderFolder(self._root), put, turn)

    async def _work(self, queue: RenderQueue, jobs: RenderJobs) -> None:
        loop = asyncio.get_running_loop()
        idle_since = loop.time()
        ending = asyncio.create_task(self.ending.wait(), name="ending")
        doing: asyncio.Task[bool] | None = None
        try:
            while not self.ending.is_set() and (self._stay or loop.time() - idle_since < _IDLE_S):
                doing = asyncio.create_task(self._step(queue, jobs), name="ticket")
                await asyncio.wait({doing, ending}, return_when=asyncio.FIRST_COMPLETED)
                if self.ending.is_set():
                    return
                try:
                    found = await doing
                except Exception:  # task boundary: the ticket waits again, and its tries are counted
                    log.exception("a ticket broke, or the queue does not answer")
                    found = False
                if found:
                    idle_since = loop.time()
                else:
                    await asyncio.wait({ending}, timeout=_POLL_S)
        finally:
            tasks = [task for task in (ending, doing) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _step(self, queue: RenderQueue, jobs: RenderJobs) -> bool:
        """Does the next ticket, and says whether there was one."""
        if not self._free.is_set():
            return False
        if self.holds:  # the last step broke
            await asyncio.to_thread(queue.give_back, self.name)
            self.holds = False
        taken = await asyncio.to_thread(queue.take, self.name)
        if taken is None:
            return False
        self.holds = True
        await jobs.do(taken.ticket)
        await asyncio.to_thread(queue.done, self.name, taken)
        self.holds = False
        return True

    async def _say_that_it_lives(self, queue: RenderQueue) -> None:
        loop = asyncio.get_running_loop()
        swept = loop.time()
        while True:
            try:
                await asyncio.to_thread(queue.alive, self.name)
                if loop.time() - swept > _SWEEP_S:
                    swept = loop.time()
                    if count := await asyncio.to_thread(queue.give_back_of_the_dead):
                        log.warning("a worker died, and its tickets wait again", extra={"tickets": count})
            except Exception:  # task boundary: a queue that is away for a moment must not end the worker
                log.exception("the queue does not answer")
            await asyncio.sleep(_ALIVE_S)


async def serve(settings: AgentSettings, *, stay: bool, supervised: bool, name: str | None = None) -> None:
    """Runs a worker until SIGTERM, SIGINT or, with `supervised`, the end of standard input, which says when to wait."""
    worker = RenderWorker(settings, name, stay=stay)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.ending.set)
    if supervised:
        loop.add_reader(sys.stdin.fileno(), _read_orders, worker, loop)
    try:
        await worker.run()
    finally:
        if supervised:
            loop.remove_reader(sys.stdin.fileno())


def _read_orders(worker: RenderWorker, loop: asyncio.AbstractEventLoop) -> None:
    lines = os.read(sys.stdin.fileno(), 4096)
    if not lines:
        worker.ending.set()
        loop.remove_reader(sys.stdin.fileno())
    last = lines.split()[-1:]
    if last == [b"wait"]:
        worker.hold()
    elif last == [b"work"]:
        worker.go_on()

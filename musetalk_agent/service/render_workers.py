"""The agent's workers for renders: processes that are there while there is something to do, and wait for live sessions.

Renders never hurt a session: a worker is a process of its own, with the lowest priority for the processors. Where the engine is
on a card, which knows no priorities between processes, a worker waits as long as any session speaks or starts; on processors
only while sessions take most of them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from musetalk_agent.agent_metrics import RENDER_WORKERS
from musetalk_agent.agent_settings import AgentSettings
from musetalk_agent.protocol.render_queue import SILENT_S, RenderQueue, default_target
from musetalk_agent.tasks import supervise

log = logging.getLogger(__name__)

LOOK_S = 0.5
_DEAD_EVERY_S = SILENT_S / 3
"""Each look for workers that have died writes to the queue, which is a file."""
_ENDS_S = 3.0
_CORES_OF_A_SPEAKER = 0.5
"""What a session that speaks takes of a core at 720p with `warp` (docs/reference/performance.md)."""


def must_wait(speaking: int, on_card: bool, cores: int) -> bool:
    """Whether `speaking` sessions need what a worker would take."""
    if on_card:
        return speaking > 0
    return speaking * _CORES_OF_A_SPEAKER > max(1, cores - 1)


class RenderWorkers:
    """Keeps the workers. `run` is its task.

    Args:
        settings: `renders_dir` is set.
        speaking: sessions that speak or start now.
        on_card: whether the default engine is on a card.
    """

    def __init__(self, settings: AgentSettings, speaking: Callable[[], int], on_card: Callable[[], bool]) -> None:
        self._settings, self._speaking, self._on_card = settings, speaking, on_card
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._command = "work"

    async def run(self) -> None:
        """Looks twice a second until cancelled; then the workers end, and what they held waits for others."""
        try:
            await supervise("renders", self._look_on)
        finally:
            await self._end()

    async def _look_on(self) -> None:
        root = self._settings.renders_dir
        assert root is not None
        target = self._settings.renders_queue
        await asyncio.to_thread(root.mkdir, 0o700, True, True)
        next_dead = 0.0
        with RenderQueue(target.get_secret_value() if target else default_target(root)) as queue:
            while True:
                for name in [name for name, each in self._processes.items() if each.returncode is not None]:
                    code = self._processes.pop(name).returncode
                    if count := await asyncio.to_thread(queue.give_back, name):
                        log.warning("a worker died, and its tickets wait again", extra={"tickets": count, "code": code})
                waits = must_wait(self._speaking(), self._on_card(), os.cpu_count() or 1)
                self._send("wait" if waits else "work")
                if not waits and len(self._processes) < self._settings.render_workers:
                    if await asyncio.to_thread(queue.waiting):
                        await self._start()
                    elif not self._processes and time.monotonic() >= next_dead:
                        await asyncio.to_thread(queue.give_back_of_the_dead)
                        next_dead = time.monotonic() + _DEAD_EVERY_S
                RENDER_WORKERS.set(len(self._processes))
                await asyncio.sleep(LOOK_S)

    async def _start(self) -> None:
        name = f"agent-{os.getpid()}-{secrets.token_hex(4)}"
        command = ["-m", "musetalk_agent", "render-worker", "--supervised", "--name", name]
        self._processes[name] = process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            stdin=asyncio.subprocess.PIPE,
            env={**os.environ, "AGENT_ENGINE": self._settings.engine},
        )
        log.info("a worker for renders began", extra={"pid": process.pid})

    def _send(self, word: str) -> None:
        if word == self._command:
            return
        self._command = word
        for process in self._processes.values():
            if process.stdin is not None:
                process.stdin.write(f"{word}\n".encode())

    async def _end(self) -> None:
        """Closes every worker's input, which ends it; one that does not end is killed."""
        for process in self._processes.values():
            if process.stdin is not None:
                process.stdin.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(_ENDS_S):
                await asyncio.gather(*(process.wait() for process in self._processes.values()))
        for process in self._processes.values():
            if process.returncode is None:
                process.kill()
                await process.wait()

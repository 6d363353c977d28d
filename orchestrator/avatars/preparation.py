"""Preparations in progress: an agent receives an avatar's clip and makes everything that its sessions will need."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import time
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from musetalk_agent.protocol.http import AvatarSource
from musetalk_agent.protocol.preparation_messages import AgentPrepareRequest, PreparedAvatar
from musetalk_agent.protocol.problem_body import Problem
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.agents.agent_client import AgentClient, AgentLease
from orchestrator.agents.pool import AgentPool
from orchestrator.avatars.avatar_record import AvatarRecord, AvatarState
from orchestrator.avatars.avatar_storage import AvatarStorage
from orchestrator.avatars.clip_supply import supply, with_clip

AT_ONCE = 4
"""Preparations that agents are asked for at the same time; further ones wait here."""
RETRY_S = 2.0
GIVE_UP_S = 600.0
"""An avatar that no agent has taken for so long has failed."""
_LATER = frozenset(
    {
        ErrorCode.AGENT_UNAVAILABLE,
        ErrorCode.AT_CAPACITY,
        ErrorCode.NOT_READY,
        ErrorCode.DRAINING,
        ErrorCode.ENGINE_FAILED,
    }
)
"""Errors that say something of the agent, and nothing of the avatar."""
_log = logging.getLogger(__name__)


@dataclass
class _Preparing:
    task: asyncio.Task[None]
    progress: float = 0.0
    again: bool = False


class Preparations:
    """Prepares avatars in the background, each once at a time.

    Args:
        changing: held by who changes a record.
    """

    def __init__(self, folder: AvatarStorage, pool: AgentPool, agents: AgentClient, changing: asyncio.Lock) -> None:
        self._folder, self._pool, self._agents, self._changing = folder, pool, agents, changing
        self._running: dict[str, _Preparing] = {}
        self._spreading: set[asyncio.Task[None]] = set()
        self._free = asyncio.Semaphore(AT_ONCE)

    def begin(self, avatar_id: str) -> None:
        """Begins to prepare it; where that goes on already, the record is looked at once more after it."""
        if (running := self._running.get(avatar_id)) is not None:
            running.again = True
            return
        task = asyncio.create_task(self._run(avatar_id), name=f"prepare-{avatar_id}")
        self._running[avatar_id] = _Preparing(task)
        task.add_done_callback(lambda ended: self._over(avatar_id, ended))

    def _over(self, avatar_id: str, task: asyncio.Task[None]) -> None:
        running = self._running.pop(avatar_id)
        _log_failure(task, avatar_id)
        if running.again and not task.cancelled():
            self.begin(avatar_id)

    def _spread_over(self, avatar_id: str, task: asyncio.Task[None]) -> None:
        self._spreading.discard(task)
        _log_failure(task, avatar_id)

    def end(self, avatar_id: str) -> None:
        """It is not needed any more."""
        if (running := self._running.get(avatar_id)) is not None:
            running.task.cancel()

    def progress(self, avatar_id: str) -> float:
        """How far it is, 0 … 1."""
        running = self._running.get(avatar_id)
        return round(running.progress, 3) if running is not None else 0.0

    async def wait(self, avatar_id: str, within_s: float) -> None:
        """Returns when the preparation is over, or after a quarter of a second, or `within_s`, whichever comes first."""
        running = self._running.get(avatar_id)
        step_s = min(within_s, 0.25)
        if running is None:
            await asyncio.sleep(step_s)  # another orchestrator prepares it
        else:
            await asyncio.wait({running.task}, timeout=step_s)

    async def clip(
        self, lease: AgentLease, record: AvatarRecord, idle: str, source: str | None, url: str | None = None
    ) -> PreparedAvatar:
        """Has a clip of an avatar (one that the agent has, or one at an address) prepared and compared with it.

        Raises ProblemError, `clip_mismatch` among them.
        """
        request = AgentPrepareRequest(
            avatar=AvatarSource(avatar_id=source),
            clip_url=url,
            clip_of=AvatarSource(avatar_id=idle),
            avatar_settings=record.settings.mouth,
        )
        return await with_clip(
            lambda: self._agents.prepare(lease, request, lambda _: None),
            lambda: supply(self._folder, self._agents, lease, idle),
        )

    async def aclose(self) -> None:
        """Ends what runs. Idempotent."""
        tasks = [*(running.task for running in self._running.values()), *self._spreading]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, avatar_id: str) -> None:
        until = time.monotonic() + GIVE_UP_S
        while True:
            record = await asyncio.to_thread(self._folder.read, avatar_id)
            if record is None or record.state is not AvatarState.PREPARING:
                return
            try:
                async with self._free:
                    await self._once(record)
            except ProblemError as error:
                if error.code not in _LATER or time.monotonic() >= until:
                    await self._changed(avatar_id, {"state": AvatarState.FAILED, "error": Problem.of(error)})
                    return
                _log.warning("avatar waits for an agent", extra={"avatar_id": avatar_id, "reason": error.detail})
                await asyncio.sleep(RETRY_S)
            except Exception as error:  # noqa: BLE001 - task boundary: one avatar that cannot be prepared is failed, and no other
                _log.exception("an avatar could not be prepared", extra={"avatar_id": avatar_id})
                broken = ProblemError(ErrorCode.INTERNAL, f"The avatar could not be prepared ({type(error).__name__}).")
                await self._changed(avatar_id, {"state": AvatarState.FAILED, "error": Problem.of(broken)})
                return

    async def _once(self, record: AvatarRecord) -> None:
        """One attempt at one agent."""
        async with self._pool.borrow() as lease:
            if record.source is None and record.url is not None:
                record = await self._fetched(lease, record)
            prepared = await self.at(lease, record)
            poster = _decoded(prepared)
            await asyncio.to_thread(self._folder.write_poster, record.avatar_id, poster)
            update = {"state": AvatarState.READY, "report": prepared.report, "error": None, "agent": lease.name}
            if await self._changed(record.avatar_id, update, made_for=record) and record.source is not None:
                self._pool.remember_avatar(record.source, lease)
                task = asyncio.create_task(self._spread(record, lease), name=f"spread-{record.avatar_id}")
                self._spreading.add(task)
                task.add_done_callback(partial(self._spread_over, record.avatar_id))

    async def _fetched(self, lease: AgentLease, record: AvatarRecord) -> AvatarRecord:
        """The agent fetches the clip from its address, and this library keeps a copy."""
        request = AgentPrepareRequest(clip_url=record.url, avatar_settings=record.settings.mouth)
        prepared = await self._agents.prepare(lease, request, self._reporter(record.avatar_id))
        source, size = await self.copy(lease, prepared.report.avatar_id)
        update = {"source": source, "size": size}
        await self._changed(record.avatar_id, update)
        return record.model_copy(update=update)

    async def copy(self, lease: AgentLease, clip: str) -> tuple[str, int]:
        """Copies a clip from an agent into the folder; returns its name and its size in bytes. Raises ProblemError."""
        incoming = await asyncio.to_thread(self._folder.incoming)
        try:
            async with aclosing(self._agents.clip(lease, clip)) as coming:
                async for piece in coming:
                    await asyncio.to_thread(incoming.write, piece)
            source, _ = await asyncio.to_thread(incoming.keep)
        finally:
            await asyncio.shield(asyncio.to_thread(incoming.drop))
        return source, incoming.size

    async def at(self, lease: AgentLease, record: AvatarRecord) -> PreparedAvatar:
        """Everything that a session of this avatar needs at this agent, which gets the clip if it lacks it. Raises ProblemError."""
        source = record.source or ""
        request = AgentPrepareRequest(avatar=AvatarSource(avatar_id=source), avatar_settings=record.settings.mouth)
        report = self._reporter(record.avatar_id)
        return await with_clip(
            lambda: self._agents.prepare(lease, request, report),
            lambda: supply(self._folder, self._agents, lease, source),
        )

    async def _spread(self, record: AvatarRecord, first: AgentLease) -> None:
        """Has the other agents prepare it too. One that cannot does so when a session comes."""
        for lease in self._pool.leases():
            if lease.name != first.name:
                with suppress(ProblemError):
                    await self.at(lease, record)

    def _reporter(self, avatar_id: str) -> Any:
        running = self._running.get(avatar_id)

        def report(progress: float) -> None:
            if running is not None:
                running.progress = max(running.progress, min(1.0, progress))

        return report

    async def _changed(self, avatar_id: str, update: dict[str, Any], made_for: AvatarRecord | None = None) -> bool:
        """Stores the result; False when the avatar is gone, or wants other artefacts by now."""
        async with self._changing:
            record = await asyncio.to_thread(self._folder.read, avatar_id)
            if record is None:
                return False
            if made_for is not None and made_for.settings.prepared_for != record.settings.prepared_for:
                return False  # `_run` looks again
            await asyncio.to_thread(self._folder.write, record.model_copy(update=update))
            return True


def _log_failure(task: asyncio.Task[None], avatar_id: str) -> None:
    """A disk that fails ends a preparation; the next start of the service takes it up."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("a preparation broke", exc_info=error, extra={"avatar_id": avatar_id})


def _decoded(prepared: PreparedAvatar) -> bytes:
    try:
        return base64.b64decode(prepared.poster, validate=True)
    except binascii.Error as error:
        raise ProblemError(ErrorCode.AGENT_UNAVAILABLE, "The agent's poster is not in base64.") from error

"""Has agents that were started later prepare the avatars of the library before a session needs them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from musetalk_agent.protocol.problems import ProblemError
from orchestrator.agents.agent_client import AgentLease
from orchestrator.agents.pool import AgentPool
from orchestrator.avatars.avatar_record import AvatarRecord, AvatarState
from orchestrator.avatars.avatar_storage import AvatarStorage
from orchestrator.supervision import supervise

LOOK_S = 5.0
"""How often agents are looked at."""
MOST = 16
"""Avatars that a new agent prepares, the newest first, one after the other; it has the others when a session comes."""
_log = logging.getLogger(__name__)


class Newcomers:
    """Looks for agents that were not there before, and warms them.

    An agent is another one when its process is. For one that has everything in its cache this costs a look at each avatar. Agents
    without an address of their own (at Modal) share a cache and are left alone.

    Args:
        prepare: has an agent prepare an avatar. Raises ProblemError.
    """

    def __init__(
        self, folder: AvatarStorage, pool: AgentPool, prepare: Callable[[AgentLease, AvatarRecord], Awaitable[object]]
    ) -> None:
        self._folder, self._pool, self._prepare = folder, pool, prepare
        self._known: dict[str, str] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._watching: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """From now on."""
        self._watching = asyncio.create_task(supervise("new-agents", self._watch, None), name="new-agents")

    async def aclose(self) -> None:
        """Ends what runs. Idempotent."""
        tasks = [*([self._watching] if self._watching else []), *self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def look(self) -> None:
        """One look at all agents. A new one is warmed beside what else happens."""
        leases = {lease.name: lease for lease in self._pool.leases()}
        for agent in await self._pool.status():
            instance = agent.health.instance if agent.health is not None and agent.usable else ""
            lease = leases.get(agent.base_url)
            if lease is None or not instance or self._known.get(lease.name) == instance or lease.name in self._tasks:
                continue
            self._known[lease.name] = instance
            task = asyncio.create_task(self._warm(lease), name=f"warm-{lease.name}")
            self._tasks[lease.name] = task
            task.add_done_callback(partial(self._over, lease.name))

    async def warmed(self) -> None:
        """Returns when none is being warmed."""
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def _warm(self, lease: AgentLease) -> None:
        records = sorted(await asyncio.to_thread(self._folder.records), key=lambda record: -record.created_at)
        ready = [record for record in records if record.state is AvatarState.READY and record.source is not None]
        for record in ready[:MOST]:
            try:
                await self._prepare(lease, record)
            except ProblemError as error:
                _log.info("an avatar was not prepared ahead", extra={"agent": lease.name, "reason": error.detail})

    def _over(self, name: str, task: asyncio.Task[None]) -> None:
        self._tasks.pop(name, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("an agent was not warmed", exc_info=error, extra={"agent": name})

"""Fetches the film of one session from the agents that have the session, one after the other."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque

from musetalk_agent.protocol.http import FilmEntry
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.agents.agent_client import AgentClient, AgentLease
from orchestrator.metrics import Metrics
from orchestrator.recording.film_store import StoreFailed
from orchestrator.recording.growing_film import GrowingFilm

_AGAIN_S = 0.25
_LEFT_S = 5.0
"""An agent that the session has left is asked for the rest for so long: it may hang."""
_LOG_EVERY_S = 60.0
"""A store that fails is tried again twice a second; the log says so once in this time."""
_GONE = frozenset({ErrorCode.SESSION_NOT_FOUND, ErrorCode.SESSION_ENDED, ErrorCode.NOT_FOUND})
_log = logging.getLogger(__name__)


class FilmCollector:
    """Runs while a session is recorded. The agents' logs are read in the order in which they have the session.

    Args:
        film: takes what comes.
        lease: the agent that has the session; None while it has none.
    """

    def __init__(self, film: GrowingFilm, agents: AgentClient, metrics: Metrics, lease: AgentLease | None) -> None:
        self._film, self._agents, self._metrics = film, agents, metrics
        self._leases = deque([lease] if lease is not None else [])
        self._moved = asyncio.Event()
        self._news = asyncio.Event()
        self._last = False
        self._quiet_until = 0.0
        self._task = asyncio.create_task(self._run(), name=f"film-{film.index.session_id}")

    def follow(self, lease: AgentLease) -> None:
        """Another agent has the session."""
        if self._leases and self._leases[-1] is lease:
            return
        self._leases.append(lease)
        self._moved.set()

    async def reaches(self, log_id: str, entry: int, within_s: float) -> bool:
        """Waits until that entry was taken; returns whether it was."""
        film = self._film
        try:
            async with asyncio.timeout(within_s):
                while (film.log_id, film.entry < entry) != (log_id, False):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            return False
        return True

    async def finish(self, within_s: float) -> None:
        """The session has no agent any more: waits for what the last one still has, and ends."""
        self._last = True
        self._moved.set()
        await asyncio.wait({self._task}, timeout=within_s)
        await self.aclose()

    async def aclose(self) -> None:
        """Ends, and stores what it has, where the store takes it."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._flush()

    async def _run(self) -> None:
        while True:
            if not self._leases:
                if self._last:
                    return
                await self._moved.wait()
                self._moved.clear()
                continue
            await self._exhaust(self._leases[0])
            if self._leases:
                self._leases.popleft()

    async def _exhaust(self, lease: AgentLease) -> None:
        """Reads the agent's log until its end, or until there is nobody to read it from and another agent has the session."""
        reading = asyncio.create_task(self._read(lease))
        left = asyncio.create_task(self._until_left())
        try:
            await asyncio.wait({reading, left}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                await asyncio.wait({reading}, timeout=_LEFT_S)
        finally:
            for task in (reading, left):
                task.cancel()
            results = await asyncio.gather(reading, left, return_exceptions=True)
        for error in results:
            if isinstance(error, Exception):
                _log.error("a film is not fetched any more", exc_info=error)

    @property
    def _is_left(self) -> bool:
        return self._last or len(self._leases) > 1

    async def _until_left(self) -> None:
        while not self._is_left:
            self._moved.clear()
            await self._moved.wait()

    async def _read(self, lease: AgentLease) -> None:
        film, session_id = self._film, self._film.index.session_id
        while True:
            try:
                answer = self._agents.film(lease, session_id, film.stored_entry, film.log_id)
                async for log_id, number, kind, payload in answer:
                    if log_id != film.log_id:
                        film.new_log(log_id)
                    film.take(number, kind, payload)
                    self._metrics.film_bytes.inc(len(payload))
                    self._news.set()
                    if film.due or kind is FilmEntry.END:
                        await self._flush()
                    if kind is FilmEntry.CLOSED:
                        return
            except ProblemError as error:
                if self._is_left or error.code in _GONE:
                    return
                await asyncio.sleep(_AGAIN_S)
            while film.full:  # the agent keeps what there is, as far as it has room
                await asyncio.sleep(_AGAIN_S)
                await self._flush()

    async def _flush(self) -> None:
        try:
            await self._film.flush()
        except StoreFailed as error:
            self._metrics.film_store_errors.inc()
            if time.monotonic() < self._quiet_until:
                return
            self._quiet_until = time.monotonic() + _LOG_EVERY_S
            _log.error(
                "a film cannot be stored", extra={"session_id": self._film.index.session_id, "error": str(error)[:200]}
            )

"""Fetches the film of one session from the agents that have the session, one after the other.

Between two agents the film gets the speech that was heard and that the first one did not hand over: what it said last, and what the
orchestrator's own voice said.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque

from musetalk_agent.protocol.http import FilmEntry
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.agents.agent_client import AgentClient, AgentLease
from orchestrator.audio.heard_speech import HeardPcm, HeardSpeech, Position
from orchestrator.metrics import Metrics
from orchestrator.recording.film_store import StoreFailed
from orchestrator.recording.growing_film import GrowingFilm

_AGAIN_S = 0.25
_LEFT_S = 5.0
"""An agent that the session has left is asked for the rest for so long: it may hang."""
_LEAST_S = 0.03
"""Less speech than this is not missing: what is heard and what a film has are known to some 20 ms."""
_LOG_EVERY_S = 60.0
"""A store that fails is tried again twice a second; the log says so once in this time."""
_GONE = frozenset({ErrorCode.SESSION_NOT_FOUND, ErrorCode.SESSION_ENDED, ErrorCode.NOT_FOUND})
_log = logging.getLogger(__name__)


class FilmCollector:
    """Runs while a session is recorded. The agents' logs are read in the order in which they have the session.

    Args:
        film: takes what comes.
        lease: the agent that has the session; None while it has none.
        heard: the speech of the session; may be set later.
    """

    def __init__(
        self,
        film: GrowingFilm,
        agents: AgentClient,
        metrics: Metrics,
        lease: AgentLease | None,
        heard: HeardSpeech | None = None,
    ) -> None:
        self.heard = heard
        self._film, self._agents, self._metrics = film, agents, metrics
        self._leases: deque[tuple[AgentLease, Position]] = deque([(lease, (0, 0.0))] if lease is not None else [])
        self._moved = asyncio.Event()
        self._news = asyncio.Event()
        self._last = self._closed = False
        self._quiet_until = 0.0
        self._task = asyncio.create_task(self._run(), name=f"film-{film.index.session_id}")

    def follow(self, lease: AgentLease) -> None:
        """Another agent has the session, and speaks on where `heard` ends now."""
        if self._leases and self._leases[-1][0] is lease:
            return
        self._leases.append((lease, self._heard_until))
        self._moved.set()

    @property
    def _heard_until(self) -> Position:
        return self.heard.end if self.heard is not None else (0, 0.0)

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
                    if not self._closed:
                        await self._say_missing(self._heard_until)
                    return
                await self._moved.wait()
                self._moved.clear()
                continue
            lease, spoken = self._leases[0]
            await self._say_missing(spoken)
            await self._exhaust(lease)
            self._leases.popleft()

    async def _say_missing(self, until: Position) -> None:
        """Adds the speech that was heard up to that position and is not in the film."""
        film = self._film
        speech = self.heard.between(film.spoken, until) if self.heard is not None else []
        frames: list[bytes] = []
        if sum(part.seconds for part in speech) > _LEAST_S:
            frames = await asyncio.to_thread(_encode, speech)
        film.say(frames, until)

    async def _exhaust(self, lease: AgentLease) -> None:
        """Reads the agent's log until its end, or until it can be read from no agent and another one has the session."""
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
        film, session_id, first = self._film, self._film.index.session_id, ""
        self._closed = False
        while True:
            try:
                answer = self._agents.film(lease, session_id, film.stored_entry, film.log_id)
                async for log_id, number, kind, payload in answer:
                    if first and log_id != first:
                        return  # it has begun anew: that is for `follow` to say
                    first = log_id
                    if log_id != film.log_id:
                        film.new_log(log_id)
                    film.take(number, kind, payload)
                    self._metrics.film_bytes.inc(len(payload))
                    self._news.set()
                    if film.due or kind is FilmEntry.END:
                        await self._flush()
                    if kind is FilmEntry.CLOSED:
                        self._closed = True
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


def _encode(speech: list[HeardPcm]) -> list[bytes]:
    from orchestrator.recording.speech_encoder import encode_speech  # half a second, in the thread

    return encode_speech(speech)

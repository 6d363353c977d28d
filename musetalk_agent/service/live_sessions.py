"""Every session of the process: capacity, start, stop, and the memory of those that ended."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from musetalk_agent.admission.admission import Admission, Running, Scene, SessionLimits
from musetalk_agent.admission.costs import Demand, demand_of
from musetalk_agent.admission.machine import Host
from musetalk_agent.agent_metrics import (
    CLOCK_LATE,
    SESSIONS,
    SESSIONS_ENDED,
    SESSIONS_LIMIT,
    SESSIONS_MAX,
    START_SECONDS,
)
from musetalk_agent.clock import utc_now
from musetalk_agent.engine_pool import USUAL_FPS
from musetalk_agent.errors import (
    AtCapacity,
    Draining,
    EngineFailed,
    EngineUnavailable,
    NotReady,
    SessionConflict,
    SessionEnded,
    SessionNotFound,
)
from musetalk_agent.factory import Factory
from musetalk_agent.protocol.http import (
    AgentActionRequest,
    AgentAvatarRequest,
    AgentSession,
    AgentStartRequest,
    Capacity,
    CapacityLimit,
    Diagnosis,
    DiagnosisCode,
    SessionState,
)
from musetalk_agent.publishers.film.fragment_log import FragmentLog
from musetalk_agent.session.session import ENDED, Session

log = logging.getLogger(__name__)

REMEMBER_S = 600
"""Ended sessions stay readable for ten minutes (design, "Decided cases")."""
_REMEMBER_MOST = 256
_FILM_S = 60.0
"""What was not fetched of the film of an ended session is kept for so long."""
_RETRY_AFTER_S = 5


@dataclass(slots=True)
class _Start:
    """A start under way. `failure` is why its engine ended it."""

    request: AgentStartRequest
    engine: str
    demand: Demand
    task: asyncio.Task[Session]
    failure: EngineFailed | None = None


class LiveSessions:
    """Holds sessions by id. A start that is under way counts against the capacity.

    Args:
        ready: whether the engines have been started; no session is before.
        admission: decides how many there may be; None for one that looks at this machine.
    """

    def __init__(
        self, factory: Factory, ready: Callable[[], bool] = lambda: True, admission: Admission | None = None
    ) -> None:
        self._factory, self._ready = factory, ready
        self._admission = admission or Admission(factory.settings.max_sessions, Host(), factory.clock)
        self._usual: Demand | None = None
        self._demands: dict[str, Demand] = {}
        factory.engines.on_failure = self._break_off
        factory.engines.busy = lambda: bool(self._starting or self.live())
        self._sessions: dict[str, Session] = {}
        self._ended: OrderedDict[str, tuple[float, AgentSession]] = OrderedDict()
        self._films: dict[str, tuple[float, FragmentLog]] = {}
        self._starting: dict[str, _Start] = {}
        self.draining = False
        SESSIONS_MAX.set_function(lambda: self.capacity().sessions_max)
        SESSIONS.set_function(lambda: self.capacity().sessions)
        CLOCK_LATE.set_function(lambda: self._admission.late)
        for limit in CapacityLimit:
            SESSIONS_LIMIT.labels(limit).set_function(partial(self._limit, limit))

    def capacity(self) -> Capacity:
        """Sessions held (starting ones too), and how many there may be of the default engine, with a picture like the last one's: 0
        where its device is too slow for one."""
        limits = self._usual_limits()
        numbers = {limit.value: most for limit, most in limits.by.items()}
        return Capacity(sessions=len(self._held()), sessions_max=limits.most, limited_by=limits.limited_by, **numbers)

    def _usual_limits(self) -> SessionLimits:
        self._archive()
        engines = self._factory.engines
        card = engines.capacity(engines.default, USUAL_FPS)
        return self._admission.limits(self._held(), self._usual or Demand(engines.default), card)

    def _limit(self, limit: CapacityLimit) -> float:
        most = self._usual_limits().by[limit]
        return float("inf") if most is None else most

    def _held(self) -> list[Demand]:
        """What every session asks for, those that are starting too."""
        return [*(s.demand for s in self._starting.values()), *(self._demands[s.id] for s in self.live())]

    async def watch(self) -> None:
        """Looks every few seconds at what the sessions use, until cancelled."""
        await self._admission.run(self._scene)

    def _scene(self) -> Scene:
        running = []
        for session in self.live():
            statistics = session.pipeline.player.statistics
            late, demand = list(statistics.clock_late), self._demands[session.id]
            statistics.clock_late.clear()
            running.append(Running(session.id, demand, statistics.spoken, late, session.publisher.state.watched))
        return Scene(running, [starting.demand for starting in self._starting.values()])

    def live(self) -> list[Session]:
        """Sessions that are not over."""
        return [s for s in self._sessions.values() if s.state not in ENDED]

    def speaking(self) -> int:
        """Sessions that speak, or are starting."""
        return len(self._starting) + sum(s.state is SessionState.SPEAKING for s in self._sessions.values())

    def get(self, session_id: str) -> Session:
        """A live session. Raises `SessionEnded` or `SessionNotFound`."""
        self._archive()
        if session_id in self._ended:
            raise SessionEnded(f"The session {session_id!r} is over; start a new one.", value=session_id)
        session = self._sessions.get(session_id)
        if session is None:
            raise SessionNotFound(f"This agent has no session {session_id!r}.", value=session_id)
        return session

    def status(self, session_id: str) -> AgentSession:
        """What a session says of itself, or last said. Raises `SessionNotFound`."""
        self._archive()
        if session_id in self._ended:
            return self._ended[session_id][1]
        return self.get(session_id).status()

    def film(self, session_id: str) -> FragmentLog:
        """What there is of the session's film, for a minute after its end too. Raises `SessionNotFound`, `SessionEnded`."""
        self._archive()
        if session_id in self._films:
            return self._films[session_id][1]
        return self.get(session_id).film.entries

    async def start(self, request: AgentStartRequest) -> Session:
        """Prepares the avatar, joins the room, publishes.

        Raises `NotReady`, `Draining`, `AtCapacity`, `SessionConflict`, avatar and engine errors. Cancelling the
        caller gives the start up.
        """
        if self.draining:
            raise Draining(
                "The agent shuts down and takes no new session; use another one.", retry_after_s=_RETRY_AFTER_S
            )
        if not self._ready():
            raise NotReady(
                "The agent is loading its engine; `GET /health` says when it is ready.", retry_after_s=_RETRY_AFTER_S
            )
        self._archive()
        if request.session_id in (*self._starting, *self._sessions):
            raise SessionConflict(f"A session {request.session_id!r} is here already.", value=request.session_id)
        engine = self._factory.engines.resolve(request.engine)
        demand = demand_of(request, engine)
        self._admit(demand)
        task = asyncio.create_task(self._begin(request, demand), name=f"start-{request.session_id}")
        starting = self._starting[request.session_id] = _Start(request, engine, demand, task)
        try:
            return await task
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                if task.done() and not task.cancelled() and task.exception() is None:  # too late to cancel it
                    await task.result().stop()
                raise
            if starting.failure is not None:
                raise EngineFailed(starting.failure.detail, retry_after_s=_RETRY_AFTER_S) from None
            text = f"The session {request.session_id!r} was stopped while it was starting."
            raise SessionEnded(text, value=request.session_id) from None
        finally:
            del self._starting[request.session_id]

    def _admit(self, demand: Demand) -> None:
        """Raises `AtCapacity` when the process, or the engine at this rate of frames, holds no session more.

        `EngineFailed` while the engine starts again; `EngineUnavailable` where it is too slow for even one session.
        """
        engine, engines, held = demand.engine, self._factory.engines, self._held()
        device = engines.batcher(engine).engine.device
        holds = engines.capacity(engine, demand.fps)
        if holds == 0:
            text = f"The engine {engine!r} on {device} is too slow for one session at {demand.fps} pictures a second; use 'warp'."
            raise EngineUnavailable(text, field="engine", value=engine)
        # where the default engine's device is too slow for one session, the others still run here
        card = engines.capacity(engines.default, USUAL_FPS) or None
        limits = self._admission.limits(held, demand, card)
        of_engine = [each.engine for each in held].count(engine)
        if len(held) >= limits.most:
            by = self._admission.why(limits.limited_by, demand)
            why, limit = f"holds {len(held)} of {limits.most} sessions, and what limits it is {by}", limits.most
        elif holds is not None and of_engine >= holds:
            why, limit = f"holds {of_engine} sessions of the engine {engine!r}, as many as its device can", holds
        else:
            return
        raise AtCapacity(f"The agent {why}; try again later.", limit=limit, retry_after_s=_RETRY_AFTER_S)

    def _break_off(self, engine: str, error: EngineFailed) -> None:
        """An engine failed: ends its sessions, and calls off those that are starting on it."""
        for starting in self._starting.values():
            if starting.engine == engine:
                starting.failure = error
                starting.task.cancel()
        for session in self.live():
            if session.engine == engine:
                session.break_off(error)

    async def _begin(self, request: AgentStartRequest, demand: Demand) -> Session:
        begun = time.monotonic()
        session = await self._factory.session(request)
        await session.start()
        self._ended.pop(session.id, None)  # it was here before, and came back
        self._films.pop(session.id, None)
        bundle = session.bundle
        living = bundle.relief is not None
        self._usual = replace(demand, width=bundle.width, height=bundle.height, fps=bundle.fps, living=living)
        self._sessions[session.id], self._demands[session.id] = session, self._usual
        START_SECONDS.observe(time.monotonic() - begun)
        return session

    async def change_avatar(self, session_id: str, request: AgentAvatarRequest) -> Session:
        """Prepares another avatar and shows it in the session, at its size and rate. Changes of a session come one after the other.

        Raises `SessionNotFound`, `SessionEnded`, avatar and engine errors; the session then shows what it showed. Cancelling before
        the avatar is shown leaves the old one.
        """
        session = self.get(session_id)
        async with session.changing:
            opened = await self._factory.other_avatar(session.bundle, session.engine, request)
            if session.state in ENDED:
                await self._factory.discard(opened)
                raise SessionEnded(f"The session {session_id!r} is over; start a new one.", value=session_id)
            await session.show(opened.bundle, opened.engine_session)
        return session

    async def act(self, session_id: str, request: AgentActionRequest) -> Session:
        """Plays a clip of the avatar that the session shows, prepared first where it is not yet. Raises as `change_avatar` does."""
        session = self.get(session_id)
        async with session.changing:
            clip = None if request.avatar.empty else session.clip(request)
            if clip is None and not request.avatar.empty:
                opened = await self._factory.other_avatar(session.bundle, session.engine, request)
                if session.state in ENDED:
                    await self._factory.discard(opened)
                    raise SessionEnded(f"The session {session_id!r} is over; start a new one.", value=session_id)
                clip = session.keep_clip(request, opened.bundle, opened.engine_session)
            await session.act(clip, loop=request.loop)
        return session

    async def stop(self, session_id: str) -> AgentSession:
        """Ends a session; stopping one that ended is fine, and one that is starting is called off. Raises `SessionNotFound`."""
        starting = self._starting.get(session_id)
        if starting is not None:
            starting.task.cancel()
            await asyncio.gather(starting.task, return_exceptions=True)
            if session_id not in self._sessions:
                self._ended[session_id] = (time.monotonic(), _never_started(starting))
        if session_id in self._sessions:
            await self._sessions[session_id].stop()
        return self.status(session_id)

    @property
    def empty(self) -> bool:
        """No session is starting, running, or still on its way out."""
        self._archive()
        return not (self._starting or self._sessions)

    def drain(self) -> None:
        """Takes no new session from now on, and asks through every link that the others be moved elsewhere."""
        self.draining = True
        for session in self.live():
            session.events.changed.set()

    async def aclose(self) -> None:
        """Stops every session at once, and waits for those that are ending already."""
        self.draining = True
        tasks = [starting.task for starting in self._starting.values()]
        for task in tasks:
            task.cancel()
        ending = (session.stop() for session in list(self._sessions.values()))
        await asyncio.gather(*tasks, *ending, return_exceptions=True)

    def _archive(self) -> None:
        """Of a session that is over only its last words stay, and those for ten minutes."""
        now = time.monotonic()
        over = [s for s in self._sessions.values() if s.ended.is_set()]
        for session in over:
            del self._sessions[session.id], self._demands[session.id]
            self._ended[session.id] = (now, session.status())
            if session.film.entries.after(0):
                self._films[session.id] = (now, session.film.entries)
            SESSIONS_ENDED.labels(session.state.value).inc()
        if over:
            # the SDK's rooms are in reference cycles with their callbacks and hold native memory; what was there before
            # the first session is frozen (see the application's lifespan), so that this looks at little
            over.clear()
            gc.collect()
        for session_id, (ended_at, _) in list(self._films.items()):
            if now - ended_at > _FILM_S:
                del self._films[session_id]
        while self._ended:
            oldest, (ended_at, _) = next(iter(self._ended.items()))
            if len(self._ended) <= _REMEMBER_MOST and now - ended_at <= REMEMBER_S:
                break
            del self._ended[oldest]


def _never_started(starting: _Start) -> AgentSession:
    """The status of a session that was stopped while it was starting."""
    request = starting.request
    text = f"The session {request.session_id!r} was stopped while it was starting."
    return AgentSession(
        session_id=request.session_id,
        state=SessionState.STOPPED,
        room=request.room,
        publisher="none",
        engine=starting.engine,
        fps=request.picture.fps,
        width=request.picture.width or 0,
        height=request.picture.height or 0,
        diagnosis=Diagnosis(code=DiagnosisCode.ROOM_NOT_JOINED, message=text),
        started_at=utc_now(),
    )

"""Starts a session at an agent, and moves it to another one under the same identity when its agent is lost or is about to leave."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable
from contextlib import suppress

from musetalk_agent.protocol.http import AgentSession, AgentStartRequest, AudioSource, RtmpTarget, SessionState
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.agents.agent_client import AgentFailed, AgentLease
from orchestrator.avatars.clip_supply import with_clip
from orchestrator.session.agent_connection import AgentLost
from orchestrator.session.deps import SessionDeps
from orchestrator.session.model import ManagedSession, SessionOptions, publish_state
from orchestrator.session.speech_pipeline import SpeechPipeline

_AGENT_BACKLOG_MARGIN_S = 30
"""The agent's own limit lies above ours, so that ours is the one a sender meets."""
LATE_STOP_S = 60.0
"""How long an agent that does not answer is asked to stop a session that it lost."""
_LATE_STOP_EVERY_S = 1.0
_LATE_STOP_FIRST_S = 3.0
"""The agent that lost the session may be the only one: it must stop the session before it starts it again."""
_NEXT = frozenset({ErrorCode.AT_CAPACITY, ErrorCode.AGENT_UNAVAILABLE, ErrorCode.DRAINING})
"""Errors that say something of one agent only."""
ACCEPTED_TRIES = 2
"""Agents that may fail over one start: a clip that kills agents must not walk through the fleet."""
REFUSED_TRIES = 8
"""Agents that may refuse one start because they filled up or drained after they were asked."""


class StartAttempts:
    """What has become of the attempts to start one session: whom to ask no more, and when to give up.

    Attributes:
        avoid: names of agents that are not asked again.
    """

    def __init__(self) -> None:
        self.avoid: frozenset[str] = frozenset()
        self._accepted = 0
        self._refused = 0

    def failed(self, lease: AgentLease, error: ProblemError) -> bool:
        """Notes a start that failed at `lease`. Returns whether another agent may be asked."""
        self.avoid |= {lease.name}
        if error.code not in _NEXT:
            return False
        if isinstance(error, AgentFailed):
            self._accepted += 1
        else:
            self._refused += 1
        return self._accepted < ACCEPTED_TRIES and self._refused < REFUSED_TRIES


class Placement:
    """Starts sessions at agents."""

    def __init__(self, services: SessionDeps, options: SessionOptions) -> None:
        self._services = services
        self._options = options
        self._late_stops: dict[str, asyncio.Task[None]] = {}

    async def place(self, session: ManagedSession) -> None:
        """Starts the session at an agent that takes it. Raises ProblemError. Cancelling undoes what was begun.

        An agent that refuses is passed over for another one. One that fails after it was reached is too, but only once, and all
        attempts together have `start_timeout_s` and the waits for a place.
        """
        tries, problem = StartAttempts(), None
        pool, avatar_id = self._services.pool, session.order.avatar.avatar_id
        left_s = self._options.start_timeout_s
        while True:
            try:
                lease = await pool.acquire(session.session_id, avatar_id=avatar_id, avoid=tries.avoid)
            except ProblemError as error:
                raise problem or error from None
            begun = time.monotonic()
            try:
                await self.start(session, lease, left_s)
                return
            except ProblemError as error:
                left_s -= time.monotonic() - begun
                if not tries.failed(lease, error) or left_s <= 0:
                    raise
                problem = error if error.code is ErrorCode.AGENT_UNAVAILABLE else None

    async def start(self, session: ManagedSession, lease: AgentLease, timeout_s: float | None = None) -> None:
        """Starts the session there within `timeout_s` (`start_timeout_s`). On failure it has no lease.

        Cancelling stops it there once the start is through.
        """
        if lease.name in self._late_stops:
            await self._settle(lease)
        session.lease = lease
        self._services.journal.note(session.session_id)
        films = self._services.films
        minter, order, ttl_s = self._services.minter, session.order, session.expires_at - time.time()
        request = AgentStartRequest(
            session_id=session.session_id,
            room=order.room,
            livekit_url=minter.url,
            livekit_token=minter.avatar(
                order.room,
                session.identity,
                ttl_s,
                name="Avatar",
                on_behalf_of=order.speaker,
                alpha=order.transparent,
            ),
            avatar=order.avatar,
            picture=order.picture,
            avatar_settings=order.avatar_settings,
            engine=order.engine,
            connect_livekit=order.connect_livekit,
            voice=order.voice,
            livekit_agent=order.speaker if order.audio_source is AudioSource.DATASTREAM else None,
            microphone_of=order.speaker if order.audio_source is AudioSource.PARTICIPANT else None,
            rtmp=_rtmp_target(session),
            probe_token=minter.probe(order.room, f"probe-{session.session_id}", ttl_s),
            captions=order.captions,
            video_codec=order.video_codec,
            simulcast=order.simulcast,
            publisher_mode=session.publisher_mode,
            max_duration_s=max(1, round(ttl_s)),
            backlog_s=min(600, int(self._options.limits.backlog_s) + _AGENT_BACKLOG_MARGIN_S),
            film=films.options(session.session_id) if films is not None else None,
        )
        call = self._started(lease, request, timeout_s or self._options.start_timeout_s)
        starting = asyncio.create_task(call, name=f"start-{session.session_id}")
        try:
            session.snapshot = await asyncio.shield(starting)
            session.placed = True
        except asyncio.CancelledError:
            undo = self._undo(session, lease, starting)
            self._services.background.spawn(undo, f"undo-{session.session_id}", awaited=True)
            raise
        except ProblemError as error:
            self._not_started(session, lease, error)
            raise

    async def _started(self, lease: AgentLease, request: AgentStartRequest, timeout_s: float) -> AgentSession:
        """An agent that lacks the avatar's clip gets it from the library, where that has it."""
        agents, avatars, clip = self._services.agents, self._services.avatars, request.avatar.avatar_id

        def start() -> Awaitable[AgentSession]:
            return agents.start(lease, request, timeout_s)

        return await (
            start() if avatars is None or clip is None else with_clip(start, lambda: avatars.supply(lease, clip))
        )

    def _not_started(self, session: ManagedSession, lease: AgentLease, error: ProblemError) -> None:
        """Gives the place back, unless the agent may still have to be reached."""
        session.lease = None
        if error.code is ErrorCode.AGENT_UNAVAILABLE:
            self._services.pool.detach(session.session_id)
            self.leave(session, lease)
        else:
            self._services.pool.release(session.session_id)

    def leave(self, session: ManagedSession, lease: AgentLease) -> None:
        """Has the session stopped in the background where the agent did not answer: one that hangs may wake up and speak again."""
        stop = self._stop_late(session, lease)
        task = self._services.background.spawn(stop, f"late-stop-{session.session_id}", awaited=False)
        self._late_stops[lease.name] = task

    async def _settle(self, lease: AgentLease) -> None:
        """Waits until what was asked of this agent before is done, or gives that up: it must not stop what begins now."""
        stop = self._late_stops.pop(lease.name)
        await asyncio.wait({stop}, timeout=_LATE_STOP_FIRST_S)
        stop.cancel()

    async def _stop_late(self, session: ManagedSession, lease: AgentLease) -> None:
        until = time.monotonic() + LATE_STOP_S
        while time.monotonic() < until and not self._runs_at(session, lease):
            try:
                await self._services.agents.stop(lease, session.session_id)
                return
            except ProblemError as error:
                if error.code is not ErrorCode.AGENT_UNAVAILABLE:
                    return
            await asyncio.sleep(_LATE_STOP_EVERY_S)

    def _runs_at(self, session: ManagedSession, lease: AgentLease) -> bool:
        return session.end_reason is None and session.lease is not None and session.lease.name == lease.name

    async def _undo(self, session: ManagedSession, lease: AgentLease, starting: asyncio.Task[AgentSession]) -> None:
        """Stops at its agent a session whose start was cancelled: the agent does not notice that the caller has left.

        A start that failed is stopped too, unless the agent refused it: it may go on there all the same.
        """
        try:
            await starting
        except AgentFailed:
            pass
        except ProblemError:
            return
        with suppress(ProblemError):
            await self._services.agents.stop(lease, session.session_id)
        await self._services.rooms.remove(session.order.room, session.identity)


def _rtmp_target(session: ManagedSession) -> RtmpTarget | None:
    order = session.order
    if order.rtmp_url is not None:
        return RtmpTarget(url=order.rtmp_url, beside=order.wants_rtmp)
    return session.ingress.target if session.ingress is not None else None


MOVE_S = 20.0
"""How long a session may be without an agent."""
MOVES = 5
MOVES_WITHIN_S = 600.0
"""At most so many moves in so many seconds: what fails everywhere is not the agents' fault."""
POLL_S = 0.25
PAUSE_S = 5.0
"""How long a planned move waits for a pause in speech."""
_log = logging.getLogger(__name__)


class Failover:
    """Moves sessions."""

    def __init__(self, services: SessionDeps, placing: Placement) -> None:
        self._services = services
        self._placing = placing

    async def move(
        self, session: ManagedSession, live: SpeechPipeline, lost: AgentLost, to: AgentLease | None = None
    ) -> None:
        """Takes the session from its agent to another, `to` if that can take it. Its link is the caller's to open.

        Raises ProblemError `agent_unavailable` when none takes it within 20 s, or when it has moved too often. Cancelling leaves
        what `_close` undoes.
        """
        old = session.lease
        assert old is not None
        live.rewind(*(self._services.voices.position(session) or live.position(lost.at)))
        self._admit(session, lost)
        session.note_loss(time.time(), time.monotonic())
        live.traces.lost(lost.cause)
        session.lease = None
        if lost.cause != "draining":
            self._services.pool.lost(old)
        self._services.metrics.moves.labels(cause=lost.cause).inc()
        extra = {"session_id": session.session_id, "cause": lost.cause, "detail": str(lost)}
        _log.warning("agent lost: the session moves", extra=extra)
        publish_state(self._services.events, session, SessionState.RECOVERING, lost.cause)
        self._placing.leave(session, old)
        async with self._services.voices.stand_in(session):
            await self._find(session, to, lost)
        self._services.metrics.move_seconds.observe(time.monotonic() - session.moved_at[-1])

    def _admit(self, session: ManagedSession, lost: AgentLost) -> None:
        since = time.monotonic() - MOVES_WITHIN_S
        if sum(at > since for at in session.moved_at) >= MOVES:
            raise ProblemError(
                ErrorCode.AGENT_UNAVAILABLE,
                f"The session was lost: {lost}, after {MOVES} moves in {MOVES_WITHIN_S / 60:g} minutes. Start another one.",
            )

    async def _find(self, session: ManagedSession, to: AgentLease | None, lost: AgentLost) -> None:
        """Asks every quarter of a second until an agent has taken the session.

        Agents that fail over it after they were reached are not asked again, and the second one ends it.
        """
        problem: ProblemError | None = None
        tries = StartAttempts()
        pool, avatar_id = self._services.pool, session.order.avatar.avatar_id
        try:
            async with asyncio.timeout(MOVE_S):
                while True:
                    lease = to
                    try:
                        lease = lease or await pool.acquire(session.session_id, avatar_id=avatar_id, avoid=tries.avoid)
                        await self._placing.start(session, lease)
                        return
                    except ProblemError as error:
                        problem, to = error, None
                        if lease is not None and isinstance(error, AgentFailed) and not tries.failed(lease, error):
                            raise
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            why = problem.detail if problem is not None else "no agent was ready in time"
            raise ProblemError(
                ErrorCode.AGENT_UNAVAILABLE,
                f"The session was lost: {lost}, and no other agent took it within {MOVE_S:g} s ({why}). Start another one.",
            ) from None

    async def wait_to_leave(self, session: ManagedSession, live: SpeechPipeline) -> AgentLease:
        """Returns when the agent asks that the session be moved, another one has a place, and the speech pauses (5 s at most)."""
        assert session.lease is not None
        while live.side is None or not live.side.liveness.draining:  # noqa: ASYNC110 - there is no hurry
            await asyncio.sleep(POLL_S)
        while True:
            try:
                lease = await self._services.pool.acquire(
                    session.session_id,
                    avatar_id=session.order.avatar.avatar_id,
                    avoid=frozenset({session.lease.name}),
                )
                break
            except ProblemError:
                await asyncio.sleep(POLL_S)
        end = time.monotonic() + PAUSE_S
        while not live.pausing and time.monotonic() < end:  # noqa: ASYNC110 - the pause is a matter of time
            await asyncio.sleep(0.02)
        return lease

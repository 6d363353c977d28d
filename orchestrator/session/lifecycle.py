"""Start, stop and everything between: one owner task per session, which undoes all it did however it ends."""

from __future__ import annotations

import asyncio
import logging
import secrets
import string
import time
from contextlib import suppress
from dataclasses import dataclass

from musetalk_agent.protocol.http import AgentSession, AgentStartRequest, SessionState
from musetalk_agent.protocol.problems import ErrorCode, Problem, ProblemError
from orchestrator.agents.client import AgentClient, AgentLease
from orchestrator.agents.link import LinkLost, LinkOver
from orchestrator.agents.pool import AgentPool
from orchestrator.events import EventBus
from orchestrator.metrics import Metrics
from orchestrator.session.live import LiveSession
from orchestrator.session.options import SessionOptions
from orchestrator.session.record import Session, SessionOrder
from orchestrator.session.registry import SessionRegistry
from orchestrator.session.watch import Lifetime
from orchestrator.tokens import Rooms, TokenMinter

LINK_OPEN_S = 10.0
UNDO_S = 5.0
SNAPSHOT_FRESH_S = 0.5
SNAPSHOT_TIMEOUT_S = 2.0
_ID_LETTERS = string.ascii_letters + string.digits
_ID_LENGTH = 16  # 95 bits
_AGENT_BACKLOG_MARGIN_S = 30
"""The agent's own limit lies above ours, so that ours is the one a sender meets."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Services:
    """What sessions are made with."""

    pool: AgentPool
    agents: AgentClient
    rooms: Rooms
    minter: TokenMinter
    metrics: Metrics
    events: EventBus


class SessionLifecycle:
    """Starts and stops sessions."""

    def __init__(self, services: Services, options: SessionOptions) -> None:
        self._services = services
        self.options = options
        self.registry = SessionRegistry(options.keep_s)
        self._undoing: set[asyncio.Task[None]] = set()

    async def start(self, order: SessionOrder) -> Session:
        """Starts a session and returns it when its agent is ready and linked. Cancelling undoes the start.

        Raises ProblemError: the agent's own, `at_capacity`, `agent_unavailable`, `livekit_unavailable`, or `session_ended`
        when it was stopped meanwhile. Nothing of a failed start remains.
        """
        begun = time.time()
        session = Session(
            session_id="ses_" + "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH)),
            order=order,
            expires_at=begun + self.options.max_s,
            started=asyncio.get_running_loop().create_future(),
        )
        self.registry.add(session)
        session.owner = asyncio.create_task(self._own(session), name=f"session-{session.session_id}")
        metrics = self._services.metrics
        try:
            await asyncio.shield(session.started)
        except ProblemError as error:
            metrics.starts.labels(outcome=error.code.value).inc()
            raise
        except asyncio.CancelledError:
            await self.stop(session, "start_cancelled")
            raise
        metrics.starts.labels(outcome="ok").inc()
        metrics.start_seconds.observe(time.time() - begun)
        return session

    async def stop(self, session: Session, reason: str = "stopped") -> None:
        """Ends a session in whatever state it is; any number of times, also at once. Returns when it has ended."""
        owner = session.owner
        if owner is None or owner.done():
            return
        if session.end_reason is None:
            session.end_reason = reason
            owner.cancel()
        await asyncio.wait({owner})

    async def aclose(self) -> None:
        """Ends every session; starts that were given up are waited for a moment, so that they too are undone."""
        await asyncio.gather(*(self.stop(session, "shutdown") for session in self.registry.running()))
        if self._undoing:
            _, late = await asyncio.wait(self._undoing, timeout=UNDO_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def refresh(self, session: Session) -> None:
        """Asks the agent for the session's state, unless that was done a moment ago. Keeps the old one on failure."""
        if session.lease is None or session.ended or time.monotonic() - session.snapshot_at < SNAPSHOT_FRESH_S:
            return
        with suppress(ProblemError):
            agents = self._services.agents
            session.snapshot = await agents.session(session.lease, session.session_id, SNAPSHOT_TIMEOUT_S)
            session.snapshot_at = time.monotonic()

    # --- the owner

    async def _own(self, session: Session) -> None:
        problem: ProblemError | None = None
        reason = "stopped"
        try:
            await self._open(session)
            reason = await self._serve(session)
        except asyncio.CancelledError:  # only `stop` cancels the owner: what follows is the end it asked for
            reason = session.end_reason or "stopped"
        except ProblemError as error:
            problem, reason = error, error.code.value
        except (LinkLost, LinkOver) as error:
            problem = ProblemError(ErrorCode.AGENT_UNAVAILABLE, f"The session was lost: {error}. Start another one.")
            reason = "agent_lost"
        except Exception:  # noqa: BLE001 - task boundary: nobody else would hear of it
            _log.exception("session failed", extra={"session_id": session.session_id})
            problem = ProblemError(ErrorCode.INTERNAL, "The session failed for a reason of our own; see the logs.")
            reason = problem.code.value
        session.end_reason = session.end_reason or reason  # from here on `stop` waits and does not cancel
        await self._close(session, problem)

    async def _open(self, session: Session) -> None:
        """Room, place at an agent, avatar in the room. What it did is on the session for `_close` to undo."""
        services, order = self._services, session.order
        await services.rooms.ensure(order.room)
        token = services.minter.avatar(
            order.room,
            session.identity,
            session.expires_at - time.time(),
            name="Avatar",
            on_behalf_of=order.speaker,
        )
        request = AgentStartRequest(
            session_id=session.session_id,
            room=order.room,
            livekit_url=services.minter.url,
            livekit_token=token,
            avatar=order.avatar,
            picture=order.picture,
            engine=order.engine,
            connect_livekit=order.connect_livekit,
            max_duration_s=self.options.max_s,
            backlog_s=min(600, int(self.options.limits.backlog_s) + _AGENT_BACKLOG_MARGIN_S),
        )
        avoid: frozenset[str] = frozenset()
        while True:
            lease = await services.pool.acquire(session.session_id, avatar_id=order.avatar.avatar_id, avoid=avoid)
            session.lease = lease
            call = services.agents.start(lease, request, self.options.start_timeout_s)
            starting = asyncio.create_task(call, name=f"start-{session.session_id}")
            try:
                session.snapshot = await asyncio.shield(starting)
                return
            except asyncio.CancelledError:
                self._undo_later(session, lease, starting)
                raise
            except ProblemError as error:
                if error.code is not ErrorCode.AT_CAPACITY:
                    raise
                session.lease = None  # it filled up after it was asked: the next one may have a place
                services.pool.release(session.session_id)
                avoid |= {lease.base_url}

    def _undo_later(self, session: Session, lease: AgentLease, starting: asyncio.Task[AgentSession]) -> None:
        """The agent does not notice that nobody waits for its start: once it is through, the session is stopped there."""

        async def undo() -> None:
            with suppress(ProblemError):
                await starting
                await self._services.agents.stop(lease, session.session_id)
                await self._services.rooms.remove(session.order.room, session.identity)

        task = asyncio.create_task(undo(), name=f"undo-{session.session_id}")
        self._undoing.add(task)
        task.add_done_callback(self._undoing.discard)

    async def _serve(self, session: Session) -> str:
        """Runs the session until it ends by itself; returns why."""
        assert session.lease is not None
        live = LiveSession(session.session_id, session.lease, self.options, self._services.metrics)
        session.live = live
        run = asyncio.create_task(live.run(), name=f"live-{session.session_id}")
        tasks: set[asyncio.Task[None]] = {run}
        try:
            await _connected(live, run)
            session.move(SessionState.READY)
            session.started.set_result(None)
            _log.info("session ready", extra={"session_id": session.session_id, "room": session.order.room})
            watch = asyncio.create_task(self._watch(session, live), name=f"watch-{session.session_id}")
            tasks.add(watch)
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if run.done():
                await self._explain(session, run)
            if watch.done():
                watch.result()
            return session.end_reason or "agent_ended"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _explain(self, session: Session, run: asyncio.Task[None]) -> None:
        """Why the audio path ended; raises unless the agent simply ended the session."""
        try:
            run.result()
        except LinkOver:
            assert session.lease is not None
            try:
                snapshot = await self._services.agents.session(session.lease, session.session_id, SNAPSHOT_TIMEOUT_S)
            except ProblemError:
                raise LinkLost("its agent has forgotten it") from None
            session.snapshot = snapshot
            _raise_agent_error(snapshot.error)

    async def _watch(self, session: Session, live: LiveSession) -> None:
        """Returns when the session has outlived its use, with `end_reason` set; raises what the agent says went wrong."""
        order = session.order
        life = Lifetime(self.options, time.time(), session.expires_at, counts_viewers=order.connect_livekit)
        while True:
            await self.refresh(session)
            now = time.time()
            life.note_audio(live.last_audio_at or 0.0)
            if not live.quiet:
                life.note_audio(now)
            if session.snapshot is not None:
                life.note_viewers(session.snapshot.viewers, now)
                if session.snapshot.state in (SessionState.STOPPED, SessionState.FAILED):
                    session.end_reason = "agent_ended"
                    _raise_agent_error(session.snapshot.error)
                    return
            reason = life.over(now)
            if reason is not None:
                session.end_reason = reason
                return
            await asyncio.sleep(max(0.01, min(self.options.poll_s, life.next_at() - now)))

    async def _close(self, session: Session, problem: ProblemError | None) -> None:
        services = self._services
        if problem is None:
            session.move(SessionState.DRAINING)
        if session.live is not None:
            session.live.end(problem)
        if session.lease is not None:
            try:
                session.snapshot = await services.agents.stop(session.lease, session.session_id)
            except ProblemError as error:
                if error.code is not ErrorCode.SESSION_NOT_FOUND:
                    extra = {"session_id": session.session_id, "code": error.code.value}
                    _log.warning("the agent did not stop the session", extra=extra)
            if session.order.connect_livekit:
                await services.rooms.remove(session.order.room, session.identity)
        services.pool.release(session.session_id)
        session.retire()
        session.error = problem
        session.ended_at = time.time()
        session.move(SessionState.STOPPED if problem is None else SessionState.FAILED)
        services.metrics.ends.labels(reason=session.end_reason or "stopped").inc()
        _log.info("session ended", extra={"session_id": session.session_id, "reason": session.end_reason})
        if not session.started.done():
            self.registry.forget(session)
            session.started.set_exception(problem or session.over())
            session.started.exception()  # whoever waited may be gone; that is no reason for a warning


async def _connected(live: LiveSession, run: asyncio.Task[None]) -> None:
    """Returns when the link is up. Raises what ended it, or ProblemError when it takes too long."""
    up = asyncio.create_task(live.wait_connected())
    try:
        await asyncio.wait({up, run}, timeout=LINK_OPEN_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        up.cancel()
    if run.done():
        run.result()
    if not live.link_connected:
        raise ProblemError(
            ErrorCode.AGENT_UNAVAILABLE, f"The agent's /audio did not open within {LINK_OPEN_S:g} s.", retry_after_s=2
        )


def _raise_agent_error(error: dict[str, object] | None) -> None:
    if error:
        told = Problem.model_validate({"title": "", "status": 500, "detail": "", **error})
        raise ProblemError(told.code, told.detail, field=told.field)

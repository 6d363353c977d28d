"""Starts and stops sessions, and keeps the ended ones for a while. Each session has an owner task (`session_runner.py`)."""

from __future__ import annotations

import asyncio
import secrets
import string
import time
from collections.abc import Awaitable, Coroutine
from dataclasses import replace
from typing import Any

from musetalk_agent.protocol.http import (
    AgentActionRequest,
    AgentAvatarRequest,
    AgentSession,
    AudioSource,
    AvatarSource,
    PublisherMode,
    SessionState,
)
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.agents.agent_client import AgentLease
from orchestrator.avatars.clip_supply import with_clip
from orchestrator.session.deps import SessionDeps
from orchestrator.session.journal import from_record
from orchestrator.session.model import ManagedSession, SessionOptions, SessionRequest
from orchestrator.session.session_runner import HANDED_OVER, SessionRunner, refresh
from orchestrator.store.session_store import StoredSession
from orchestrator.tts.speech_settings import SpeechSettings

MAX_ENDED = 1000


class SessionRegistry:
    """Every running session, and the ended ones for a while."""

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        self._sessions: dict[str, ManagedSession] = {}

    def add(self, session: ManagedSession, run: Coroutine[Any, Any, None]) -> None:
        """A new session; `run` runs it, in the task that owns it."""
        self._prune()
        self._sessions[session.session_id] = session
        session.owner = asyncio.create_task(run, name=f"session-{session.session_id}")
        session.owner.add_done_callback(lambda _: self._owner_ended(session))

    def forget(self, session: ManagedSession) -> None:
        """Removes a session whose start failed, so that it is never listed."""
        self._sessions.pop(session.session_id, None)

    def get(self, session_id: str) -> ManagedSession:
        """Raises ProblemError `session_not_found`."""
        self._prune()
        session = self._sessions.get(session_id)
        if session is None:
            raise self.unknown(session_id)
        return session

    def holds(self, session_id: str) -> bool:
        """Whether the session is here, ended or not."""
        self._prune()
        return session_id in self._sessions

    def unknown(self, session_id: str) -> ProblemError:
        """The error for a session that is not here, or not for this caller."""
        return ProblemError(
            ErrorCode.SESSION_NOT_FOUND,
            f"There is no session {session_id[:64]!r}; ended ones are forgotten after {self._keep_s / 60:g} minutes.",
        )

    def all(self) -> list[ManagedSession]:
        """Oldest first."""
        self._prune()
        return list(self._sessions.values())

    def running(self) -> list[ManagedSession]:
        """Those that have not ended."""
        return [session for session in self._sessions.values() if not session.ended]

    def _owner_ended(self, session: ManagedSession) -> None:
        """One that was cancelled before its first step has done nothing, and `started` is still open."""
        if not session.started.done():
            session.started.set_exception(session.over())
            session.started.exception()
            self.forget(session)

    def _prune(self) -> None:
        ended = [session for session in self._sessions.values() if session.ended]
        for index, session in enumerate(ended):
            age = time.time() - (session.ended_at or 0.0)
            if age > self._keep_s or index < len(ended) - MAX_ENDED:
                del self._sessions[session.session_id]


UNDO_S = 5.0
_DRAINING_RETRY_S = 5
_DRAINING_POLL_S = 0.05
_ID_LETTERS = string.ascii_letters + string.digits
_ID_LENGTH = 16  # 95 bits


class SessionManager:
    """Starts and stops sessions."""

    def __init__(self, services: SessionDeps, options: SessionOptions) -> None:
        self._services = services
        self.options = options
        self.registry = SessionRegistry(options.keep_s)
        self.draining = False

    def speech(self, session: ManagedSession, asked: SpeechSettings) -> SpeechSettings:
        """How a text is spoken in this session: as it asks, as the session, its avatar, the deployment do."""
        order = session.order
        return asked.over(order.speech).over(SpeechSettings(voice=order.avatar_voice)).over(self.options.speech)

    async def start(self, order: SessionRequest) -> ManagedSession:
        """Starts a session and returns it when its agent is ready and linked. Cancelling undoes the start.

        Raises ProblemError: the agent's own, `at_capacity`, `agent_unavailable`, `livekit_unavailable`, or `session_ended`
        when it was stopped meanwhile. Nothing of a failed start remains.
        """
        self.admit()
        begun = time.monotonic()
        session_id = "ses_" + "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH))
        if order.conversation is not None:  # its worker is the speaker, under a name of the session's own
            order = replace(order, speaker=f"conversation-{session_id}", audio_source=AudioSource.DATASTREAM)
        session = ManagedSession(
            session_id=session_id,
            order=order,
            expires_at=time.time() + min(self.options.max_s, order.max_s or self.options.max_s),
            started=asyncio.get_running_loop().create_future(),
        )
        self.registry.add(session, SessionRunner(session, self._services, self.options, self._ended).run())
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
        metrics.start_seconds.observe(time.monotonic() - begun)
        return session

    def adopt(self, record: StoredSession) -> ManagedSession:
        """Goes on with a session that another process began; its lease is ours. Returns at once: `started` resolves later."""
        session = from_record(record, self._services.journal.seal)
        self.registry.add(session, SessionRunner(session, self._services, self.options, self._ended, record).run())
        return session

    def admit(self) -> None:
        """Raises ProblemError `draining` when nothing new may begin."""
        if self.draining:
            text = "The service shuts down: try again, another one takes over."
            raise ProblemError(ErrorCode.DRAINING, text, retry_after_s=_DRAINING_RETRY_S)

    async def drain(self, within_s: float) -> None:
        """Admits no new session. Returns when no session has speech left, or after `within_s`."""
        self.draining = True
        until = time.monotonic() + within_s
        while time.monotonic() < until and any(map(self._speaks, self.registry.running())):  # noqa: ASYNC110
            await asyncio.sleep(_DRAINING_POLL_S)

    def _speaks(self, session: ManagedSession) -> bool:
        if session.talk is not None and session.talk.busy:
            return True
        return session.live is not None and not session.live.quiet

    def hand_over(self, session_id: str) -> asyncio.Task[None] | None:
        """Another process goes on with the session, or will: here it ends, and elsewhere nothing changes."""
        session = next((s for s in self.registry.running() if s.session_id == session_id), None)
        if session is None or session.owner is None or session.end_reason is not None:
            return None
        self._services.journal.freeze(session_id)
        session.end_reason = HANDED_OVER
        session.owner.cancel()
        return session.owner

    async def stop(self, session: ManagedSession, reason: str = "stopped") -> None:
        """Ends a session in whatever state it is; any number of times, also at once.

        Returns when it has ended and its end is stored, or cannot be for now.
        """
        owner = session.owner
        if owner is None:
            return
        if session.end_reason is None and not owner.done():
            session.end_reason = reason
            owner.cancel()
        await asyncio.wait({owner})
        await self._services.journal.stored(session.session_id)

    def abandon(self, session_id: str) -> None:
        """Ends, in the background, a session whose caller never got to know of it."""
        if self.registry.holds(session_id):
            ending = self.stop(self.registry.get(session_id), "start_cancelled")
            self._services.background.spawn(ending, f"abandon-{session_id}", awaited=True)

    async def goes_on(self, session_id: str) -> bool:
        """Whether a session that was started here still runs, at this orchestrator or another. False when it is unknown.

        Raises ProblemError `session_ended`, and `store_unavailable`.
        """
        if self.registry.holds(session_id):
            session = self.registry.get(session_id)
            if session.ended:
                raise session.over()
            return True
        record = await self._services.journal.elsewhere(session_id)
        if record is not None and record.ended:
            text = f"Session {session_id} has ended: start another one, with a new Idempotency-Key."
            raise ProblemError(ErrorCode.SESSION_ENDED, text, value=session_id)
        return record is not None

    async def aclose(self) -> None:
        """Ends every session, or leaves those that run for the next process where the store outlives this one.

        Starts that were given up are waited for a moment, so that they too are undone.
        """
        self.draining = True
        if self._services.journal.store.durable:
            ready = [s for s in self.registry.running() if s.adopted or s.base_state is not SessionState.STARTING]
            leaving = [self.hand_over(session.session_id) for session in ready]
            await asyncio.gather(*(owner for owner in leaving if owner is not None))
        await asyncio.gather(*(self.stop(session, "shutdown") for session in self.registry.running()))
        await self._services.background.aclose(UNDO_S)

    async def refresh(self, session: ManagedSession) -> None:
        """Asks the agent for the session's state, unless that was done a moment ago. Keeps the old one on failure."""
        await refresh(self._services.agents, session)

    def voice(self, session: ManagedSession) -> dict[str, Any] | None:
        """What the orchestrator's own voice does in the session; None where it is not in the room."""
        return self._services.voices.view(session)

    async def set_publisher(self, session: ManagedSession, mode: PublisherMode) -> AgentSession:
        """Holds a running session's media to one way, also after a move.

        Raises ProblemError: `publisher_unavailable`, `session_ended`, or `session_conflict` while it moves.
        """
        session.running()
        lease = session.lease
        if lease is None or session.base_state is SessionState.RECOVERING:  # then a lease is only being tried
            raise _moving(session)
        snapshot = await self._services.agents.publisher(lease, session.session_id, mode)
        if session.lease is not lease:  # it has moved meanwhile, and the next agent does not know the mode
            raise _moving(session)
        session.snapshot, session.snapshot_at, session.publisher_mode = snapshot, time.monotonic(), mode
        return snapshot

    async def change_avatar(self, session: ManagedSession, chosen: SessionRequest) -> AgentSession:
        """Shows the avatar of `chosen` in a running session, also after a move. One change of a session after the other.

        Raises ProblemError: why the avatar cannot be shown, `session_ended`, or `session_conflict` while the session moves. It then
        shows what it showed.
        """
        async with session.changing_avatar:
            session.running()
            lease = session.lease
            if lease is None or session.base_state is SessionState.RECOVERING:
                raise _moving(session)
            # how late the lips are is decided as speech begins, and whether there is alpha by the tracks: both stay what they are
            kept: dict[str, object] = {"av_offset_ms": session.order.avatar_settings.av_offset_ms}
            if session.order.transparent:
                kept["background"] = "transparent"
            settings = chosen.avatar_settings.model_copy(update=kept)
            request = AgentAvatarRequest(avatar=chosen.avatar, avatar_settings=settings)
            snapshot = await self._shown(lease, session.session_id, request)
            if session.lease is not lease:  # it has moved meanwhile, with the avatar of before
                raise _moving(session)
            session.snapshot, session.snapshot_at = snapshot, time.monotonic()
            session.order = replace(
                session.order,
                avatar=chosen.avatar,
                avatar_settings=settings,
                library_avatar=chosen.library_avatar,
                avatar_voice=chosen.avatar_voice,
            )
            self._services.journal.note(session.session_id)
            return snapshot

    async def act(self, session: ManagedSession, clip: str | None, *, loop: bool) -> None:
        """Plays a clip of the avatar in a running session; None ends what plays. Raises as `change_avatar` does."""
        async with session.changing_avatar:
            session.running()
            lease = session.lease
            if lease is None or session.base_state is SessionState.RECOVERING:
                raise _moving(session)
            request = AgentActionRequest(
                avatar=AvatarSource(avatar_id=clip), avatar_settings=session.order.avatar_settings, loop=loop
            )
            await self._shown(lease, session.session_id, request)

    async def _shown(self, lease: AgentLease, session_id: str, request: AgentAvatarRequest) -> AgentSession:
        """An agent that lacks the avatar's clip gets it from the library."""
        agents, avatars, clip = self._services.agents, self._services.avatars, request.avatar.avatar_id

        def show() -> Awaitable[AgentSession]:
            return agents.avatar(lease, session_id, request, self.options.start_timeout_s)

        return await (
            show() if avatars is None or clip is None else with_clip(show, lambda: avatars.supply(lease, clip))
        )

    def _ended(self, session: ManagedSession) -> None:
        """The session has ended here: it is kept for a while, unless it never was, or goes on elsewhere."""
        if session.end_reason == HANDED_OVER:
            self.registry.forget(session)
        elif session.started.done() and session.started.exception() is not None and not session.adopted:
            self.registry.forget(session)
            self._services.journal.forget(session.session_id)
        else:
            self._services.journal.leave(session.session_id)


def _moving(session: ManagedSession) -> ProblemError:
    text = f"Session {session.session_id} has no agent at the moment: try again."
    return ProblemError(ErrorCode.SESSION_CONFLICT, text, retry_after_s=2)

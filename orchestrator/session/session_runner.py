"""Runs one session from its start to its end, and undoes everything it did however it ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from musetalk_agent.protocol.http import AudioSource, SessionState, VoiceSource
from musetalk_agent.protocol.messages import CLOSE_RESTART
from musetalk_agent.protocol.problem_body import Problem
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.agents.agent_client import AgentClient, AgentLease
from orchestrator.agents.agent_link import LinkOver
from orchestrator.conversation.conversations import Place
from orchestrator.conversation.opened_conversation import OpenedConversation
from orchestrator.livekit_rooms import RoomIngress
from orchestrator.recording.films import FilmOwner
from orchestrator.session.agent_connection import TAKEN, AgentLost
from orchestrator.session.deps import SessionDeps
from orchestrator.session.journal import to_record
from orchestrator.session.metering import VIEWER_GRACE_S, Meter
from orchestrator.session.model import ManagedSession, SessionOptions, ingress_attributes, publish_state
from orchestrator.session.session_failover import Failover, Placement
from orchestrator.session.speech_pipeline import SpeechPipeline
from orchestrator.store.session_store import StoredSession
from orchestrator.supervision import run_each

FRESH_S = 0.5
SNAPSHOT_TIMEOUT_S = 2.0


async def refresh(agents: AgentClient, session: ManagedSession) -> None:
    """Asks the agent for the session's state, unless that was done a moment ago. Keeps the old one on failure.

    However many ask at the same time, the agent is asked once.
    """
    async with session.refreshing:
        lease = session.lease
        if lease is None or session.ended or time.monotonic() - session.snapshot_at < FRESH_S:
            return
        with suppress(ProblemError):
            snapshot = await agents.session(lease, session.session_id, SNAPSHOT_TIMEOUT_S)
            if session.lease is lease:
                session.snapshot = snapshot
        session.snapshot_at = time.monotonic()  # also when it did not answer: those who wait do not wait for it in turn


@dataclass
class Deadlines:
    """The deadlines of one session, on the clock its caller passes in (seconds).

    `note_*` move them; `over` returns the reason once one has passed, `next_at` when to look again.
    """

    options: SessionOptions
    begun_at: float
    expires_at: float
    counts_viewers: bool = True
    counts_speaker: bool = False
    awaits_speaker: bool = False
    """A speaker that was not there yet may come as late as the deadline for audio."""

    def __post_init__(self) -> None:
        self._audio_at = self.begun_at
        self._viewer_at = self.begun_at
        self._speaker_at: float | None = None if self.awaits_speaker else self.begun_at

    def note_audio(self, at: float) -> None:
        """Audio came, or speech is being heard."""
        self._audio_at = max(self._audio_at, at)

    def note_viewers(self, count: int, at: float) -> None:
        """So many viewers are in the room."""
        if count > 0:
            self._viewer_at = max(self._viewer_at, at)

    def note_speaker(self, at: float) -> None:
        """The participant that sends speech through the room is there, and may speak at any time."""
        self._speaker_at = at if self._speaker_at is None else max(self._speaker_at, at)
        self.note_audio(at)

    def over(self, now: float) -> str | None:
        """`expired`, `idle`, `no_viewers`, `speaker_left`: the deadline that passed first. None while the session may live."""
        reason, at = min(self._deadlines(), key=lambda deadline: deadline[1])
        return reason if now >= at else None

    def next_at(self) -> float:
        """The earliest deadline."""
        return min(at for _, at in self._deadlines())

    def _deadlines(self) -> list[tuple[str, float]]:
        deadlines = [("expired", self.expires_at), ("idle", self._audio_at + self.options.idle_ttl_s)]
        if self.counts_viewers:
            deadlines.append(("no_viewers", self._viewer_at + self.options.viewer_grace_s))
        if self.counts_speaker and self._speaker_at is not None:
            deadlines.append(("speaker_left", self._speaker_at + self.options.speaker_grace_s))
        return deadlines


LINK_OPEN_S = 10.0
CLOSE_STEP_S = 15.0
"""Longest step of a session's end: an agent that does not answer a stop is given up after ten seconds."""
HANDED_OVER = "handed_over"
"""The `end_reason` of a session that ends only here: another process goes on with it."""
_log = logging.getLogger(__name__)


class SessionRunner:
    """Runs one session. `end_reason` set on the session before `run` is cancelled says why it ends.

    Args:
        on_end: called with the session once nothing of it is left.
        known: what the store has of a session that another process began.
    """

    def __init__(
        self,
        session: ManagedSession,
        services: SessionDeps,
        options: SessionOptions,
        on_end: Callable[[ManagedSession], None],
        known: StoredSession | None = None,
    ) -> None:
        self._session = session
        self._on_end = on_end
        self._known = known
        self._services = services
        self._options = options
        self._placing = Placement(services, options)
        self._moving = Failover(services, self._placing)
        self._serving: asyncio.Task[None] | None = None
        tokens, order = services.public_tokens, session.order
        self._meter = Meter(tokens, order.public_token, order.room) if tokens and order.public_token else None

    async def run(self) -> None:
        """Returns when the session has ended and nothing of it is left."""
        session = self._session
        problem: ProblemError | None = None
        reason = "stopped"
        try:
            await self._enter()
            reason = await self._serve()
        except asyncio.CancelledError:  # `stop` cancels the owner: what follows is the end it asked for
            reason = session.end_reason or "stopped"
            if session.end_reason is None and not _cancelled():  # a task that the session waited for was cancelled
                _log.exception("session failed", extra={"session_id": session.session_id})
                problem, reason = _broken(), ErrorCode.INTERNAL.value
        except TakenOver:
            session.end_reason = HANDED_OVER
        except AgentLost as error:
            problem = ProblemError(ErrorCode.AGENT_UNAVAILABLE, f"The session was lost: {error}. Start another one.")
            reason = "agent_lost"
        except ProblemError as error:
            problem = error
            lost = error.code is ErrorCode.AGENT_UNAVAILABLE and session.moves > 0
            reason = "agent_lost" if lost else error.code.value
        except Exception:  # noqa: BLE001 - task boundary: no caller awaits this task
            _log.exception("session failed", extra={"session_id": session.session_id})
            problem, reason = _broken(), ErrorCode.INTERNAL.value
        session.end_reason = session.end_reason or reason  # from here on `stop` waits and does not cancel
        try:
            await (self._hand_over() if session.end_reason == HANDED_OVER else self._close(problem))
        finally:
            self._on_end(session)

    # --- the beginning

    async def _enter(self) -> None:
        """Opens the session: room, ingress, place at an agent, avatar in the room; or takes it up where another process was lost.

        What it did is on the session for `_close` to undo.
        """
        session, known, services = self._session, self._known, self._services
        order, journal, ingresses = session.order, services.journal, services.ingresses
        if known is not None and known.agent_url is not None:
            session.lease = services.pool.adopt(session.session_id, known.agent_url)
        record = partial(to_record, session, journal)
        if not await journal.enter(session.session_id, record, known=known is not None):
            raise TakenOver
        if known is not None:
            _check_adopted(session, known)
            if services.films is not None and session.lease is not None:
                await services.films.resume(session.session_id, session.lease)
            return
        if order.record and services.films is not None:
            services.films.expect(
                FilmOwner(session.session_id, order.key, order.public_token), skip_idle=order.skip_idle
            )
        if order.voice is VoiceSource.ORCHESTRATOR and order.connect_livekit:
            services.voices.reserve(session)
        making: asyncio.Task[RoomIngress | None] | None = None
        if order.connect_livekit and order.rtmp_url is None and ingresses is not None:
            making = asyncio.create_task(ingresses.create(order.room, session.identity, "Avatar"))
        try:
            await services.rooms.ensure(order.room)
        finally:
            if making is not None:
                session.ingress = await making
        await self._placing.place(session)
        self._follow_film()

    # --- the middle

    async def _serve(self) -> str:
        """Runs the session until it ends by itself; returns why."""
        session = self._session
        live = SpeechPipeline(
            session.session_id,
            self._options.limits,
            self._services.metrics,
            self._services.events,
            partial(self._services.journal.note, session.session_id),
        )
        session.live = live
        if self._services.films is not None:
            self._services.films.hear(session.session_id, live.heard)
        tasks: set[asyncio.Task[Any]] = {asyncio.create_task(live.run(), name=f"live-{session.session_id}")}
        try:
            if self._services.voices.joins(session.order):
                self._services.voices.begin(session, live)
            await (self._link(live) if self._known is None else self._relink(live, self._known))
            await self._converse()
            publish_state(self._services.events, session, SessionState.READY, "adopted" if self._known else None)
            session.started.set_result(None)
            _log.info("session ready", extra={"session_id": session.session_id, "room": session.order.room})
            tasks.add(asyncio.create_task(self._attend(live), name=f"attend-{session.session_id}"))
            tasks.add(asyncio.create_task(self._watch(live), name=f"watch-{session.session_id}"))
            if self._meter is not None:
                tasks.add(asyncio.create_task(self._pay(self._meter), name=f"pay-{session.session_id}"))
            if session.ingress is not None and self._services.ingresses is not None:
                presence = self._services.ingresses.accompany(
                    session.order.room, session.identity, lambda: ingress_attributes(session, live)
                )
                tasks.add(asyncio.create_task(presence, name=f"presence-{session.session_id}"))
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            return session.end_reason or "stopped"
        finally:
            if self._services.conversations is not None:
                self._services.conversations.end(session.session_id)
            if self._serving is not None:
                tasks.add(self._serving)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _converse(self) -> None:
        """Opens the session's conversation, where it has one."""
        session, conversations = self._session, self._services.conversations
        request, speaker = session.order.conversation, session.order.speaker
        if request is None or conversations is None or speaker is None:
            return
        minter, room = self._services.minter, session.order.room
        avatars, kept = self._services.avatars, session.order.library_avatar
        clips = () if avatars is None else await avatars.clip_names(kept)

        def token() -> str:
            return minter.conversation(room, speaker, max(60.0, session.expires_at - time.time()))

        if self._known is None:
            place = Place(minter.url, token, session.identity, clips)
            session.talk = await conversations.begin(session.session_id, request, place)
        else:
            session.talk = session.talk or OpenedConversation(session.session_id)
            conversations.resume(session.talk, request, Place(minter.url, token, session.identity, clips))

    async def _relink(self, live: SpeechPipeline, known: StoredSession) -> None:
        """The same for a session of another process. When its agent is gone too, it moves to another one as soon as it is ready."""
        session = self._session
        live.inherit(known.progress)
        try:
            if session.lease is None:
                raise AgentLost("session_lost", "its agent is none of AGENT_URL's any more", time.monotonic())
            agents = self._services.agents
            session.snapshot = await agents.session(session.lease, session.session_id, SNAPSHOT_TIMEOUT_S)
            await self._link(live, known.progress.events_seen)
        except (AgentLost, ProblemError) as error:
            live.without_agent()
            session.lease = session.lease or AgentLease(known.agent_url or "")
            lost = error if isinstance(error, AgentLost) else AgentLost("session_lost", str(error), time.monotonic())
            self._serving = asyncio.create_task(_raise(lost))

    async def _link(self, live: SpeechPipeline, adopt_after: int | None = None) -> None:
        """Opens the link to the session's agent. Raises what ended it, or AgentLost when it takes too long."""
        lease = self._session.lease
        assert lease is not None
        follower = self._services.voices.follower(self._session)
        side = live.attach_agent(lease, adopt_after=adopt_after, follower=follower)
        self._serving = serving = asyncio.create_task(side.run(), name=f"serve-{live.session_id}")
        up = asyncio.create_task(side.link.up.wait())
        try:
            await asyncio.wait({up, serving}, timeout=LINK_OPEN_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            up.cancel()
            await asyncio.gather(up, return_exceptions=True)
        if serving.done():
            raise await self._explain(serving)
        if not live.link_connected:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            raise AgentLost("link_lost", f"the agent's /audio did not open within {LINK_OPEN_S:g} s", time.monotonic())

    async def _attend(self, live: SpeechPipeline) -> None:
        """Moves the session to another agent whenever one is lost, until cancelled; never returns normally."""
        session = self._session
        while True:
            lost, to = await self._until_lost(live)
            if not await self._still_ours(lost):
                raise TakenOver
            await self._moving.move(session, live, lost, to)
            self._follow_film()
            try:
                await self._link(live)
            except AgentLost as again:
                _log.warning("the next agent was lost at once", extra={"session_id": session.session_id})
                self._serving = asyncio.create_task(_raise(again))
                continue
            publish_state(self._services.events, session, SessionState.READY, "moved")

    def _follow_film(self) -> None:
        """Everything that is heard of what was said so far is known now; what comes next its new agent says, and records."""
        session, films = self._session, self._services.films
        if films is not None and session.lease is not None and session.snapshot is not None:
            films.follow(session.session_id, session.lease, session.snapshot.width, session.snapshot.height)

    async def _still_ours(self, lost: AgentLost) -> bool:
        """Whether it is for us to move the session. Who cannot reach a shared store may have lost it without knowing."""
        journal = self._services.journal
        if journal.store.shared and lost.cause == TAKEN:
            return False
        return await journal.owns(self._session.session_id)

    async def _until_lost(self, live: SpeechPipeline) -> tuple[AgentLost, Any]:
        """Returns how the agent was lost, and where a planned move goes. Raises what ends the session."""
        serving = self._serving
        assert serving is not None
        leaving = asyncio.create_task(self._moving.wait_to_leave(self._session, live))
        try:
            await asyncio.wait({serving, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                return await self._explain(serving), None
            at = time.monotonic()
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            return AgentLost("draining", "its agent shuts down", at), leaving.result()
        finally:
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)

    async def _explain(self, serving: asyncio.Task[None]) -> AgentLost:
        """How the agent was lost. Raises ProblemError when it reported what went wrong with the session itself."""
        session = self._session
        assert session.lease is not None
        try:
            serving.result()
        except AgentLost as lost:
            return lost
        except LinkOver as over:
            at = over.at
            try:
                snapshot = await self._services.agents.session(session.lease, session.session_id, SNAPSHOT_TIMEOUT_S)
            except ProblemError:
                return AgentLost("session_lost", "its agent has forgotten it", at)
            session.snapshot = snapshot
            reported = _reported_problem(snapshot.error)
            if reported is None:
                return AgentLost("session_lost", "its agent has ended it", at)
            if reported.code is not ErrorCode.ENGINE_FAILED:
                raise reported from None
            return AgentLost("engine_failed", reported.detail, at)
        raise AssertionError("serving ended without an error")

    async def _watch(self, live: SpeechPipeline) -> None:
        """Returns when the session has outlived its use, with `end_reason` set."""
        session = self._session
        order = session.order
        begun = time.monotonic()
        options = self._options
        if self._meter is not None:
            options = replace(options, viewer_grace_s=min(options.viewer_grace_s, VIEWER_GRACE_S))
        life = Deadlines(
            options,
            begun,
            begun + session.expires_at - time.time(),  # from here on a step of the wall clock ends no session
            counts_viewers=order.connect_livekit,
            counts_speaker=order.audio_source.in_room,
            awaits_speaker=order.audio_source is AudioSource.PARTICIPANT,
        )
        last_audio_at = live.last_audio_at
        while True:
            await refresh(self._services.agents, session)
            now = time.monotonic()
            if live.last_audio_at != last_audio_at or not live.quiet:
                last_audio_at = live.last_audio_at
                life.note_audio(now)
            if session.snapshot is not None:
                life.note_viewers(session.snapshot.viewers, now)
                if session.snapshot.speaker_present:
                    life.note_speaker(now)
            reason = life.over(now)
            if reason is not None:
                session.end_reason = reason
                return
            await asyncio.sleep(max(0.01, min(self._options.poll_s, life.next_at() - now)))

    async def _pay(self, meter: Meter) -> None:
        """Returns when a session of a public token may not go on, with `end_reason` set."""
        self._session.end_reason = await meter.run()

    # --- the end

    async def _close(self, problem: ProblemError | None) -> None:
        """Undoes all that was done. Every step runs whatever becomes of the others, and at its end the session has ended."""
        session = self._session
        try:
            await run_each(
                ("speech", partial(self._end_speech, problem)),
                ("agent", self._stop_agent),
                ("film", self._end_film),
                ("room", self._leave_room),
                ("place", self._give_place_back),
                ("record", partial(self._settle, problem)),
                ("public token", self._settle_public),
                within_s=CLOSE_STEP_S,
            )
        finally:
            if not session.ended:  # the step that says so is the one that failed
                session.base_state = SessionState.STOPPED if problem is None else SessionState.FAILED
                session.ended_at = session.ended_at or time.time()
            if not session.started.done():
                session.started.set_exception(problem or session.over())
                session.started.exception()  # the caller may have left; that is no reason for a warning

    async def _end_speech(self, problem: ProblemError | None) -> None:
        session, services = self._session, self._services
        try:
            if problem is None:
                publish_state(services.events, session, SessionState.DRAINING, session.end_reason)
            if session.live is not None:
                session.live.end(problem)
        finally:
            services.voices.end(session)

    async def _end_film(self) -> None:
        if self._services.films is not None:
            await self._services.films.finish(self._session.session_id)

    async def _leave_room(self) -> None:
        session, services = self._session, self._services
        if session.placed and session.order.connect_livekit:
            await services.rooms.remove(session.order.room, session.identity)
        if session.ingress is not None and services.ingresses is not None:
            if await services.ingresses.remove(session.ingress.ingress_id):
                session.ingress = None  # one that is left stays in the record, for the reaper

    async def _give_place_back(self) -> None:
        self._services.pool.release(self._session.session_id)

    async def _settle(self, problem: ProblemError | None) -> None:
        session, services = self._session, self._services
        session.retire()
        session.error = problem
        session.ended_at = time.time()
        over = SessionState.STOPPED if problem is None else SessionState.FAILED
        publish_state(services.events, session, over, session.end_reason)
        services.metrics.ends.labels(reason=session.end_reason or "stopped").inc()
        _log.info("session ended", extra={"session_id": session.session_id, "reason": session.end_reason})

    async def _settle_public(self) -> None:
        """A public session's room is its own, and ends with it: else its visitor could publish there for hours."""
        if self._meter is None:
            return
        await self._meter.settle()
        await self._services.rooms.delete(self._session.order.room)

    async def _hand_over(self) -> None:
        """Another process goes on with the session: agent and room are left as they are, the sender is to come again."""
        session, services = self._session, self._services

        async def close_audio() -> None:
            try:
                if session.live is not None:
                    session.live.outbox.close(CLOSE_RESTART)
            finally:
                services.voices.end(session)

        async def leave_film() -> None:
            if services.films is not None:
                await services.films.leave(session.session_id)

        async def forget() -> None:
            services.pool.detach(session.session_id)
            session.retire()

        await run_each(
            ("speech", close_audio),
            ("record", partial(services.journal.hand_over, session.session_id)),
            ("place", forget),
            ("film", leave_film),
            within_s=CLOSE_STEP_S,
        )
        _log.info("session handed over", extra={"session_id": session.session_id})
        if not session.started.done():
            session.started.set_exception(session.over())
            session.started.exception()

    async def _stop_agent(self) -> None:
        session = self._session
        if session.lease is None:
            return
        try:
            session.snapshot = await self._services.agents.stop(session.lease, session.session_id)
        except ProblemError as error:
            if error.code is not ErrorCode.SESSION_NOT_FOUND:
                extra = {"session_id": session.session_id, "code": error.code.value}
                _log.warning("the agent did not stop the session", extra=extra)
            if error.code is ErrorCode.AGENT_UNAVAILABLE:
                self._placing.leave(session, session.lease)


class TakenOver(Exception):
    """The session is another orchestrator's now."""


async def _raise(lost: AgentLost) -> None:
    raise lost


def _check_adopted(session: ManagedSession, known: StoredSession) -> None:
    """Raises ProblemError for a session of another process that cannot go on."""
    if known.state is SessionState.STARTING:
        text = "The session was lost while it was starting. Start another one."
        raise ProblemError(ErrorCode.AGENT_UNAVAILABLE, text)
    if not session.readable:
        text = "The session was lost: what was stored of it cannot be read with this LIVEKIT_API_SECRET."
        raise ProblemError(ErrorCode.INTERNAL, text)


def _cancelled() -> bool:
    """Whether the task that runs was cancelled itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _broken() -> ProblemError:
    return ProblemError(ErrorCode.INTERNAL, "The session failed for a reason of our own; see the logs.")


def _reported_problem(error: dict[str, object] | None) -> ProblemError | None:
    """What the agent says went wrong."""
    if not error:
        return None
    reported = Problem.model_validate({"title": "", "status": 500, "detail": "", **error})
    return ProblemError(reported.code, reported.detail, field=reported.field)

"""One avatar in one room, from start to stop: a state machine around the pipeline and its publisher."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.clock import utc_now, utc_text
from musetalk_agent.compose.passages import Sketch, sketch
from musetalk_agent.errors import RecordingFailed
from musetalk_agent.media.pipeline import Pipeline, open_face
from musetalk_agent.media.player import PlayerOutputs
from musetalk_agent.media.renderer import OpenFace
from musetalk_agent.media.scheduler import Outcome
from musetalk_agent.protocol import messages as m
from musetalk_agent.protocol.http import (
    AgentActionRequest,
    AgentSession,
    AgentStartRequest,
    Diagnosis,
    FilmOptions,
    Microphone,
    Playback,
    SessionState,
    Transport,
    VoiceSource,
)
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.protocol.sdk_errors import SdkError, sdk_errors
from musetalk_agent.publishers.base import (
    CaptionPublisher,
    MediaTap,
    MediaTaps,
    MovingPublisher,
    Publisher,
    TappedPublisher,
)
from musetalk_agent.publishers.film.film import SessionFilm
from musetalk_agent.publishers.film.recorder import PartOptions
from musetalk_agent.session.diagnosis import HEARD, DiagnosisInput
from musetalk_agent.session.link import EventLog, LinkReceiver
from musetalk_agent.tasks import Step, in_thread, supervise, tear_down

if TYPE_CHECKING:
    from livekit import rtc  # not every session needs the SDK

    from musetalk_agent.engines.interface import EngineSession

log = logging.getLogger(__name__)

_MOVES: dict[SessionState, frozenset[SessionState]] = {
    SessionState.STARTING: frozenset({SessionState.READY, SessionState.STOPPED, SessionState.FAILED}),
    SessionState.READY: frozenset(
        {SessionState.SPEAKING, SessionState.DRAINING, SessionState.STOPPED, SessionState.FAILED}
    ),
    SessionState.SPEAKING: frozenset(
        {SessionState.READY, SessionState.DRAINING, SessionState.STOPPED, SessionState.FAILED}
    ),
    SessionState.RECOVERING: frozenset(),
    SessionState.DRAINING: frozenset({SessionState.STOPPED, SessionState.FAILED}),
    SessionState.STOPPED: frozenset(),
    SessionState.FAILED: frozenset(),
}
ENDED = frozenset({SessionState.STOPPED, SessionState.FAILED})
_LOOK_EVERY_S = 0.5
_ATTRIBUTE_S = 5.0
MEDIA_END_S = 2.0
"""The media's tasks end as soon as they are cancelled, unless a publisher's call that may not be cancelled is under way."""
FILM_END_S = 6.0
"""To encode what waits of the film: 5 s at most (`SessionFilm.aclose`)."""
LEAVE_S = 10.0
"""To leave the room: a publisher takes 7 s at most (`FailoverPublisher.aclose`)."""
RELEASE_S = 5.0
"""For the engine to release what it holds for the session; longer means that its device hangs."""
_SEEN_S = 3.0
"""Another avatar is seen within half a second of being there, unless nothing is shown at all."""
_NORMAL_ENDS = frozenset({"PARTICIPANT_REMOVED", "ROOM_DELETED", "ROOM_CLOSED", "DUPLICATE_IDENTITY"})


class RoomSpeech(Protocol):
    """Speech that comes through the room."""

    last_audio_at: float | None

    @property
    def segments(self) -> int:
        """Segments that were opened so far."""
        ...

    @property
    def present(self) -> bool:
        """The one that speaks is in the room."""
        ...

    def on_room_joined(self, room: rtc.Room) -> None:
        """Listens in a room that was just joined, instead of the one before."""
        ...

    def on_playback_event(self, event: m.Event) -> None:
        """A playback event of the pipeline."""
        ...

    def status(self) -> Microphone | None:
        """What is known of a microphone; None where the speech comes from none."""
        ...

    async def run(self) -> None:
        """Works until cancelled."""
        ...


class Session:
    """Owns the pipeline and the publisher; takes items through `receiver` and emits events through `events`.

    Args:
        request: what the orchestrator asked for.
        bundle: the prepared avatar.
        engine: the name of the engine in use.
        publisher: not yet open.
        build: makes the pipeline, given where its player reports to.
        release: called once, in a thread, when the session is over, to give back what the engine holds.
        check: raises when what the session runs on has failed; called once the publisher is open.
        engine_note: why the engine is not the one that its user may expect.
        make_speech: makes what feeds the pipeline where speech comes through the room, and not from the orchestrator.
    """

    def __init__(
        self,
        request: AgentStartRequest,
        bundle: Bundle,
        engine: str,
        publisher: Publisher,
        build: Callable[[PlayerOutputs], Pipeline],
        release: Callable[[], None],
        engine_note: str | None = None,
        make_speech: Callable[[Pipeline], RoomSpeech] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.id = request.session_id
        self.room = request.room
        self.bundle, self.engine, self.publisher = bundle, engine, publisher
        self.engine_note = engine_note
        self.state = SessionState.STARTING
        self.events = EventLog()
        self.started_at = utc_now()
        self.error: dict[str, Any] | None = None
        self.max_duration_s = request.max_duration_s
        outputs = PlayerOutputs(self._emit, self._on_speaking, self._on_spoken)
        if request.voice is VoiceSource.ORCHESTRATOR:
            outputs = replace(outputs, timings=self.events.due)
        if request.captions and isinstance(publisher, CaptionPublisher):
            outputs = replace(outputs, show_caption=publisher.push_caption)
        self.pipeline = build(outputs)
        self.speech = make_speech(self.pipeline) if make_speech is not None else None
        self.film = SessionFilm(self.pipeline.clock)
        self._film_options = request.film
        self._taps = MediaTaps()
        self.receiver = LinkReceiver(self.pipeline, request.backlog_s, bundle.fps, self._emit)
        self._release, self._check = release, check
        self._over = asyncio.Event()
        self._attribute = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.ended = asyncio.Event()
        self.changing = asyncio.Lock()
        """Held by who changes the avatar."""
        self._leaving: dict[asyncio.Task[None], Callable[[], None]] = {}
        self._clips: dict[str, OpenFace] = {}
        self._sketched: dict[OpenFace, Bundle] = {}
        self._sketches: dict[OpenFace, Sketch] = {}

    # --- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Joins the room, publishes both tracks and begins to play.

        Raises `PublishFailed`, and `EngineFailed` when the device failed meanwhile; the session is then over, as it is when this is
        cancelled.
        """
        async with AsyncExitStack() as opening:
            opening.push_async_exit(self._end_unopened)
            filming = asyncio.create_task(self._film_from_start(), name=f"session-{self.id}-film")
            try:
                await self._open_publisher()
                await filming
            finally:
                filming.cancel()
                await asyncio.gather(filming, return_exceptions=True)
            self._check()
        self._move(SessionState.READY)
        self._task = asyncio.create_task(self._run(), name=f"session-{self.id}")

    async def _open_publisher(self) -> None:
        first = self.pipeline.first
        if isinstance(self.publisher, MovingPublisher):
            joined = self.speech.on_room_joined if self.speech is not None else None
            await self.publisher.open(first, self._on_lost, self.pipeline.rewind, self.events.add, joined)
        else:
            await self.publisher.open(first, self._on_lost)

    async def _film_from_start(self) -> None:
        """Begins the film that the start asks for. Where its encoder does not start, the session warns and tries again."""
        if self._film_options is None:
            return
        try:
            await self.record(self._film_options, again=True)
        except ProblemError as error:
            log.warning("the film was not begun", extra={"session_id": self.id, "error": str(error)})
            self.events.add(m.WarningEvent(code=error.code.value, message=str(error)))

    async def record(self, options: FilmOptions, *, again: bool = False) -> None:
        """Begins to record, unless that is done already; returns when the encoder takes media.

        Raises `RecordingFailed`; `again` as in `SessionFilm.record`. Cancelling leaves nothing begun.
        """
        if not self.add_tap(self.film):
            raise RecordingFailed(f"A session that publishes by {self.publisher.name!r} is not recorded.")
        first = self.pipeline.first
        part = PartOptions(
            options.width or first.width, options.height or first.height, self.bundle.fps, options.skip_idle
        )
        await self.film.record(part, again=again)

    def add_tap(self, tap: MediaTap) -> bool:
        """Hands everything that is heard and seen from now on to `tap` too. False where the publisher cannot."""
        if not isinstance(self.publisher, TappedPublisher):
            return False
        self._taps.add(tap)
        self.publisher.tap = self._taps
        return True

    def remove_tap(self, tap: MediaTap) -> None:
        """Hands it nothing more. Idempotent."""
        self._taps.remove(tap)
        if self._taps.empty and isinstance(self.publisher, TappedPublisher):
            self.publisher.tap = None  # else it takes itself for watched

    async def _end_unopened(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """What `error` kept from opening, if anything did, is ended as failed."""
        if error is not None:
            self._fail(error)
            await self._end()

    async def stop(self) -> None:
        """Ends it: leaves the room and waits until nothing of it is left. Idempotent, safe in every state.

        Cancelling leaves the rest of the ending to the session's own task.
        """
        if self._task is None:
            if self.state not in ENDED:
                self._move(SessionState.STOPPED)
                await self._end()
            return
        self._over.set()
        await asyncio.shield(self._task)

    async def show(self, bundle: Bundle, engine_session: EngineSession) -> None:
        """Shows another avatar of the same size and rate; `changing` must be held. Returns when it is seen, or after `_SEEN_S`.

        It is the session's from the first moment on: cancelling only ends the wait.
        """
        closing = [self._release, *(clip.engine_session.close for clip in self._clips.values())]
        before = partial(_each, closing)
        self._release = engine_session.close
        self._sketched.setdefault(self.pipeline.home, self.bundle)
        self.bundle = bundle
        self._clips.clear()
        begin = self.pipeline.show(bundle, engine_session)
        log.info("another avatar", extra={"session_id": self.id, "avatar_id": bundle.report.avatar_id})
        leaving = asyncio.create_task(self._leave(begin, before), name=f"session-{self.id}-avatar")
        self._leaving[leaving] = before
        leaving.add_done_callback(self._left)
        await self.pipeline.shown(begin, _SEEN_S)

    def clip(self, request: AgentActionRequest) -> OpenFace | None:
        """A clip of the avatar that is open already."""
        return self._clips.get(_clip_key(request))

    def keep_clip(self, request: AgentActionRequest, bundle: Bundle, engine_session: EngineSession) -> OpenFace:
        """Takes a clip over from the engine, until another avatar is shown or the session ends."""
        face = self._clips[_clip_key(request)] = open_face(bundle, engine_session)
        self._sketched[face] = bundle
        return face

    async def act(self, clip: OpenFace | None, *, loop: bool) -> None:
        """Plays a clip of the avatar that is shown, or ends what plays (None). `changing` must be held."""
        home = self.pipeline.home
        face = clip or home
        self._sketched.setdefault(home, self.bundle)
        needed = {*self.pipeline.faces, face}
        for each in needed - self._sketches.keys():
            self._sketches[each] = await in_thread(partial(sketch, self._sketched[each]), f"sketch-{self.id}")
        kept = {*needed, home, *self._clips.values()}
        self._sketched = {each: bundle for each, bundle in self._sketched.items() if each in kept}
        self._sketches = {each: small for each, small in self._sketches.items() if each in kept}
        self.pipeline.act(face, self._sketches, loop=loop)

    async def _leave(self, begin: int, release: Callable[[], None]) -> None:
        """Gives back what the engine holds for the avatar before, once no frame of it is needed."""
        while not await self.pipeline.shown(begin, _SEEN_S):
            pass
        await asyncio.shield(in_thread(release, f"release-{self.id}"))

    def _left(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return  # the session ends, which releases it
        self._leaving.pop(task, None)
        if (error := task.exception()) is not None:
            log.error("an avatar was not released", exc_info=error, extra={"session_id": self.id})

    async def _release_all(self) -> None:
        clips = [clip.engine_session.close for clip in self._clips.values()]
        left = [*self._leaving.values(), *clips, self._release]
        for task in self._leaving:
            task.cancel()
        await asyncio.gather(*self._leaving, return_exceptions=True)
        await in_thread(partial(_each, left), f"release-{self.id}")

    def break_off(self, error: ProblemError) -> None:
        """Ends it as failed, from outside: what it runs on has failed. Returns at once."""
        if self.state in ENDED or self.error is not None:
            return
        self.error = {"code": error.code.value, "message": str(error)}
        self.events.add(m.ErrorEvent(code=error.code.value, message=str(error)))
        self._over.set()

    async def _run(self) -> None:
        """The session's own task: waits until it is over or its media broke, and ends every part of it."""
        media = asyncio.create_task(self._play(), name=f"session-{self.id}-media")
        try:
            await self._until_over(media)
        except Exception as error:  # the session's boundary: whatever broke, it leaves the room and says so
            log.exception("session failed", extra={"session_id": self.id})
            self._fail(error)
        finally:
            self._move(SessionState.STOPPED)
            await self._end(media)

    async def _play(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.pipeline.run(), name="pipeline")
            group.create_task(supervise("attributes", self._report_state), name="attributes")
            if self.speech is not None:
                group.create_task(self.speech.run(), name="speech")

    async def _until_over(self, media: asyncio.Task[None]) -> None:
        """Returns when the session is stopped, was broken off, lost its room or reached its longest duration. Raises what ended the
        media's tasks, which end by nothing else.
        """
        over = asyncio.create_task(self._over.wait(), name=f"session-{self.id}-over")
        try:
            await asyncio.wait({media, over}, timeout=self.max_duration_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            over.cancel()
        if media.done() and not self._over.is_set():
            error = None if media.cancelled() else media.exception()
            raise _cause(error) if error is not None else RuntimeError("the media's tasks ended by themselves")
        if not self._over.is_set():
            log.info("session reached its longest duration", extra={"session_id": self.id})
        self.pipeline.clear()

    async def _end(self, media: asyncio.Task[None] | None = None) -> None:
        """Ends every part, in this order, each whatever the others do, and then says that it is over. See `tear_down`."""

        async def discard() -> None:
            self.pipeline.renderer.ready.discard()

        async def stop_media() -> None:
            if media is not None:
                media.cancel()
                await asyncio.wait({media})
                if (
                    not media.cancelled()
                    and (error := media.exception()) is not None
                    and self.state is not SessionState.FAILED
                ):
                    log.error("the media broke as the session ended", exc_info=error, extra={"session_id": self.id})

        try:
            await tear_down(
                f"session {self.id}",
                [
                    Step("media", stop_media, MEDIA_END_S),
                    Step("film", self.film.aclose, FILM_END_S),
                    Step("publisher", self.publisher.aclose, LEAVE_S),
                    Step("frames", discard, MEDIA_END_S),
                    Step("engine", self._release_all, RELEASE_S),
                ],
            )
        finally:
            self.ended.set()
            self.events.changed.set()

    def _on_lost(self, reason: str) -> None:
        log.warning("room connection ended", extra={"session_id": self.id, "reason": reason})
        if reason not in _NORMAL_ENDS:
            text = f"The connection to room {self.room!r} was lost for good ({reason})."
            self.error = {"code": ErrorCode.LIVEKIT_UNAVAILABLE.value, "message": text}
            self.events.add(m.ErrorEvent(code=ErrorCode.LIVEKIT_UNAVAILABLE.value, message=text))
        self._over.set()

    def _fail(self, error: BaseException) -> None:
        known = isinstance(error, ProblemError)
        code = error.code if isinstance(error, ProblemError) else ErrorCode.INTERNAL
        text = str(error) if known else "The session broke unexpectedly; the agent's log has the details."
        self.error = {"code": code.value, "message": text}
        self.events.add(m.ErrorEvent(code=code.value, message=text))
        self._move(SessionState.FAILED)

    def _move(self, to: SessionState) -> None:
        """The one place that changes the state."""
        if to is SessionState.STOPPED and self.error is not None:
            to = SessionState.FAILED
        if to not in _MOVES[self.state]:
            return
        log.info("session state", extra={"session_id": self.id, "from": self.state.value, "to": to.value})
        self.state = to

    def _on_speaking(self, speaking: bool) -> None:
        self._move(SessionState.SPEAKING if speaking else SessionState.READY)
        self._attribute.set()

    def _on_spoken(self, at: float, segment: int, second: float) -> None:
        self.film.note_spoken(at, segment, second)

    async def _report_state(self) -> None:
        """Keeps the attribute `avatar.state` true: looks when speech begins and ends, and twice a second."""
        reported, clock = "", self.pipeline.clock
        while True:
            state = "speaking" if self.state is SessionState.SPEAKING else "idle"
            if self.pipeline.player.recent.degraded(clock.now()):
                state = "degraded"
            if state != reported:
                try:
                    with sdk_errors():
                        async with asyncio.timeout(_ATTRIBUTE_S):
                            await self.publisher.set_state(state)
                    reported = state
                except (SdkError, TimeoutError) as error:  # it is tried again
                    log.warning("avatar.state not set", extra={"session_id": self.id, "error": repr(error)})
            await clock.wait(self._attribute, clock.now() + _LOOK_EVERY_S)

    def _emit(self, event: m.Event) -> None:
        self.events.add(event)
        if self.speech is not None:
            self.speech.on_playback_event(event)

    # --- what it says of itself --------------------------------------------------------------------------------------

    def diagnose(self) -> Diagnosis:
        """Why the lips do not move, or `ok`."""
        state, watch = self.publisher.state, self.pipeline.watch
        recent, now = self.pipeline.player.recent, self.pipeline.clock.now()
        late, failed = recent.share(now, Outcome.LATE), recent.share(now, Outcome.FAILED)
        finding = watch.finding if watch else None
        microphone = self.speech.status() if self.speech else None
        facts = DiagnosisInput(
            joined=state.connected,
            join_error=state.error,
            viewers=state.viewers,
            subscribed=state.subscribed,
            watched=state.watched,
            suspicion=finding.suspicion if finding else None,
            suspicion_text=finding.text if finding else "",
            failing=f"The engine {self.engine} failed on {failed:.0%} of the last frames, which show the idle clip instead."
            if failed > 0.1
            else None,
            slow=f"{late:.0%} of the last pictures were late: the {self.engine} engine is too slow for this machine's load."
            if late > 0.1
            else None,
            fallback=self.publisher.name == "rtmp",
            note=self.engine_note,
            missing=microphone.message if microphone and microphone.state not in HEARD else None,
        )
        return self.pipeline.stats.diagnose(facts)

    def status(self) -> AgentSession:
        """The session as `GET /session/{id}` reports it."""
        state, playback = self.publisher.state, self.pipeline.player
        self.pipeline.stats.set_acknowledged(state.acknowledged_frames, state.acknowledged_at)
        return AgentSession(
            session_id=self.id,
            state=self.state,
            room=self.room,
            publisher=self.publisher.name,
            engine=self.engine,
            engine_note=self.engine_note,
            fps=self.bundle.fps,
            width=self.bundle.width,
            height=self.bundle.height,
            avatar=self.bundle.report,
            viewers=state.viewers,
            playback=Playback(
                position_s=round(playback.position_s, 3),
                buffered_s=round(playback.buffered_s, 3),
                segments=self.speech.segments if self.speech else self.receiver.segments,
            ),
            diagnosis=self.diagnose(),
            funnel=self.pipeline.stats.report(),
            tracks=state.tracks,
            transport=self.publisher.transport
            if isinstance(self.publisher, MovingPublisher)
            else Transport(rung=self.publisher.name),
            started_at=self.started_at,
            last_audio_at=utc_text(self.speech.last_audio_at if self.speech else self.receiver.last_audio_at),
            speaker_present=self.speech.present if self.speech else None,
            microphone=self.speech.status() if self.speech else None,
            error=self.error,
            statistics=playback.report(),
        )


def _clip_key(request: AgentActionRequest) -> str:
    return request.model_dump_json(include={"avatar", "avatar_settings"})


def _each(closing: Sequence[Callable[[], None]]) -> None:
    for close in closing:
        close()


def _cause(error: BaseException) -> Exception:
    """The first error of the groups that it came through."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, Exception) else RuntimeError(repr(error))

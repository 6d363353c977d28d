"""The orchestrator's own voice in one session: while there is no agent, and always where it speaks instead of the agent.

Without an agent the standby voice renders the session's segments (`SpeechPipeline.attach_renderer`): it pulls the messages that an
agent would get, and plays them as soon as it can. When another agent is ready, a cut position a little ahead is chosen: the voice
plays up to it, and the agent begins there (docs/explanation/voice.md).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Any

from musetalk_agent.protocol.http import VoiceSource
from musetalk_agent.protocol.messages import (
    Cleared,
    LinkClear,
    LinkVoice,
    PlaybackFinished,
    PlaybackStarted,
    SegmentEnd,
    SegmentStart,
    link_message,
)
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.audio.outgoing_segment import BYTES_PER_SAMPLE, DEFAULT_RATE, LinkMessage
from orchestrator.livekit_rooms import Rooms, TokenMinter
from orchestrator.metrics import Metrics
from orchestrator.session.model import ManagedSession, SessionRequest
from orchestrator.session.speech_pipeline import PlayoutFollower, SpeechPipeline
from orchestrator.voice.voice_worker import LINES_MAX, VoiceBusyError, VoiceLine, VoiceWorker
from orchestrator.voice.worker_messages import LineReport

AFTER_S = 0.7
"""The cut lies at least this far ahead: an agent on a busy machine has its first frame by then."""
WITHIN_S = 0.4
"""A pause is looked for in as much after that."""
SPOKEN_S = 1.0
"""A voice that has only begun to join is waited for: it is heard before an agent whose track is new to the listeners."""
NEW_TRACK_S = 0.4
"""If the standby voice was never heard, the agent waits this long for listeners to subscribe to its track."""
UNDER_WAY_S = 0.1
"""Audio that is still in the SDK when the voice ends."""
STOP_S = 1.0
"""A worker that has not reported so long after the cut that it stopped is not waited for: it may have been lost meanwhile."""
MakeLine = Callable[[Callable[[LineReport], None]], VoiceLine]
_log = logging.getLogger(__name__)


class StandbyVoice:
    """One session's voice.

    Args:
        live: the session's audio path.
        make: makes a line that reports to the function given. May raise VoiceBusyError.
        always: the orchestrator speaks, and the agent says when.
        joined: the line is in the room all the time, so that it speaks a join's time earlier.
    """

    def __init__(self, live: SpeechPipeline, make: MakeLine, *, always: bool = False, joined: bool = False) -> None:
        self._live = live
        self._make = make
        self._always = always
        self._stays = always or joined
        self._line: VoiceLine | None = None
        self._standing_in = False
        self._until: float | None = None
        self._overdue: asyncio.TimerHandle | None = None
        self._rates: dict[int, int] = {}
        self._ends: dict[int, float] = {}

    @property
    def standing_in(self) -> bool:
        """Whether the voice speaks because there is no agent."""
        return self._standing_in

    def open(self) -> None:
        """The session begins. Raises VoiceBusyError when the orchestrator is to speak and has no line left."""
        if not self._stays:
            return
        try:
            self._line = self._make(self._on_report)
        except VoiceBusyError:
            if self._always:
                raise
            _log.warning("no line for the stand-in", extra={"session_id": self._live.session_id})
            return
        self._line.join(on_air=self._always)
        if self._always:
            self._line.follow(0, 0.0, 0.0)

    @property
    def follower(self) -> PlayoutFollower | None:
        """What an agent's link reports to where the orchestrator speaks; None where the agent does."""
        return PlayoutFollower(self._take, self._due) if self._always else None

    def close(self) -> None:
        """The session is over: leaves the room."""
        self._standing_in = False
        self._leave_turn()
        if self._line is not None:
            self._line.leave()
            self._line = None

    # --- between two agents

    def position(self) -> tuple[int, float] | None:
        """The playout position where this voice knows it best. None when the agent's report counts."""
        if self._line is None or not (self._always or self._until is not None):
            return None
        position = self._line.position()
        return (position.segment, position.heard_s) if position.segment else None

    def stand_in(self) -> None:
        """The agent is gone, and what it did not bring to the listeners waits: it is said from here, as soon as it can be."""
        self._leave_turn()
        line = self._line or self._new_line()
        if line is None:
            return
        self._ends.clear()
        self._line, self._standing_in = line, True
        line.join(on_air=False)
        line.free()
        self._live.attach_renderer(self)
        self.wake()

    async def hand_over(self) -> None:
        """An agent is ready: chooses where the voice ends, and leaves the rest to wait for it. Without a stand-in does nothing."""
        line = self._line
        if line is None or not self._standing_in:
            return
        spoken = not self._ends or await line.wait_spoken(SPOKEN_S)
        cut = await line.cut(AFTER_S, WITHIN_S)
        self._standing_in = False
        if cut is None:  # the worker is gone this moment
            position = line.position()
            self._live.rewind(position.segment, position.heard_s)
            self._end_of_turn()
        elif not cut.segment and not self._ends:
            self._live.rewind(0, 0.0)
            self._end_of_turn()
        else:  # segment 0: all it was given is under way
            segment = cut.segment or max(self._ends)
            heard_s = cut.heard_s if cut.segment else self._ends[segment]
            more_s = NEW_TRACK_S if not spoken else 0.0 if cut.segment else UNDER_WAY_S
            self._until = cut.at + more_s
            self._live.rewind(segment, heard_s, self._until)
            wait_s = self._until - time.monotonic() + STOP_S
            self._overdue = asyncio.get_running_loop().call_later(max(0.0, wait_s), self._end_of_turn)
            extra = {"session_id": self._live.session_id, "segment": segment, "heard_s": round(heard_s, 3)}
            _log.info("voice hands over", extra=extra)

    # --- as the session's speaker

    def wake(self) -> None:
        """Takes what there is."""
        while self._standing_in:
            now = time.monotonic()
            item = self._live.next_item(now, self.outstanding_s(now))
            if item is None:
                return
            self._take(item)

    def outstanding_s(self, now: float) -> float:
        """Seconds of speech that were pulled and not yet heard."""
        return self._line.outstanding_s if self._line is not None else 0.0

    # --- what is known

    def view(self) -> dict[str, Any] | None:
        """Its part of `/debug/audio`; None where there is no line."""
        if self._line is None:
            return None
        spoken = self._standing_in or self._until is not None
        role = "speaks" if self._always else "stands_in" if spoken else "waits"
        return {"role": role, **self._line.view()}

    # --- inside

    def _new_line(self) -> VoiceLine | None:
        try:
            return self._make(self._on_report)
        except VoiceBusyError as error:
            _log.warning("no stand-in", extra={"session_id": self._live.session_id, "reason": str(error)})
            return None

    def _take(self, item: LinkMessage) -> None:
        """Gives the line what an agent gets."""
        line = self._line
        if line is None:
            return
        if isinstance(item.payload, bytes):
            line.air(True)
            line.play(item.segment, item.rate, item.start, item.payload)
            self._ends[item.segment] = (item.start + len(item.payload) // BYTES_PER_SAMPLE) / item.rate
            return
        said = link_message.validate_json(item.payload)
        if isinstance(said, SegmentStart):
            self._rates[said.segment] = said.sample_rate
            self._ends.setdefault(said.segment, said.heard_s)
        elif isinstance(said, SegmentEnd):
            line.end(said.segment, self._rates.get(said.segment, DEFAULT_RATE))
        elif isinstance(said, LinkClear):
            dropped_s = line.outstanding_s
            line.clear()
            self._ends.clear()
            if self._standing_in:
                self._live.on_event(Cleared(dropped_s=round(dropped_s, 3)))

    def _due(self, timing: LinkVoice) -> None:
        if self._line is not None and not self._standing_in:
            at = time.monotonic() + timing.in_s - self._live.link_delay_s()
            self._leave_turn()
            self._line.follow(timing.segment, timing.heard_s, at, held=timing.held)

    def _on_report(self, report: LineReport) -> None:
        if self._standing_in:
            if report.segment:
                if report.heard_s:
                    self._live.on_event(PlaybackStarted(segment=report.segment))
                self._live.on_heard(report.segment, report.heard_s)
            for number in report.finished:
                end_s = round(self._ends.get(number, 0.0), 3)
                self._live.on_event(PlaybackFinished(segment=number, position_s=end_s, interrupted=False))
        elif self._until is not None and not self._always and report.stopped and time.monotonic() > self._until:
            self._end_of_turn()
        for numbers in (self._ends, self._rates):
            for number in [n for n in numbers if n < report.segment - 1]:
                del numbers[number]

    def _leave_turn(self) -> None:
        """The voice's end is not waited for any more."""
        self._until = None
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None

    def _end_of_turn(self) -> None:
        """The agent speaks: the voice leaves the air, and the room unless it stays there."""
        self._leave_turn()
        if self._line is None or self._always:
            return
        if self._stays:
            self._line.air(False)
        else:
            self._line.leave()
            self._line = None


_RETRY_AFTER_S = 5


class VoiceStandby(StrEnum):
    """`VOICE_STANDBY`: how ready the voice is for the loss of an agent.

    `off`: there is no stand-in. `warm`: the worker runs, and joins a room when its agent is lost. `joined`: it is in every room
    from the session's start, without a track, so that it speaks a join's time earlier.
    """

    OFF = "off"
    WARM = "warm"
    JOINED = "joined"


class StandbyVoices:
    """Gives sessions their voice. The worker is the caller's to close."""

    def __init__(
        self, worker: VoiceWorker, minter: TokenMinter, rooms: Rooms, metrics: Metrics, standby: VoiceStandby
    ) -> None:
        self._worker = worker
        self._minter, self._rooms = minter, rooms
        self._metrics = metrics
        self._standby = standby
        self._standbys: dict[str, StandbyVoice] = {}
        self._reserved: set[str] = set()

    def open(self) -> None:
        """Starts the worker in the background, unless nothing is to stand by."""
        if self._standby is not VoiceStandby.OFF:
            self._worker.open()

    async def aclose(self) -> None:
        """Ends the worker."""
        await self._worker.aclose()

    def reserve(self, session: ManagedSession) -> None:
        """Keeps a line for a session that is starting and will need one. Raises ProblemError `at_capacity` when none is left."""
        if len(self._worker.lines) + len(self._reserved) >= LINES_MAX:
            raise _busy()
        self._reserved.add(session.session_id)

    def joins(self, order: SessionRequest) -> bool:
        """Whether the voice is in a session's room from its start, and not only while there is no agent."""
        always = order.voice is VoiceSource.ORCHESTRATOR
        return order.connect_livekit and (always or self._standby is VoiceStandby.JOINED)

    def begin(self, session: ManagedSession, live: SpeechPipeline) -> None:
        """Joins the room. Raises ProblemError `at_capacity` when the orchestrator is to speak and has no line left."""
        self._reserved.discard(session.session_id)
        always = session.order.voice is VoiceSource.ORCHESTRATOR
        standby = StandbyVoice(live, self._maker(session), always=always, joined=self._standby is VoiceStandby.JOINED)
        try:
            standby.open()
        except VoiceBusyError as error:
            raise _busy() from error
        self._standbys[session.session_id] = standby

    def end(self, session: ManagedSession) -> None:
        """The session is over."""
        self._reserved.discard(session.session_id)
        standby = self._standbys.pop(session.session_id, None)
        if standby is not None:
            standby.close()

    @asynccontextmanager
    async def stand_in(self, session: ManagedSession) -> AsyncIterator[None]:
        """Speaks from the moment the session's agent is lost until the next one is ready to."""
        standby, live = self._standbys.get(session.session_id), session.live
        if (
            standby is None
            and live is not None
            and session.order.connect_livekit
            and self._standby is VoiceStandby.WARM
        ):
            standby = self._standbys[session.session_id] = StandbyVoice(live, self._maker(session))
        if standby is None:
            yield
            return
        self._metrics.voice_stand_ins.inc()
        standby.stand_in()
        muting = asyncio.create_task(self._mute_agent(session), name=f"mute-{session.session_id}")
        try:
            yield
        finally:
            muting.cancel()
            await asyncio.gather(muting, return_exceptions=True)
        await standby.hand_over()

    def follower(self, session: ManagedSession) -> PlayoutFollower | None:
        """For the link to the session's agent, where the orchestrator speaks; None where the agent does."""
        standby = self._standbys.get(session.session_id)
        return standby.follower if standby is not None else None

    def position(self, session: ManagedSession) -> tuple[int, float] | None:
        """The playout position (segment, seconds) where the voice knows it better than the agent; else None."""
        standby = self._standbys.get(session.session_id)
        return standby.position() if standby is not None else None

    def view(self, session: ManagedSession) -> dict[str, Any] | None:
        """The voice's part of `/debug/audio`; None while it is not in the room."""
        standby = self._standbys.get(session.session_id)
        return standby.view() if standby is not None else None

    async def _mute_agent(self, session: ManagedSession) -> None:
        """An agent that only we have lost may go on speaking; its next tracks have other ids."""
        tracks = session.snapshot.tracks if session.snapshot is not None else []
        for track in tracks:
            if track.kind == "audio":
                await self._rooms.mute(session.order.room, session.identity, track.sid)

    def _maker(self, session: ManagedSession) -> Callable[[Callable[[LineReport], None]], VoiceLine]:
        minter, order = self._minter, session.order

        def token() -> str:
            return minter.avatar(
                order.room,
                f"voice-{session.session_id}",
                max(1.0, session.expires_at - time.time()),
                name="Voice",
                on_behalf_of=session.identity,
            )

        return lambda on_report: self._worker.line(minter.url, token, on_report)


def _busy() -> ProblemError:
    return ProblemError(
        ErrorCode.AT_CAPACITY,
        f"The orchestrator speaks in {LINES_MAX} rooms already: stop a session, or let the agent speak.",
        retry_after_s=_RETRY_AFTER_S,
        limit=LINES_MAX,
    )

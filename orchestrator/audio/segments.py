"""A session's queue of speech segments: which are open, sent, heard and cleared. No I/O and no clock: every method takes `now`
(seconds, monotonic).

A segment is opened by `audio.start`, by the first PCM after a pause, or by `/speak`. Segments play in the order they were
opened: only the first that is not complete is forwarded to the agent, the others wait here. The agent reports the end of a segment
that it has received; the tracker reports the end of the others. What goes out is pulled by `next_item` (to the agent)
and `take_events` (to the sender). After a clear PCM is dropped as long as `AfterClear` says.

Everything a sender can open is bounded: see `check_open`, `CLEARS` and `outgoing_segment.NOTES`. PCM is bounded by the caller, who
looks at the totals before it pushes; these are running totals, as is every figure that is asked for often.

PCM stays here until it is known to be heard. When the agent is lost, `rewind` queues the rest again under the same numbers, for
the next renderer: another agent, or the orchestrator's own voice. Each of them begins with `attach`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from musetalk_agent.features.mouth_network import STEP
from musetalk_agent.features.speech_detector import LevelDetector, SpeechDetector
from musetalk_agent.media_types import FEATURE_RATE
from musetalk_agent.protocol.messages import (
    Cleared,
    LinkClear,
    PlaybackFinished,
    PlaybackStarted,
    PublicEvent,
    WarningEvent,
)
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.resample import Resampler
from orchestrator.audio.outgoing_segment import (
    BYTES_PER_SAMPLE,
    DEFAULT_RATE,
    LinkMessage,
    OutgoingSegment,
    Totals,
    seconds,
)

CLEAR_PAUSE_S = 0.3
"""A sender that pauses this long, or whose PCM has no speech for as long, has noticed the clear."""
LIVE_S = 1.0
LIVE_PACE = 1.25
"""PCM that comes no faster than this, as a multiple of real time, over `LIVE_S` is live; what is left of a text comes faster."""
_LOUD_DBFS = -35.0  # RMS of 20 ms from which audio is no silence here, tones and music too
_LOOKED_AT_S = 0.6  # of a message, its end: the event loop waits for the detector
_WARM_S = 0.3  # in which the detector, which has not heard what was before, may miss speech


class AfterClear:
    """How long a sender's PCM is dropped after a clear: as long as it may be the rest of what was interrupted.

    It is that no more after a pause, after 300 ms without speech, and once it has come at real-time pace for a second: then it
    is a live source, which never pauses. The detector that rests the avatar's mouth decides what is silence, so that neither a
    quiet speaker counts as silence nor a loud noise floor as speech.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._came_s = 0.0
        self._heard_s = 0.0
        self._silent_s = 0.0
        self._rate = 0
        self._detector, self._loud = SpeechDetector.shipped(), LevelDetector(_LOUD_DBFS)

    def is_over(self, pcm: bytes, rate: int, now: float, *, paused: bool) -> bool:
        """Takes int16 PCM of the sender, which paused before it or not; returns whether it and what follows are to be heard."""
        return paused or self._is_live(len(pcm) / (BYTES_PER_SAMPLE * rate), now) or self._is_silent(pcm, rate)

    def _is_live(self, seconds: float, now: float) -> bool:
        if self._since is None:
            self._since = now  # what was sent before it is not known, so it counts for nothing
            return False
        self._came_s += seconds
        if now - self._since < LIVE_S:
            return False
        live = self._came_s <= LIVE_PACE * (now - self._since)
        self._since, self._came_s = now, 0.0
        return live

    def _is_silent(self, pcm: bytes, rate: int) -> bool:
        if rate != self._rate:
            self._rate, self._resampler = rate, Resampler(rate, FEATURE_RATE)
        samples = np.frombuffer(pcm, "<i2")[-round(_LOOKED_AT_S * rate) :].astype(np.int16)
        sound = self._resampler.push(samples)
        for speech, loud in zip(self._detector.push(sound), self._loud.push(sound), strict=True):
            self._heard_s += STEP / FEATURE_RATE
            warm = self._heard_s <= _WARM_S and not self._detector.silent
            self._silent_s = 0.0 if speech or loud or warm else self._silent_s + STEP / FEATURE_RATE
        return self._silent_s >= CLEAR_PAUSE_S - STEP / FEATURE_RATE / 2


__all__ = ["DEFAULT_RATE", "Clearing", "OutgoingSegment", "SegmentTracker"]

IDLE_END_S = 0.5
"""A segment that began by itself ends after this long without PCM."""
EXPLICIT_END_S = 10.0
"""One opened by `audio.start` is waited for this long."""
MOST_IN_S = 5.0
OPEN_SEGMENTS = 256
"""Segments of a session that may be open and not cleared. An agent takes as many."""
_OPEN_AND_CLEARED = 4 * OPEN_SEGMENTS
"""With those whose clear the agent has not answered: a sender that opens and clears faster than an agent answers."""
CLEARS = 32
"""Clears that may wait for an answer, each with its own `cleared`; what comes beyond them joins the last."""
AHEAD_S = 120.0
"""PCM that may be at the agent and not heard: the default backlog."""


def _no_renderer() -> None:
    """In place of a renderer's `wake`."""


@dataclass
class Clearing:
    """A clear on its way to the agent and back. `segments` are those it ends, in order; `answered` once its effect is known."""

    at: float
    dropped_s: float
    segments: list[int]
    answered: bool = False


class SegmentTracker:
    """Segments of one session.

    Args:
        ahead_s: no more than this many seconds of PCM are forwarded before they are known to be heard. It is also what is kept for
            another agent.
        trace: called with the number of each segment that is opened; returns its trace span.

    Attributes:
        wake: called when there may be a message for the renderer; does nothing while there is none.
    """

    def __init__(self, ahead_s: float = AHEAD_S, trace: Callable[[int], str | None] = lambda _: None) -> None:
        self.opened = 0
        self.utterance = 0
        """Another number for each utterance of `/audio`: it changes with whatever ends a segment."""
        self.wake: Callable[[], None] = _no_renderer
        self._ahead_s, self._trace = ahead_s, trace
        self._attached = self._shows = True
        self.totals = Totals()
        self._open: dict[int, OutgoingSegment] = {}
        self._uncleared: dict[int, OutgoingSegment] = {}
        self._sounding: dict[int, OutgoingSegment] = {}
        self._queue: deque[OutgoingSegment] = deque()
        self.live: OutgoingSegment | None = None
        """The open segment of `/audio`."""
        self._after_clear: AfterClear | None = None  # PCM is dropped
        self._last_pcm_at: float | None = None
        self._finished_s = 0.0
        self._due_at = 0.0
        self._clears_to_send = 0
        self._clearings: deque[Clearing] = deque()
        self._events: list[PublicEvent] = []

    def check_open(self) -> None:
        """Raises ProblemError `backlog_exceeded` when no other segment may be opened now."""
        if len(self._uncleared) >= OPEN_SEGMENTS or len(self._open) >= _OPEN_AND_CLEARED:
            raise ProblemError(
                ErrorCode.BACKLOG_EXCEEDED,
                f"{OPEN_SEGMENTS} segments wait to be heard: put more speech into a segment, "
                "and reconnect and resume from received_samples once some of it was played.",
                limit=OPEN_SEGMENTS,
            )

    # --- what the sender does

    def audio_start(self, now: float) -> int:
        """`audio.start`: ends the open segment of `/audio`, opens the next and returns its number."""
        self.audio_end()
        self._after_clear = None
        self.live = self.open_segment(now, explicit=True)
        return self.live.number

    def audio_end(self) -> None:
        """`audio.end`: no more PCM for the open segment. Without one it does nothing."""
        if self.live is not None:
            self.live.complete = True
            self.live = None
            self.utterance += 1

    def push(self, pcm: bytes, rate: int, now: float, received: int | None = None) -> None:
        """Whole int16 samples at `rate` Hz. Opens a segment when none is; dropped while a clear is not noticed.

        `received` is the session's count of `/audio` samples before these.
        """
        if not pcm:
            return
        paused = self._last_pcm_at is None or now - self._last_pcm_at >= CLEAR_PAUSE_S
        self._last_pcm_at = now
        if self._after_clear is not None:
            if not self._after_clear.is_over(pcm, rate, now, paused=paused):
                return
            self._after_clear = None
        if self.live is None:
            self.live = self.open_segment(now, rate)
        self.live.append(pcm, rate, now, received)

    def clear(self, now: float) -> Clearing:
        """Drops everything that has not been heard. The result fills when the agent has answered; at once when there is none.

        It is an earlier one's when `CLEARS` wait already and the last of them has not been forwarded.
        """
        dropped_s, segments = self.waiting_s, list(self._uncleared.values())
        for segment in segments:
            segment.drop(now)
        self._uncleared.clear()
        self._queue.clear()
        self.live = None
        self.utterance += 1
        self._after_clear = AfterClear()
        numbers = [segment.number for segment in segments]
        if self._attached and self._clears_to_send and len(self._clearings) >= CLEARS:
            joined = self._clearings[-1]
            joined.segments += numbers
            joined.dropped_s += dropped_s
            return joined
        clearing = Clearing(now, dropped_s, numbers)
        if self._attached:
            self._clears_to_send += 1
            self._clearings.append(clearing)
        else:
            self._answer(clearing, 0.0)
        return clearing

    def dropping(self, now: float) -> bool:
        """PCM comes and is dropped, since it may be the rest of what a clear interrupted."""
        return (
            self._after_clear is not None and self._last_pcm_at is not None and now - self._last_pcm_at < CLEAR_PAUSE_S
        )

    # --- what time does

    def tick(self, now: float) -> bool:
        """Ends the open segment of `/audio` when its PCM has stayed away too long. Returns whether it did."""
        live = self.live
        if live is None:
            return False
        if live.explicit and now - live.input_at >= EXPLICIT_END_S:
            message = (
                f"Segment {live.number} was opened by audio.start and got no audio for {EXPLICIT_END_S:g} s, "
                "so it was ended: send audio.end after the last PCM."
            )
            self._events.append(WarningEvent(code="segment_timeout", message=message))
            self.audio_end()
        elif not live.explicit and now - live.input_at >= IDLE_END_S:
            self.audio_end()
        return self.live is None

    # --- what the agent reports

    def on_started(self, event: PlaybackStarted, now: float) -> None:
        """The segment begins to be heard; a second word about it is ignored."""
        segment = self._open.get(event.segment)
        if segment is not None and not segment.playback_started:
            segment.playback_started = True
            self._hear(segment, segment.heard, now)
            self._events.append(event)

    def on_heard(self, number: int, heard_s: float, now: float) -> None:
        """So much of a segment was heard by now. Those before it were heard whole; 0 says nothing."""
        for segment in self._open.values():
            if segment.number >= number:
                break
            if segment.complete:
                self._hear(segment, segment.sent, None)
        if number in self._open:
            segment = self._open[number]
            self._hear(segment, segment.sample_at(heard_s), now)

    def _hear(self, segment: OutgoingSegment, sample: int, now: float | None) -> None:
        segment.hear(sample, now)
        if self._shows:
            segment.shown = segment.heard
        if segment.heard_at is not None:
            self._sounding[segment.number] = segment

    def on_finished(self, event: PlaybackFinished) -> None:
        """The segment is over; a second word about it is ignored."""
        segment = self._open.pop(event.segment, None)
        if segment is not None:
            self._uncleared.pop(event.segment, None)
            self._sounding.pop(event.segment, None)
            if not segment.cleared:
                segment.hear(segment.sample_at(event.position_s), None)
            segment.close()
            self._finished_s += event.position_s
            self._events.append(event)

    def on_cleared(self, event: Cleared) -> Clearing | None:
        """The oldest clear took effect. Returns it with the agent's own share added, None when none was asked for."""
        if not self._clearings:
            return None
        clearing = self._clearings.popleft()
        self._answer(clearing, event.dropped_s)
        return clearing

    def _answer(self, clearing: Clearing, more_s: float) -> None:
        for number in clearing.segments:
            self._finish(number, clearing.at)
        clearing.dropped_s += more_s
        clearing.answered = True
        self._events.append(Cleared(dropped_s=round(clearing.dropped_s, 3)))

    def finish_all(self, now: float) -> None:
        """The session is over: every open segment gets its `playback.finished`, every clear its `cleared`."""
        for number in sorted(self._open):
            self._finish(number, now)
        self._events.extend(Cleared(dropped_s=round(clearing.dropped_s, 3)) for clearing in self._clearings)
        self._queue.clear()
        self._clearings.clear()
        self.live = None

    def _finish(self, number: int, now: float) -> None:
        """Ends an open segment whose end the agent will not report."""
        segment = self._open.get(number)
        if segment is not None:
            position = round(segment.played_s(now), 3)
            self.on_finished(PlaybackFinished(segment=number, position_s=position, interrupted=True))

    # --- when another process began

    @property
    def unfinished(self) -> dict[int, bool]:
        """Numbers of the open segments, and whether they have begun to be heard."""
        return {number: segment.playback_started for number, segment in self._open.items()}

    def inherit(self, opened: int, unfinished: Mapping[int, bool], at_agent: int) -> None:
        """Goes on where another process was lost, of which `opened` and `unfinished` are known.

        The agent heard of `at_agent` segments and has their PCM; the one that is open there is ended. Those it never heard of are
        over, because their PCM is lost.
        """
        self.opened = max(opened, at_agent)
        for number in sorted({*unfinished, *range(opened + 1, at_agent + 1)}):
            started = unfinished.get(number, False)
            segment = OutgoingSegment(
                number, None, self.totals, announced=True, complete=True, playback_started=started
            )
            self._open[number] = self._uncleared[number] = segment
            if number > at_agent:
                self.on_finished(PlaybackFinished(segment=number, position_s=0.0, interrupted=True))
        if at_agent in self._open:
            self._queue.append(self._open[at_agent])

    # --- when the agent is lost

    def position(self, at: float) -> tuple[int, float]:
        """The segment that was being heard at `at` and how many seconds of it; (0, 0) when none was.

        It stays behind the truth rather than beyond it: what was heard twice is a pity, what was not heard is lost.
        """
        current = self._sounding[max(self._sounding)] if self._sounding else None
        return (current.number, current.surely_s(at)) if current is not None else (0, 0.0)

    def rewind(self, number: int, heard_s: float, now: float, due_at: float = 0.0) -> list[Clearing]:
        """The renderer is gone, `heard_s` of segment `number` and all before it were heard: the rest is queued again.

        Nothing is forwarded before `attach`. `due_at`: when the next renderer may begin (monotonic); until then what comes before
        is still being said. Returns the clears that were under way; they are answered.
        """
        self._due_at = due_at
        self.on_heard(number, heard_s, now)
        answered, self._clearings = list(self._clearings), deque()
        for clearing in answered:
            covered = [self._open[n] for n in clearing.segments if n in self._open]
            self._answer(clearing, sum(segment.at_agent_s for segment in covered))
        self._clears_to_send = 0
        self._attached, self.wake = False, _no_renderer
        for segment in list(self._open.values()):
            if segment.heard and not segment.playback_started:
                segment.playback_started = True
                self._events.append(PlaybackStarted(segment=segment.number))
            if segment.complete and segment.number <= number and segment.heard == segment.samples:
                over = PlaybackFinished(
                    segment=segment.number, position_s=round(segment.duration_s, 3), interrupted=False
                )
                self.on_finished(over)
            else:
                segment.rewind(self._shows)
        self._sounding.clear()
        self._queue = deque(self._open.values())
        return answered

    def attach(self, shows: bool = True, wake: Callable[[], None] | None = None) -> None:
        """There is a renderer again: another agent, or the orchestrator itself, which does not show what it says."""
        self._attached, self._shows, self.wake = True, shows, wake or _no_renderer

    # --- what goes out

    @property
    def waiting_s(self) -> float:
        """Seconds of PCM that have not been forwarded."""
        return seconds(self.totals.waiting)

    @property
    def at_agent_s(self) -> float:
        """Seconds of PCM that were forwarded and are not known to be heard."""
        return seconds(self.totals.at_agent)

    @property
    def audio_s(self) -> float:
        """Seconds of `/audio` that are to be heard."""
        return seconds(self.totals.audio)

    @property
    def speech_s(self) -> float:
        """Seconds of `/speak` that are to be heard."""
        return seconds(self.totals.speech)

    @property
    def notes(self) -> int:
        """Phonemes and words that are kept."""
        return self.totals.notes

    @property
    def open_segments(self) -> int:
        """Segments that are open, without those that were cleared."""
        return len(self._uncleared)

    @property
    def clears(self) -> int:
        """Clears that were not answered."""
        return len(self._clearings)

    def position_s(self, now: float) -> float:
        """Seconds heard since the session began."""
        sounding = sum(segment.since_s(now) for segment in self._sounding.values())
        return self._finished_s + seconds(self.totals.heard) + sounding

    @property
    def playing(self) -> bool:
        """Whether a segment is being heard."""
        return any(segment.playback_started for segment in self._open.values())

    @property
    def idle(self) -> bool:
        """Nothing is open."""
        return not self._open

    def take_events(self) -> list[PublicEvent]:
        """Events since the last call, in order."""
        events, self._events = self._events, []
        return events

    def next_item(self, now: float, outstanding_s: float = 0.0, control_only: bool = False) -> LinkMessage | None:
        """The next message to the agent, None when there is nothing to forward now. A clear overtakes PCM.

        Args:
            now: monotonic time (s).
            outstanding_s: seconds of speech that the agent has, where it knows of more than was forwarded from here.
            control_only: PCM must wait, a clear need not.
        """
        if not self._attached:
            return None
        if self._clears_to_send:
            if len(self._clearings) - self._clears_to_send >= CLEARS:
                return None
            self._clears_to_send -= 1
            return LinkMessage(LinkClear().model_dump_json())
        if control_only or outstanding_s >= self._ahead_s or seconds(self.totals.at_agent) >= self._ahead_s:
            return None
        while self._queue:
            head = self._queue[0]
            waiting = head.sent < head.samples or head.notes_sent < len(head.notes)
            if not head.announced and (waiting or head.complete):
                return head.start_item(min(max(0.0, self._due_at - now), MOST_IN_S))
            if waiting:
                return head.next_item()
            if not head.complete:
                return None
            self._queue.popleft()
            return head.end_item()
        return None

    def open_segment(
        self, now: float, rate: int | None = None, *, explicit: bool = False, speech: bool = False
    ) -> OutgoingSegment:
        """Opens a segment behind those that are open. `explicit`: by `audio.start`; `speech`: for `/speak`."""
        self.opened += 1
        segment = OutgoingSegment(self.opened, rate, self.totals, speech=speech, explicit=explicit, input_at=now)
        segment.traceparent = self._trace(self.opened)
        self._open[segment.number] = self._uncleared[segment.number] = segment
        self._queue.append(segment)
        return segment

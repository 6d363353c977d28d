"""One segment of speech: the same PCM at the features' rate and at the room's, counted in samples and frames, and its captions."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from musetalk_agent.media.segment_trace import UNTRACED, SegmentTrace
from musetalk_agent.media_types import FEATURE_RATE, Cue, Pcm, frame_start, frames_begun, frames_complete
from musetalk_agent.resample import Resampler

WORDS_KEPT = 4096
"""Words of a segment that wait or may come again: twenty minutes of them."""


@dataclass(frozen=True, slots=True)
class Word:
    """A piece of text with the space after it, and when it begins, in seconds from the whole segment's beginning."""

    text: str
    at_s: float


@dataclass(frozen=True, slots=True)
class Caption:
    """More of a line of text; with `final` the line is over."""

    line: str
    text: str = ""
    final: bool = False


class Script:
    """The words of a segment, or of the rest of one, in order.

    Args:
        line: the id of the captions' line.
    """

    def __init__(self, line: str) -> None:
        self._line = line
        self._words: list[Word] = []
        self._shown = 0
        self._open = False

    def add(self, words: Sequence[Word]) -> None:
        """More of them. Past `WORDS_KEPT` those that were shown go first, then the new ones."""
        if len(self._words) + len(words) > WORDS_KEPT:
            del self._words[: self._shown]
            self._shown = 0
        self._words += words[: WORDS_KEPT - len(self._words)]

    def hear(self, second: float) -> Caption | None:
        """What is to be shown when the voice has come to this second."""
        begun = self._shown
        while self._shown < len(self._words) and self._words[self._shown].at_s <= second:
            self._shown += 1
        if begun == self._shown:
            return None
        self._open = True
        return Caption(self._line, "".join(word.text for word in self._words[begun : self._shown]))

    def end(self) -> Caption | None:
        """The segment is over, or cut: what was begun is final. Once."""
        if not self._open:
            return None
        self._open = False
        return Caption(self._line, final=True)

    def rest(self, line: str, second: float) -> Script:
        """The words from this second on, shown or not."""
        rest = Script(line)
        rest._words = [word for word in self._words if word.at_s >= second]
        return rest


class SampleBuffer:
    """First in, first out of int16 samples. What was taken stays until it is forgotten, so that it can be taken again.

    `len()` counts what was not taken yet; `kept` counts what was taken and can be had again.
    """

    def __init__(self) -> None:
        self._taken: deque[Pcm] = deque()
        self._waiting: deque[Pcm] = deque()
        self._size = 0
        self.kept = 0

    def __len__(self) -> int:
        return self._size

    def push(self, samples: Pcm) -> None:
        """Adds samples at the end."""
        if len(samples):
            self._waiting.append(samples)
            self._size += len(samples)

    def take(self, most: int) -> Pcm:
        """Takes up to `most` samples from the front."""
        taken: list[Pcm] = []
        missing = min(most, self._size)
        while missing > 0:
            part = self._waiting.popleft()
            if len(part) > missing:
                self._waiting.appendleft(part[missing:])
                part = part[:missing]
            taken.append(part)
            missing -= len(part)
        if not taken:
            return np.zeros(0, np.int16)
        result = (np.concatenate(taken) if len(taken) > 1 else taken[0]).astype(np.int16, copy=False)
        self._size -= len(result)
        self._taken.append(result)
        self.kept += len(result)
        return result

    def forget(self, keep: int) -> None:
        """Drops what was taken, but for its last `keep` samples (to the part)."""
        while self._taken and self.kept - len(self._taken[0]) >= keep:
            self.kept -= len(self._taken.popleft())

    def rest(self, back: int) -> SampleBuffer:
        """A new tape of the last `back` samples taken and all that wait; a negative `back` skips as many that wait.

        Raises ValueError when fewer are kept.
        """
        if back > self.kept:
            raise ValueError(f"{back} samples back, but only {self.kept} are kept")
        rest, skip = SampleBuffer(), self.kept - back
        for part in (*self._taken, *self._waiting):
            rest.push(part[skip:])
            skip = max(0, skip - len(part))
        return rest


ROOM_RATE = 48_000
"""Samples per second of every sink: Opus's own rate, so that no source loses bandwidth (Hz)."""
KEPT_S = 12.0
"""So much audio that was handed over can be played again; a transport that is dead is found dead long before."""
GRAIN = ROOM_RATE // 100
"""Sinks take audio in steps of 10 ms."""
BLOCK = 4 * GRAIN
"""Most samples handed over at once: 40 ms."""
_LEAST_BLOCK = 2 * GRAIN
_FEATURES_AHEAD_S = 2.0  # features are taken this much earlier than audio, at most
_CONVERTED_S = 1.0
"""PCM is resampled this far ahead of its readers and no further, so that a minute of PCM that comes at once costs the event loop
nothing but its copy, and a clear behind it does not wait for work that it makes void."""
_STEP_S = 0.2  # resampled at once
_LIVE_AHEAD_S = 0.35
"""A sender that was never further than this ahead of real time is live: a delay that its segment has is a stall's."""
LEAST_CUT = 2 * GRAIN
"""Samples of silence that are worth being left out."""
_REST_SEEN_S = 0.2
"""A rest is reported this much before its first frame: no one spoke then either, and a live segment is not yet heard that far."""


@dataclass(slots=True)
class Arrivals:
    """When the audio of each frame had come, for measuring how late its lips leave; bounded to the frames not yet shown."""

    times: deque[float] = field(default_factory=lambda: deque(maxlen=8192))
    first_frame: int = 0

    def pop(self, frame: int) -> float | None:
        """Time at which frame `frame` was complete, forgetting the ones before it."""
        while self.times and self.first_frame < frame:
            self.times.popleft()
            self.first_frame += 1
        return self.times[0] if self.times and self.first_frame == frame else None


class Segment:
    """PCM of one segment, split for its two readers.

    Args:
        number: counted from 1 within the session.
        generation: the session's generation when it was opened.
        rate: the sender's samples per second.
        fps: frames per second of the video.
        heard_before_s: seconds of it that were heard through another agent, before what is pushed here.
        stages: its trace.

    Its own methods write its fields, but for `not_before` and `microphone` (by the pipeline, when it begins), `origin` (by the
    player, when it is first played), and `started` and `finished` (by the segment queue, with the events).
    """

    def __init__(
        self,
        number: int,
        generation: int,
        rate: int,
        fps: int,
        heard_before_s: float = 0.0,
        stages: SegmentTrace = UNTRACED,
    ) -> None:
        self.number = number
        self.generation = generation
        self.rate = rate
        self.fps = fps
        self.heard_before_s = heard_before_s
        self.stages = stages
        self.skipped = 0  # samples at ROOM_RATE that were heard before a rewind, and are not in here
        self.received = 0  # at `rate`, the skipped ones too
        self.ended = False
        self.for_features = SampleBuffer()
        self.for_room = SampleBuffer()
        self.cues: list[Cue] = []
        self.script = Script(self._line)
        self.arrivals = Arrivals()
        self.frames_ordered = 0
        self.frames_ready = 0
        self.rests: deque[tuple[int, int | None]] = deque(maxlen=32)  # frames [first, end) without speech
        self.live = True  # its PCM comes at real-time pace
        self.microphone = False  # see `Pipeline.begin`
        self._rested: set[int] = set()  # frames that rest, after one that is not ready
        self._began_at: float | None = None
        self._cuts: list[tuple[int, int]] = []  # samples at ROOM_RATE left out, and where
        self._cut: Pcm | None = None  # the beginning of what was just left out
        self.origin: int | None = None  # playout position of its first sample, once it has begun
        self.enqueued = 0  # samples at ROOM_RATE given to the sink
        self.not_before = 0.0  # monotonic time at which its first sample may leave
        self.started = heard_before_s > 0  # `playback.started` was emitted
        self.finished = False  # `playback.finished` was emitted
        self._unconverted: deque[Pcm] = deque()  # at `rate`
        self._end_at: float | None = None  # when `end` was called
        self._features_in = 0
        self._cue_base = round(heard_before_s * FEATURE_RATE)  # where the features begin, in the whole segment
        self._to_features = Resampler(rate, FEATURE_RATE)
        self._to_room = Resampler(rate, ROOM_RATE)

    def push(self, samples: Pcm, now: float) -> None:
        """Adds PCM at the sender's rate, int16 `[n]`, that came at `now`."""
        self._began_at = now if self._began_at is None else self._began_at
        self.received += len(samples)
        self.live = self.live and self.received / self.rate - (now - self._began_at) <= _LIVE_AHEAD_S
        self._unconverted.append(samples)
        self._convert()
        complete = frames_complete(self.received - self.skipped * self.rate // ROOM_RATE, self.fps, self.rate)
        seen = self.arrivals.first_frame + len(self.arrivals.times)
        self.arrivals.times.extend([now] * (complete - seen))

    def end(self, now: float) -> None:
        """No more PCM. `ended` follows once all of it is resampled; the last frame of the room's side is padded with silence."""
        if self._end_at is None:
            self._end_at = now
            self._convert()

    def add_cues(self, cues: Sequence[Cue]) -> None:
        """Phonemes known beforehand, in samples at the sender's rate from the whole segment's beginning."""
        scale, base = FEATURE_RATE / self.rate, self._cue_base
        at = [Cue(c.phoneme, int(c.start * scale) - base, int(c.end * scale) - base) for c in cues]
        self.cues += [Cue(c.phoneme, max(0, c.start), c.end) for c in at if c.end > 0]

    @property
    def frames(self) -> int:
        """Video frames begun in what was resampled so far; final once ended."""
        return frames_begun(self._features_in, self.fps)

    @property
    def room_samples(self) -> int:
        """Length at ROOM_RATE: whole frames, then whole `GRAIN`s, since a sink keeps a partial one for the next segment."""
        return -(-frame_start(self.frames, self.fps, ROOM_RATE) // GRAIN) * GRAIN

    @property
    def has_block(self) -> bool:
        """There is enough for the sink."""
        return len(self.for_room) >= (GRAIN if self.ended else _LEAST_BLOCK)

    def take_block(self) -> Pcm | None:
        """The next 20–40 ms for the sink in whole grains; None when there is not as much yet."""
        if not self.has_block:
            return None
        block = self.for_room.take(min(BLOCK, len(self.for_room) // GRAIN * GRAIN))
        self.enqueued += len(block)
        if self._cut is not None:  # what follows a cut fades in over what was cut
            fade = np.linspace(0, 1, GRAIN, dtype=np.float32)
            joined = self._cut * (1 - fade) + block[:GRAIN] * fade
            block, self._cut = np.concatenate([joined.astype(np.int16), block[GRAIN:]]), None
        self.for_room.forget(round(KEPT_S * ROOM_RATE))
        self._convert()
        return block

    def take_features(self, most: int) -> Pcm:
        """The next samples at FEATURE_RATE, up to `most`."""
        samples = self.for_features.take(most)
        self.for_features.forget(round((KEPT_S + _FEATURES_AHEAD_S) * FEATURE_RATE))
        self._convert()
        return samples

    def frame_made(self) -> None:
        """The next frame that was ordered is ready; so are those that rest behind it."""
        self.frames_ready += 1
        self._pass_rests()

    def frame_rests(self) -> None:
        """No one speaks in the next frame: none is made for it."""
        if not self.resting:
            self.rests.append((self.frames_ordered, None))
        self._rested.add(self.frames_ordered)
        self.arrivals.pop(self.frames_ordered - self.fps)  # keeps those of frames that are not shown yet
        self.frames_ordered += 1
        self._pass_rests()

    def frame_ordered(self) -> int:
        """There is speech in the next frame, which is being made. Returns its number."""
        if self.resting:
            self.rests.append((self.rests.pop()[0], self.frames_ordered))
        self.frames_ordered += 1
        return self.frames_ordered - 1

    @property
    def resting(self) -> bool:
        """No one speaks in the frame that was decided last."""
        return bool(self.rests) and self.rests[-1][1] is None

    def rests_at(self, position: int) -> bool:
        """No one speaks at playout position `position`."""
        if self.origin is None:
            return False
        sample = self._sample(position)
        early = sample + _REST_SEEN_S * ROOM_RATE
        return any(
            early >= frame_start(first, self.fps, ROOM_RATE)
            and (end is None or sample < frame_start(end, self.fps, ROOM_RATE))
            for first, end in self.rests
        )

    def cut_delay(self, margin_s: float, least: int = LEAST_CUT) -> int:
        """Leaves silence out where a live segment has more in hand than it needs, so that a stall's delay ends where it is free.

        All that is left out was judged to be silence; `margin_s` of it stays before what is not judged yet. Less than `least`
        samples at ROOM_RATE are not left out. Returns the samples that were, 0 mostly. Positions count them as heard.
        """
        if not self.live or not self.resting or self.enqueued < frame_start(self.rests[-1][0], self.fps, ROOM_RATE):
            return 0
        judged = frame_start(self.frames_ordered, self.fps, ROOM_RATE) - round(margin_s * ROOM_RATE)
        excess = min(judged - self.enqueued, len(self.for_room) - BLOCK) // GRAIN * GRAIN
        if excess < least:
            return 0
        assert self.origin is not None
        while self._cuts and self._cuts[0][0] + self._cuts[0][1] < self.enqueued - KEPT_S * ROOM_RATE:
            self.origin -= self._cuts.pop(0)[1]  # nothing asks for what lies before it any more
        self._cuts.append((self.enqueued, excess))
        self._cut = self.for_room.take(excess)[:GRAIN]
        self.enqueued += excess
        return excess

    def forget(self, position: int) -> None:
        """What was heard before playout position `position` will not be played again. Only once it has begun."""
        keep = max(0, self.enqueued - self._sample(position))
        self.for_room.forget(keep)
        self.for_features.forget(-(-keep * FEATURE_RATE // ROOM_RATE))

    def rest(self, position: int, generation: int) -> Segment:
        """What lies after playout position `position`, as a new segment that has not begun. It takes this one's place: further
        PCM is pushed there. Less lies in it when the position is further back than `KEPT_S`.
        """
        heard = 0 if self.origin is None else max(0, min(self._sample(position), self.enqueued))
        again = min(self.enqueued - heard, self.for_room.kept)
        rest = Segment(self.number, generation, self.rate, self.fps, self.heard_before_s, self.stages)
        rest.skipped, rest.received = self.skipped + self.enqueued - again, self.received
        rest.for_room = self.for_room.rest(again)
        taken = self._features_in - len(self.for_features)
        begin = min((self.enqueued - again) * FEATURE_RATE // ROOM_RATE, self._features_in)
        begin = max(begin, taken - self.for_features.kept)
        rest.for_features = self.for_features.rest(taken - begin)
        rest._features_in = len(rest.for_features)
        rest._to_features, rest._to_room = self._to_features, self._to_room
        rest.live, rest._began_at, rest.microphone = self.live, self._began_at, self.microphone
        rest._unconverted, rest._end_at = self._unconverted, self._end_at
        rest.cues = [Cue(c.phoneme, max(0, c.start - begin), c.end - begin) for c in self.cues if c.end > begin]
        rest._cue_base = self._cue_base + begin
        rest.script = self.script.rest(rest._line, rest.begins_s)
        rest.not_before = self.not_before
        rest.started, rest.finished, rest.ended = self.started, self.finished, self.ended
        waiting = sum(map(len, rest._unconverted)) * FEATURE_RATE // self.rate
        rest.arrivals.first_frame = frames_begun(rest._features_in + waiting, self.fps)  # they come again: no latency
        if rest.ended:
            rest._pad()
        else:
            rest._convert()
        return rest

    @property
    def enqueued_all(self) -> bool:
        """The sink has everything."""
        return self.ended and not len(self.for_room)

    @property
    def end_position(self) -> int:
        """Playout position after its last handed sample. Only once it has begun."""
        return self.position_of(self.enqueued)

    @property
    def duration_s(self) -> float:
        """Seconds of PCM received."""
        return self.received / self.rate

    @property
    def begins_s(self) -> float:
        """Which second of the whole segment its first sample is."""
        return self.heard_before_s + self.skipped / ROOM_RATE

    @property
    def _line(self) -> str:
        return str(self.number) if not self.begins_s else f"{self.number}+{self.begins_s:.3f}"

    def played_s(self, position: int) -> float:
        """Seconds of the PCM received that are heard when the playout position is `position`; never more than it has."""
        played = 0 if self.origin is None else max(0, min(self._sample(position), self.enqueued))
        return min(self.duration_s, (self.skipped + played) / ROOM_RATE)

    def second_at(self, position: int) -> float:
        """Which second of the whole segment is heard at the playout position `position`. Only once it has begun."""
        return self.begins_s + self._sample(position) / ROOM_RATE

    def heard_s(self, position: int) -> float:
        """Seconds of the whole segment heard by then: `played_s`, and what another agent played."""
        return self.heard_before_s + self.played_s(position)

    def frame_position(self, frame: int) -> int:
        """Playout position at which frame `frame` is due. Only once it has begun."""
        return self.position_of(frame_start(frame, self.fps, ROOM_RATE))

    def position_of(self, sample: int) -> int:
        """Playout position of one of its samples at ROOM_RATE. Only once it has begun."""
        assert self.origin is not None
        left_out = sum(min(length, max(0, sample - at)) for at, length in self._cuts)
        return self.origin + sample - left_out

    def _sample(self, position: int) -> int:
        assert self.origin is not None
        sample = position - self.origin
        for at, length in self._cuts:
            if sample >= at:
                sample += length
        return sample

    def _pass_rests(self) -> None:
        while self.frames_ready in self._rested:
            self._rested.discard(self.frames_ready)
            self.frames_ready += 1

    def _pad(self) -> None:
        """Fills the room's side with silence up to whole frames and whole grains."""
        have = self.enqueued + len(self.for_room)
        missing = max(self.room_samples, -(-have // GRAIN) * GRAIN) - have
        self.for_room.push(np.zeros(missing, np.int16))

    def _convert(self) -> None:
        """Resamples until both readers have `_CONVERTED_S` in hand; flushes at the end of the PCM.

        While PCM is left unconverted neither reader is empty, so an empty reader has had all there is.
        """
        step = max(1, round(_STEP_S * self.rate))
        while self._unconverted and self._readers_low:
            parts: list[Pcm] = []
            missing = step
            while self._unconverted and missing:
                part = self._unconverted.popleft()
                if len(part) > missing:
                    self._unconverted.appendleft(part[missing:])
                    part = part[:missing]
                parts.append(part)
                missing -= len(part)
            samples = np.concatenate(parts) if len(parts) > 1 else parts[0]
            features = self._to_features.push(samples)
            self._features_in += len(features)
            self.for_features.push(features)
            self.for_room.push(self._to_room.push(samples))
        if self._end_at is None or self._unconverted or self.ended:
            return
        self.ended = True
        features = self._to_features.flush()
        self._features_in += len(features)
        self.for_features.push(features)
        self.for_room.push(self._to_room.flush())
        self._pad()
        seen = self.arrivals.first_frame + len(self.arrivals.times)
        self.arrivals.times.extend([self._end_at] * (self.frames - seen))

    @property
    def _readers_low(self) -> bool:
        return len(self.for_room) < _CONVERTED_S * ROOM_RATE or len(self.for_features) < _CONVERTED_S * FEATURE_RATE

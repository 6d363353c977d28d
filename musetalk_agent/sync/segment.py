"""One segment of speech on its way: the same PCM at the features' rate and at the room's, counted in samples and frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from musetalk_agent.media import FEATURE_RATE, Cue, Pcm, frame_start, frames_begun, frames_complete
from musetalk_agent.resample import Resampler

ROOM_RATE = 48_000
"""Samples per second of every sink: Opus's own rate, so that no source loses bandwidth (Hz)."""


GRAIN = ROOM_RATE // 100
"""Sinks take sound in steps of 10 ms."""
BLOCK = 4 * GRAIN
"""Most samples handed over at once: 40 ms."""
_LEAST_BLOCK = 2 * GRAIN


class PcmBuffer:
    """First in, first out of int16 samples."""

    def __init__(self) -> None:
        self._parts: deque[Pcm] = deque()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, samples: Pcm) -> None:
        """Adds samples at the end."""
        if len(samples):
            self._parts.append(samples)
            self._size += len(samples)

    def take(self, most: int) -> Pcm:
        """Takes up to `most` samples from the front."""
        taken: list[Pcm] = []
        missing = min(most, self._size)
        while missing > 0:
            part = self._parts.popleft()
            if len(part) > missing:
                self._parts.appendleft(part[missing:])
                part = part[:missing]
            taken.append(part)
            missing -= len(part)
        if not taken:
            return np.zeros(0, np.int16)
        result = np.concatenate(taken) if len(taken) > 1 else taken[0]
        self._size -= len(result)
        return result.astype(np.int16, copy=False)

    def clear(self) -> None:
        """Drops everything."""
        self._parts.clear()
        self._size = 0


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
        return self.times[0] if self.times else None


class Segment:
    """PCM of one segment, split for its two readers.

    Args:
        number: counted from 1 within the session.
        generation: the session's generation when it was opened.
        rate: the sender's samples per second.
        fps: frames per second of the video.
    """

    def __init__(self, number: int, generation: int, rate: int, fps: int) -> None:
        self.number = number
        self.generation = generation
        self.rate = rate
        self.fps = fps
        self.received = 0
        self.ended = False
        self.for_features = PcmBuffer()
        self.for_room = PcmBuffer()
        self.cues: list[Cue] = []
        self.arrivals = Arrivals()
        self.frames_ordered = 0
        self.frames_ready = 0
        self.features_done = False
        self.origin: int | None = None  # playout position of its first sample, once it has begun
        self.handed = 0  # samples at ROOM_RATE given to the sink
        self.started = False  # `playback.started` was told
        self._features_in = 0
        self._to_features = Resampler(rate, FEATURE_RATE)
        self._to_room = Resampler(rate, ROOM_RATE)

    def push(self, samples: Pcm, now: float) -> None:
        """Adds PCM at the sender's rate, int16 `[n]`, that came at `now`."""
        self.received += len(samples)
        self._feed(self._to_features.push(samples))
        self.for_room.push(self._to_room.push(samples))
        complete = frames_complete(self.received, self.fps, self.rate)
        seen = self.arrivals.first_frame + len(self.arrivals.times)
        self.arrivals.times.extend([now] * (complete - seen))

    def end(self, now: float) -> None:
        """No more PCM: flushes both sides and pads the last frame of the room's side with silence."""
        if self.ended:
            return
        self.ended = True
        self._feed(self._to_features.flush())
        self.for_room.push(self._to_room.flush())
        missing = self.room_samples - self.handed - len(self.for_room)
        self.for_room.push(np.zeros(max(0, missing), np.int16))
        seen = self.arrivals.first_frame + len(self.arrivals.times)
        self.arrivals.times.extend([now] * (self.frames - seen))

    def add_cues(self, cues: Sequence[Cue]) -> None:
        """Phonemes known beforehand, in samples at the sender's rate."""
        scale = FEATURE_RATE / self.rate
        self.cues += [Cue(c.phoneme, int(c.start * scale), int(c.end * scale)) for c in cues]

    @property
    def frames(self) -> int:
        """Video frames begun so far; final once ended."""
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
        self.handed += len(block)
        return block

    @property
    def handed_all(self) -> bool:
        """The sink has everything."""
        return self.ended and not len(self.for_room)

    @property
    def end_position(self) -> int:
        """Playout position after its last handed sample. Only once it has begun."""
        assert self.origin is not None
        return self.origin + self.handed

    @property
    def duration_s(self) -> float:
        """Seconds of PCM received."""
        return self.received / self.rate

    def played_s(self, position: int) -> float:
        """Seconds of it heard when the playout position is `position`; never more than it has."""
        if self.origin is None:
            return 0.0
        return min(self.duration_s, max(0, min(position - self.origin, self.handed)) / ROOM_RATE)

    def frame_position(self, frame: int) -> int:
        """Playout position at which frame `frame` is due. Only once it has begun."""
        assert self.origin is not None
        return self.origin + frame_start(frame, self.fps, ROOM_RATE)

    def _feed(self, samples: Pcm) -> None:
        self._features_in += len(samples)
        self.for_features.push(samples)

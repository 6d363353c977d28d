"""The interface between audio and engines: a streaming extractor of one feature vector (or window) per video frame, and the gate
that runs it only while someone speaks.

After `HOLD_S` without speech the gate drops the extractor's stream, so that silence costs only the detector. When speech returns,
the gate opens a new stream a little earlier, in the audio it kept for this. The frame in which speech returns is still undecided at
that moment, because features wait for their look-ahead too; so no frame of speech is lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from musetalk_agent.features.phonemes import CueTrack
from musetalk_agent.media_types import FEATURE_RATE, Cue, Feature, Pcm, frame_start, frames_begun


class FeatureStream(Protocol):
    """Features of one segment, in frame order. The result does not depend on how the audio is cut into chunks.

    Not thread-safe: one thread at a time may push.
    """

    def push(self, samples: Pcm) -> list[Feature]:
        """Takes int16 mono 16 kHz samples `[n]`, any n; returns the features of the frames that became ready."""
        ...

    def cue(self, cues: Sequence[Cue]) -> None:
        """Adds phonemes known in advance; they must come before their audio. An extractor may ignore them."""
        ...

    def flush(self) -> list[Feature]:
        """Ends the segment: returns the features of the remaining frames, `media_types.frames_begun(samples, fps)` in all."""
        ...

    def reset(self) -> None:
        """Drops all state: the next push begins a new segment."""
        ...


class VoiceActivityDetector(Protocol):
    """Separates speech from silence and noise. Not thread-safe."""

    def push(self, samples: Pcm) -> list[bool]:
        """Takes int16 mono 16 kHz samples `[n]`, any n; returns one verdict for each 20 ms that are complete, in order."""
        ...


class FeatureExtractor(Protocol):
    """Creates streams and holds the weights that they share."""

    @property
    def lookahead_ms(self) -> int:
        """Milliseconds of audio past a frame's end that its feature reads."""
        ...

    @property
    def quick(self) -> bool:
        """Whether 40 ms of audio take its stream and its detector a millisecond of a core or less."""
        ...

    def detector(self) -> VoiceActivityDetector:
        """Returns a new detector for one segment."""
        ...

    def stream(self, fps: int) -> FeatureStream:
        """Returns a new stream for video at `fps` (15 … 60)."""
        ...

    def begin(self, fps: int) -> tuple[VoiceActivityDetector, FeatureStream]:
        """Returns a new detector and a new stream for one segment, which may share work.

        The caller pushes each 20 ms to the detector first and to the stream next, until it drops one of the two. After the stream's
        `flush` or `reset` the detector must not be used.
        """
        ...

    def share(self, detector: VoiceActivityDetector, stream: FeatureStream) -> None:
        """Lets the two share work from now on, as those of `begin` do, if they can.

        The stream began later than the detector, at a whole number of its steps of 20 ms, and has since been pushed the same audio.
        """
        ...


HOLD_S = 0.5
"""Silence after which the mouth rests; also how long a new segment counts as speech."""
WARM_S = 0.4
"""Audio before returning speech that a new stream reads first: `visemes` looks back this far to be sure of speech."""
_STEP = FEATURE_RATE // 50  # of the detector
_FEW = 2 * _STEP  # samples that the loop may hear itself: 40 ms, a block of most senders
_CUES_AHEAD = FEATURE_RATE // 10  # samples; lips move before a phoneme that is known in advance


class SpeechGate:
    """Features of one segment. Not thread-safe.

    Args:
        extractor: makes the stream and the detector.
        fps: frames per second of the video.
    """

    def __init__(self, extractor: FeatureExtractor, fps: int) -> None:
        self._extractor, self._fps = extractor, fps
        self._lookahead = extractor.lookahead_ms * FEATURE_RATE // 1000
        self._aligned = fps // math.gcd(FEATURE_RATE, fps)  # frames after which one begins at a whole sample again
        self._keep = round(WARM_S * FEATURE_RATE) + frame_start(self._aligned + 2, fps) + self._lookahead + _STEP
        self.reset()

    def reset(self) -> None:
        """Drops all state: the next push begins a new segment, which counts as speech at first."""
        self._detector: VoiceActivityDetector
        self._stream: FeatureStream | None
        self._detector, self._stream = self._extractor.begin(self._fps)
        self._begun_at = 0  # sample at which the stream began
        self._skip = 0  # frames of the stream that were decided before it began
        self._frame = 0  # the next one to be decided
        self._received = 0
        self._recent: Pcm = np.zeros(0, np.int16)  # the last samples, for the beginning of a stream
        self._speech_until = round(HOLD_S * FEATURE_RATE)
        self._cues: list[Cue] = []
        self._track = CueTrack()

    @property
    def resting(self) -> bool:
        """Whether the gate is closed (no speech)."""
        return self._stream is None

    def is_quick(self, samples: int) -> bool:
        """Whether a push of so many samples takes a millisecond of a core or less: a few of speech that is under way.

        A gate that is closed may have to read back `WARM_S`, and is not quick.
        """
        return self._extractor.quick and self._stream is not None and samples <= _FEW

    def cue(self, cues: Sequence[Cue]) -> None:
        """Adds phonemes known in advance, in samples from the segment's start. What they cover counts as speech."""
        self._cues += cues
        self._track.add(cues)
        if self._stream is not None:
            self._stream.cue(self._shifted(cues, self._begun_at))

    def push(self, samples: Pcm) -> list[Feature | None]:
        """Takes int16[n] at 16 kHz; returns one entry for each frame that is now decided: a feature, or None for rest."""
        decided: list[Feature | None] = []
        at = 0
        while at < len(samples):
            part = samples[at : at + _STEP - self._received % _STEP]
            at += len(part)
            decided += self._take(part)
        return decided

    def flush(self) -> list[Feature | None]:
        """Ends the segment: returns the remaining frames and resets."""
        decided: list[Feature | None]
        if self._stream is None:
            decided = [None] * (frames_begun(self._received, self._fps) - self._frame)
        else:
            decided = list(self._stream.flush()[self._skip :])
        self.reset()
        return decided

    def _take(self, part: Pcm) -> list[Feature | None]:
        begin, self._received = self._received, self._received + len(part)
        self._recent = np.concatenate([self._recent, part])[-self._keep :]
        if any(self._detector.push(part)) or self._cued(begin):
            self._speech_until = self._received + round(HOLD_S * FEATURE_RATE)
            if self._stream is None:
                return self._wake()
        if self._stream is None:
            return self._rest()
        made = self._made(self._stream.push(part))
        if self._received >= self._speech_until:
            self._stream = None
        return made

    def _made(self, features: list[Feature]) -> list[Feature | None]:
        """Drops the frames that were decided before the stream began."""
        skipped = min(self._skip, len(features))
        self._skip -= skipped
        made: list[Feature | None] = [*features[skipped:]]
        self._frame += len(made)
        return made

    def _rest(self) -> list[Feature | None]:
        rest: list[Feature | None] = []
        while self._received >= frame_start(self._frame + 1, self._fps) + self._lookahead:
            rest.append(None)
            self._frame += 1
        return rest

    def _wake(self) -> list[Feature | None]:
        """Opens a stream at a frame that begins at a whole sample, `WARM_S` before the next frame or as early as audio is kept."""
        oldest = self._received - len(self._recent)
        warm = max(0, self._frame - math.ceil(WARM_S * self._fps)) // self._aligned * self._aligned
        while frame_start(warm, self._fps) < oldest:
            warm += self._aligned
        self._begun_at, self._skip = frame_start(warm, self._fps), self._frame - warm
        self._stream = self._extractor.stream(self._fps)
        self._stream.cue(self._shifted(self._cues, self._begun_at))
        made = self._made(self._stream.push(self._recent[self._begun_at - oldest :]))
        if self._begun_at % _STEP == 0:
            self._extractor.share(self._detector, self._stream)
        return made

    def _cued(self, at: int) -> bool:
        """Whether a known phoneme is spoken at sample `at` or soon after it."""
        return any(self._track.covers(t) and not self._track.silent(t) for t in (at, at + _CUES_AHEAD))

    @staticmethod
    def _shifted(cues: Sequence[Cue], by: int) -> list[Cue]:
        return [replace(c, start=max(0, c.start - by), end=c.end - by) for c in cues if c.end > by]

"""Lips that come a fixed time before or after their sound: the features of one segment, read from shifted audio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from musetalk_agent.features.extractor import SpeechGate
from musetalk_agent.media_types import FEATURE_RATE, Cue, Feature, Pcm, frames_begun, frames_complete


class OffsetGate:
    """A `SpeechGate` whose audio is shifted; frames are decided in the same order and number. Not thread-safe.

    A positive offset puts silence before the audio; a negative one leaves its beginning out, and waits for as much more at the end.

    Args:
        gate: decides the frames.
        fps: frames per second of the video.
        offset_ms: how much later the lips move than the engine makes them, -200 … 200.
    """

    def __init__(self, gate: SpeechGate, fps: int, offset_ms: int = 0) -> None:
        self._gate, self._fps = gate, fps
        self._shift = offset_ms * FEATURE_RATE // 1000
        self._received = self._released = self._skip = 0
        self._begun = False
        self._decided: list[Feature | None] = []
        self._begin()

    def reset(self) -> None:
        """Drops all state: the next push begins a new segment."""
        self._gate.reset()
        self._begin()

    def is_quick(self, samples: int) -> bool:
        """Whether a push of so many samples takes a millisecond of a core or less; see `SpeechGate.is_quick`."""
        return self._gate.is_quick(samples + (0 if self._begun else max(0, self._shift)))

    def cue(self, cues: Sequence[Cue]) -> None:
        """Adds phonemes known in advance, in samples from the segment's start."""
        shifted = [
            replace(cue, start=max(0, cue.start + self._shift), end=cue.end + self._shift)
            for cue in cues
            if cue.end + self._shift > 0
        ]
        self._gate.cue(shifted)

    def push(self, samples: Pcm) -> list[Feature | None]:
        """Takes int16[n] at 16 kHz; returns one entry for each frame that is now decided: a feature, or None for rest.

        No frame comes before its audio is whole, however late its lips are.
        """
        self._received += len(samples)
        if self._shift > 0 and not self._begun:
            samples = np.concatenate([np.zeros(self._shift, np.int16), samples])
        elif self._skip:
            skipped = min(self._skip, len(samples))
            self._skip -= skipped
            samples = samples[skipped:]
        self._begun = True
        self._decided += self._gate.push(samples)
        return self._release(frames_complete(self._received, self._fps))

    def flush(self) -> list[Feature | None]:
        """Ends the segment: returns the remaining frames and resets."""
        left_out = max(0, -self._shift) - self._skip
        if left_out:
            self._decided += self._gate.push(np.zeros(left_out, np.int16))
        self._decided += self._gate.flush()
        rest = self._release(frames_begun(self._received, self._fps))
        self._begin()
        return rest

    def _begin(self) -> None:
        self._received = self._released = 0
        self._begun = False
        self._skip = max(0, -self._shift)  # samples that are still to be left out
        self._decided = []

    def _release(self, up_to: int) -> list[Feature | None]:
        count = max(0, up_to - self._released)
        released, self._decided = self._decided[:count], self._decided[count:]
        self._released += len(released)
        return released

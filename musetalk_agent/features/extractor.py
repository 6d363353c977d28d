"""The interface between audio and engines: a streaming extractor of one feature vector (or window) per video frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from musetalk_agent.media_types import Cue, Feature, Pcm


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
        """Ends the segment: returns the features of the remaining frames, `media.frames_begun(samples, fps)` in all."""
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

    def detector(self) -> VoiceActivityDetector:
        """Returns a new detector for one segment."""
        ...

    def stream(self, fps: int) -> FeatureStream:
        """Returns a new stream for video at `fps` (15 … 50)."""
        ...

    def begin(self, fps: int) -> tuple[VoiceActivityDetector, FeatureStream]:
        """Returns a new detector and a new stream for one segment, which may share work.

        The caller pushes each 20 ms to the detector first and to the stream next, until it drops one of the two. After the stream's
        `flush` or `reset` the detector must not be used.
        """
        ...

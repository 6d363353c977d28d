"""The port between sound and engines: a streaming extractor of one feature vector (or window) per video frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from musetalk_agent.media import Cue, Feature, Pcm


class FeatureStream(Protocol):
    """Features of one segment, in frame order, whatever the chunking of its samples.

    Not thread-safe: one thread at a time pushes.
    """

    def push(self, samples: Pcm) -> list[Feature]:
        """Takes int16 mono 16 kHz samples `[n]`, any n; returns the features of the frames that became ready."""
        ...

    def cue(self, cues: Sequence[Cue]) -> None:
        """Takes phonemes known beforehand; they must come before their audio. Extractors without use for them ignore them."""
        ...

    def flush(self) -> list[Feature]:
        """The segment is over: returns the features of the remaining frames, `media.frames_begun(samples, fps)` in all."""
        ...

    def reset(self) -> None:
        """Forgets everything: the next push begins a new segment."""
        ...


class Detector(Protocol):
    """Tells what is to be shown as speech from silence and noise. Not thread-safe."""

    def push(self, samples: Pcm) -> list[bool]:
        """Takes int16 mono 16 kHz samples `[n]`, any n; returns one verdict for each 20 ms that are complete, in order."""
        ...


class FeatureExtractor(Protocol):
    """Makes streams; holds the weights that they share."""

    @property
    def lookahead_ms(self) -> int:
        """Milliseconds of audio past a frame's end that its feature reads."""
        ...

    def detector(self) -> Detector:
        """A new detector of the sound that moves the mouth, for one segment."""
        ...

    def stream(self, fps: int) -> FeatureStream:
        """A new stream for video at `fps` (15 … 50)."""
        ...

    def begin(self, fps: int) -> tuple[Detector, FeatureStream]:
        """A new detector and a new stream for one segment, which may share work.

        Of every 20 ms the detector gets the sound first and the stream then, until one of the two is dropped; after the stream's
        `flush` or `reset` the detector is of no use.
        """
        ...

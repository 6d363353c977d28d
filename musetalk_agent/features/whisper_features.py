"""Whisper's log-mel windows for the `musetalk` engine, one per video frame, while the audio arrives: numpy only.

The encoder itself runs in the engine's batch on the GPU (`engines/musetalk/network.py`). The feature is its input,
float32 `[MEL_COLUMNS, 80]`, for the segment's positions a, a+1 … (20 ms each):

    rows 0 … 2·POSITIONS+2: columns 2a-2 … 2·(a+POSITIONS), scaled as whisper expects them
    last row: a's place on whisper's 30 s, and three indices of positions: the first that exists (-1 when more did before),
        the first after what was heard (and the silence behind it), the first after the segment's end

The frame's own ten positions are at `TARGET` in every feature. How it was chosen: docs/explanation/audio-features.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.features.extractor import FeatureStream, VoiceActivityDetector
from musetalk_agent.features.speech_detector import SpeechDetector
from musetalk_agent.media_types import FEATURE_RATE, Cue, Feature, Pcm, frame_start, frames_begun

HOP = 160
"""Samples between columns: column j is centred on sample 160·j."""
WINDOW = 400
REACH = WINDOW // 2
"""Column j reads samples [160·j − 200, 160·j + 200)."""
BANDS = 80
SILENCE = -10.0
"""Value of a column of zeros: log10 of the floor 1e-10."""
RANGE = 8.0
"""Values further below the loudest one (in log10 of power, so 80 dB) are clamped."""


def _filters() -> NDArray[np.float64]:
    """Slaney's mel bank, 0 … 8000 Hz, area normalised: float64[201, 80]."""
    linear, step = 200 / 3, np.log(6.4) / 27  # Hz per mel below 1 kHz; log steps above

    def to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(mel < 15, mel * linear, 1000 * np.exp((mel - 15) * step))

    highest = 15 + np.log(FEATURE_RATE / 2 / 1000) / step
    edges = to_hz(np.linspace(0, highest, BANDS + 2))
    bins = np.linspace(0, FEATURE_RATE / 2, WINDOW // 2 + 1)[:, None]
    low, mid, high = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.maximum(0, np.minimum((bins - low) / (mid - low), (high - bins) / (high - mid)))
    return np.ascontiguousarray(triangles * 2 / (high - low))


_FILTERS = _filters()
_HANN = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)


def columns(windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Computes columns: samples of each, float32[n, 400] in -1 … 1 → log10 of power, float32[n, 80], not below `SILENCE`.

    The last bit may depend on n (matrix products do); call it with one n where that matters.
    """
    spectrum = np.fft.rfft(windows * _HANN, axis=1)
    power = (spectrum.real**2 + spectrum.imag**2) @ _FILTERS
    return np.log10(np.maximum(power, 1e-10)).astype(np.float32)


def scaled(logs: NDArray[np.float32], loudest: np.float32) -> NDArray[np.float32]:
    """The encoder's input: clamped to `RANGE` below `loudest`, then (x + 4) / 4."""
    return (np.maximum(logs, loudest - np.float32(RANGE)) + np.float32(4)) / np.float32(4)


STEP = 2 * HOP
"""Samples per position of the encoder (20 ms); position p begins at sample 320·p."""
PLACES = 1500
"""Positions that whisper was trained on: 30 s."""
BEFORE, AFTER = 4, 6
"""A frame sees the positions r-4 … r+5 around r, the one in which it begins."""
CONTEXT = 187
"""Positions before a frame's ten: 3.74 s."""
TAIL = 3
"""Silent positions after the last audio: they mark its end for whisper, and bring the result nearest to the offline one."""
_BEHIND = 8 + TAIL  # positions after the ten: 8 for the longest look-ahead at the lowest fps
POSITIONS = CONTEXT + BEFORE + AFTER + _BEHIND
TARGET = slice(CONTEXT, CONTEXT + BEFORE + AFTER)
MEL_COLUMNS = 2 * POSITIONS + 3 + 1
PLACE, BEGIN, HEARD, END = range(4)
"""Columns of the last row."""
LOOKAHEAD_MS = 80
"""The least look-ahead with which the audio of all ten positions of a frame has arrived."""
_MOST_MS = 200


def rest() -> Feature:
    """Returns the feature of silence, for a closed mouth: float32 [MEL_COLUMNS, 80]."""
    out = np.full((MEL_COLUMNS, BANDS), _scaled_silence(np.float32(SILENCE)), np.float32)
    out[-1] = 0
    out[-1, BEGIN], out[-1, HEARD], out[-1, END] = -1, TARGET.stop + TAIL, POSITIONS
    return out


def _scaled_silence(loudest: np.float32) -> np.float32:
    return np.float32(scaled(np.full(1, SILENCE, np.float32), loudest)[0])


class WhisperFeatures:
    """Creates streams of whisper windows. Immutable.

    Args:
        lookahead_ms: milliseconds of audio after a frame's end that its feature waits for and reads, 0 … 200.

    Raises `ValueError` outside.
    """

    quick: bool = False
    """Its detector runs the network on its own, and its windows are spectra beside that."""

    def __init__(self, lookahead_ms: int = LOOKAHEAD_MS) -> None:
        if not 0 <= lookahead_ms <= _MOST_MS:
            raise ValueError(f"lookahead_ms {lookahead_ms} is not within 0 … {_MOST_MS}")
        self._lookahead_ms = lookahead_ms

    @property
    def lookahead_ms(self) -> int:
        """Milliseconds of audio after a frame's end that its feature reads."""
        return self._lookahead_ms

    def detector(self) -> SpeechDetector:
        """Returns a new speech detector. Raises `WeightsMissing` without the shipped network."""
        return SpeechDetector.shipped()

    def stream(self, fps: int) -> WhisperStream:
        """Returns a new stream for video at `fps` frames per second (15 … 60). Raises `ValueError` outside."""
        if not 15 <= fps <= 60:
            raise ValueError(f"fps {fps} is not within 15 … 60")
        return WhisperStream(fps, self._lookahead_ms)

    def begin(self, fps: int) -> tuple[SpeechDetector, WhisperStream]:
        """Returns a detector and a stream of one segment. Raises as they do."""
        return self.detector(), self.stream(fps)

    def share(self, detector: VoiceActivityDetector, stream: FeatureStream) -> None:
        """Does nothing: they have no work in common."""


class WhisperStream:
    """Windows of one segment; chunking does not change them, bit for bit. Not thread-safe."""

    def __init__(self, fps: int, lookahead_ms: int) -> None:
        self._fps = fps
        self._lookahead = lookahead_ms * FEATURE_RATE // 1000
        self.reset()

    def reset(self) -> None:
        """Drops all state: the next push begins a new segment."""
        self._samples = np.zeros(0, np.float32)  # from sample `_from` on, in -1 … 1
        self._from = 0
        self._received = 0
        self._frame = 0
        self._logs = np.zeros((0, BANDS), np.float32)  # the last complete columns, up to column `_whole`
        self._whole = 0
        self._loudest = np.float32(SILENCE)

    def cue(self, cues: Sequence[Cue]) -> None:
        """Ignores phonemes: whisper reads audio only."""

    def push(self, samples: Pcm) -> list[Feature]:
        """Takes int16[n] at 16 kHz; returns the windows of the frames whose end plus the look-ahead has now arrived."""
        self._received += len(samples)
        self._samples = np.concatenate([self._samples, samples.astype(np.float32) / np.float32(32768)])
        out = []
        while self._received >= (cut := self._cut(self._frame)):
            out.append(self._window(cut, None))
            self._frame += 1
        return out

    def flush(self) -> list[Feature]:
        """Ends the segment: returns the remaining frames, with nothing after the last whole position, and resets."""
        end, total = self._received, frames_begun(self._received, self._fps)
        lacking = self._cut(total - 1) - end if total else 0
        self._samples = np.concatenate([self._samples, np.zeros(max(0, lacking), np.float32)])
        out = []
        while self._frame < total:
            out.append(self._window(self._cut(self._frame), end // STEP))
            self._frame += 1
        self.reset()
        return out

    def _cut(self, frame: int) -> int:
        """Returns the sample at which the audio of a frame's feature ends."""
        return frame_start(frame + 1, self._fps) + self._lookahead

    def _window(self, cut: int, end: int | None) -> Feature:
        """Returns the next frame's feature from the samples before `cut`; `end` is the segment's number of positions when known."""
        row = 50 * self._frame // self._fps
        first = row - BEFORE - CONTEXT
        logs, loudest = self._columns(cut)
        out = np.full((MEL_COLUMNS, BANDS), _scaled_silence(loudest), np.float32)
        oldest, begin = self._whole - len(self._logs), 2 * first - 2  # numbers of the columns logs[0] and out[0]
        taken = logs[max(0, begin - oldest) :]
        at = max(0, oldest - begin)
        out[at : at + len(taken)] = scaled(taken, loudest)
        heard = max(row + AFTER, cut // STEP) + TAIL
        out[-1] = 0
        out[-1, PLACE], out[-1, BEGIN] = first % PLACES, max(-1, -first)
        out[-1, HEARD], out[-1, END] = heard - first, POSITIONS if end is None else end - first
        return out

    def _columns(self, cut: int) -> tuple[NDArray[np.float32], np.float32]:
        """Returns all kept columns from the audio before `cut`, partial ones included, and the loudest value so far."""
        whole = (cut - REACH) // HOP + 1  # columns that end at or before the cut
        fresh = [self._column(j, cut) for j in range(self._whole, whole)]
        self._loudest = max([self._loudest, *(column.max() for column in fresh)])
        self._logs = np.concatenate([self._logs, *(c[None] for c in fresh)])[-MEL_COLUMNS:]
        self._whole = max(self._whole, whole)
        self._drop_used()
        parted = [self._column(j, cut) for j in range(self._whole, -(-(cut + REACH) // HOP))]
        loudest = max([self._loudest, *(column.max() for column in parted)])
        return np.concatenate([self._logs, *(c[None] for c in parted)]), loudest

    def _column(self, j: int, cut: int) -> NDArray[np.float32]:
        """Returns column j with silence from `cut` on; before the segment it mirrors the audio, as upstream does."""
        index = np.abs(np.arange(j * HOP - REACH, j * HOP + REACH))
        heard = index < cut
        window = np.zeros(WINDOW, np.float32)
        window[heard] = self._samples[index[heard] - self._from]
        column: NDArray[np.float32] = columns(window[None])[0]
        return column

    def _drop_used(self) -> None:
        needed = max(0, self._whole * HOP - REACH)
        self._samples = self._samples[needed - self._from :]
        self._from = needed

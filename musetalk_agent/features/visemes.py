"""Visemes for the `warp` engine: one articulation vector per video frame, on the CPU, while the audio arrives.

An articulation vector is float32[5] (see `phonemes.ARTICULATION`): `jaw` 0..1 (inner lips apart by 0.12 outer eye distances at
1), `width` -1..1, `rounding` 0..1, `closure` 0..1 (lips pressed together, /p b m/), `tuck` 0..1 (lower lip under the teeth,
/f v/). At rest and in silence all are 0. Phonemes known in advance decide where there are any; elsewhere the mouth network does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.features.extractor import FeatureStream, VoiceActivityDetector
from musetalk_agent.features.mouth_network import (
    LOOKAHEAD_MS,
    STEP,
    LipsRun,
    MouthNetwork,
    SharedNetworkRun,
    default_weights,
)
from musetalk_agent.features.mouth_network import PAST as _PAST
from musetalk_agent.features.phonemes import HOLD, ROUNDING, SILENCE, TABLE, WIDTH, CueTrack
from musetalk_agent.features.speech_detector import SpeechDetector
from musetalk_agent.media_types import FEATURE_RATE, Cue, Feature, Pcm, frame_start, frames_begun

_WAIT = 60 * FEATURE_RATE // 1000
_TALKERS_HALF = FEATURE_RATE // 50
"""Half a frame of the training videos (25 fps). The network was trained on the frame that begins at a moment; a frame of another
rate shows the moment whose frame has the same middle."""
_BEHIND = LOOKAHEAD_MS * FEATURE_RATE // 1000 // STEP - 1  # step n describes sample STEP·(n − _BEHIND)

# Decision curves on the network's outputs, chosen on held-out synthetic speech and noises (see models/mouth/README.md).
_SPEECH_OFF, _SPEECH_ON = 0.05, 0.30
_SURE_OFF, _SURE_ON = 0.50, 0.80
_SURE_STEPS = 20  # 400 ms
_GATE_OFF, _GATE_ON = 0.10, 0.40
_VOICE_OFF, _VOICE_ON = 0.10, 0.40
_CLOSURE_OFF, _CLOSURE_ON = 0.50, 0.80
_CONTRAST, _SIZE = 1.1, 1.04
"""A network trained for a small error opens the mouth less far and closes it less than real mouths do. `_SIZE` keeps the 95th
percentile."""
_TUCK_OFF, _TUCK_ON = 0.35, 0.65
_STEADY_DB, _MOVING_DB = 0.2, 0.5
"""Standard deviation of the level within 200 ms. Machines: mains hum and tones under 0.25 dB, white noise 0.3.
Speech, eight recordings of it, clean and noisy, steps within 25 dB of the loudest: seven always above 0.35 dB, the noisiest in
98 % of them."""
_SHAPE_KEEP = 0.35  # smoothing of width and rounding, which come from a table on phoneme posteriors and would jump
_HELD = np.where(np.arange(len(HOLD)) == SILENCE, np.float32(1), HOLD)
_SHAPES = np.column_stack([TABLE[:, WIDTH] * _HELD, TABLE[:, ROUNDING] * _HELD, _HELD]).astype(np.float32)
"""Of each phoneme, by how long it is held: width, rounding, 1."""
_QUIET_DBFS = -62.0  # a step below this is silence, whatever the network says


class VisemeFeatures:
    """Creates streams that share one network. Immutable and thread-safe."""

    lookahead_ms: int = 60
    """Milliseconds of audio after a frame's end that its vector may read."""
    quick: bool = True
    """Two steps of the network and of its mouth take 0.4 to 0.9 ms."""

    def __init__(self, network: MouthNetwork) -> None:
        self._network = network

    @classmethod
    def load(cls, path: Path | None = None) -> VisemeFeatures:
        """Reads the weights (a few ms), by default the shipped ones. Raises `WeightsMissing`."""
        return cls(MouthNetwork.load(path or default_weights()))

    def detector(self) -> SpeechDetector:
        """Returns a new speech detector on the same network."""
        return SpeechDetector(self._network)

    def stream(self, fps: int) -> VisemeStream:
        """Returns a new stream for video at `fps` frames per second (15 … 60). Raises `ValueError` outside."""
        if not 15 <= fps <= 60:
            raise ValueError(f"fps {fps} is not within 15 … 60")
        return VisemeStream(self._network, fps)

    def begin(self, fps: int) -> tuple[SpeechDetector, VisemeStream]:
        """Returns a detector and a stream of one segment, which share a run of the network. Raises as `stream` does."""
        stream = self.stream(fps)
        return SpeechDetector(self._network, stream.shared_run), stream

    def share(self, detector: VoiceActivityDetector, stream: FeatureStream) -> None:
        """Has the detector read the stream's run of the network. Does nothing with those of another extractor."""
        if isinstance(detector, SpeechDetector) and isinstance(stream, VisemeStream):
            detector.share(stream.shared_run)


class VisemeStream:
    """Articulation vectors of one segment; chunking does not change them. Not thread-safe."""

    def __init__(self, network: MouthNetwork, fps: int) -> None:
        self._network = network
        self._fps = fps
        self.reset()

    def reset(self) -> None:
        """Drops audio and cues: the next push begins a new segment."""
        self._pending = np.zeros(_PAST, np.float32)  # the last samples in -1..1; the first `_PAST` are already used
        self._received = 0
        self._frame = 0
        self.shared_run = SharedNetworkRun(self._network)
        """The run of the network, for a detector of the same audio; `reset` replaces it."""
        self._mouth = _MouthHistory(self.shared_run, self._network.lips())
        self._cues = CueTrack()

    def cue(self, cues: Sequence[Cue]) -> None:
        """Adds phonemes known in advance, in samples from the segment's start; they must come before their audio."""
        self._cues.add(cues)

    def push(self, samples: Pcm) -> list[Feature]:
        """Takes int16[n] at 16 kHz; returns float32[5] for each next frame whose end + 60 ms has now arrived."""
        self._received += len(samples)
        self._process(samples.astype(np.float32) / np.float32(32768))
        out = []
        while self._received >= frame_start(self._frame + 1, self._fps) + _WAIT:
            out.append(self._vector(self._frame))
            self._frame += 1
        self._mouth.forget(int(self._moment(self._frame)) + _BEHIND - 1)
        return out

    def flush(self) -> list[Feature]:
        """Ends the segment: returns the remaining frames as if silence followed, then resets."""
        total = frames_begun(self._received, self._fps)
        lacking = frame_start(total, self._fps) + _WAIT - self._received
        out = self.push(np.zeros(lacking, np.int16)) if total > self._frame else []
        self.reset()
        return out

    def _process(self, samples: NDArray[np.float32]) -> None:
        samples = np.concatenate([self._pending, samples])
        at = 0
        while at + _PAST + STEP <= len(samples):
            self._mouth.push(samples[at : at + _PAST + STEP])
            at += STEP
        self._pending = samples[at:].copy()

    def _moment(self, frame: int) -> float:
        """Returns the moment that a frame shows, in steps of the network."""
        start, end = frame_start(frame, self._fps), frame_start(frame + 1, self._fps)
        return ((start + end) / 2 - _TALKERS_HALF) / STEP

    def _vector(self, frame: int) -> Feature:
        start, end = frame_start(frame, self._fps), frame_start(frame + 1, self._fps)
        if self._cues.covers((start + end) // 2):
            return self._cues.articulation(start, end)
        heard = self._mouth.at(self._moment(frame), (end + _WAIT) // STEP - 1)
        return self._cues.pressed(heard, start, end)


class _MouthHistory:
    """The network's recent steps as articulation vectors, kept while a frame may still need them."""

    def __init__(self, run: SharedNetworkRun, lips: LipsRun) -> None:
        self._run, self._lips = run, lips
        self._step_number = 0
        self._steps: list[NDArray[np.float32]] = []  # [2, 5]: the step's own moment, and the one after it
        self._first = 0  # number of the first kept step
        self._shape = 0.0, 0.0  # width and rounding
        self._likely: list[float] = []
        self._powers: list[float] = []  # from the moment that the newest step describes until now

    def push(self, window: NDArray[np.float32]) -> None:
        """Takes the window of one step, float32[560]: 240 past samples and 320 new ones."""
        audio = self._run.step(self._step_number, window)
        self._step_number += 1
        mouth = audio.step
        self._powers = [*self._powers[-_BEHIND - 1 :], audio.power]
        quiet = max(self._powers) < 10 ** (_QUIET_DBFS / 10)
        moving = _ramp(audio.level_deviation_db, _STEADY_DB, _MOVING_DB)
        self._likely = [*self._likely[1 - _SURE_STEPS :], mouth.speech]
        sure = _ramp(max(self._likely), _SURE_OFF, _SURE_ON)
        speech = 0.0 if quiet else sure * moving * _ramp(mouth.speech, _SPEECH_OFF, _SPEECH_ON)
        lips = self._lips.step(audio.state)
        gate = (
            0.0 if quiet else moving * _ramp(lips.gate, _GATE_OFF, _GATE_ON) * _ramp(lips.voice, _VOICE_OFF, _VOICE_ON)
        )
        width, rounding, whole = (mouth.phonemes @ _SHAPES).tolist()
        share = speech * (1 - _SHAPE_KEEP) / whole
        width, rounding = self._shape = (
            self._shape[0] * _SHAPE_KEEP + width * share,
            self._shape[1] * _SHAPE_KEEP + rounding * share,
        )
        tuck = _ramp(mouth.tuck, _TUCK_OFF, _TUCK_ON) * speech
        rows = [  # in the order of `phonemes.ARTICULATION`
            (
                min(1.0, _SIZE * opening**_CONTRAST) * gate,
                width,
                rounding,
                _ramp(closure, _CLOSURE_OFF, _CLOSURE_ON) * gate,
                tuck,
            )
            for opening, closure in zip(lips.opening, lips.closure, strict=True)
        ]
        self._steps.append(np.array(rows, np.float32))

    def at(self, moment: float, newest: int) -> Feature:
        """Returns the mouth at a moment from steps up to `newest`; a later moment than that step describes is clamped to it."""
        moment = min(max(moment, 0.0), newest - _BEHIND + 1.0)
        low = int(moment)
        part = np.float32(moment - low)
        return self._estimate(low, newest) * (1 - part) + self._estimate(low + 1, newest) * part

    def _estimate(self, moment: int, newest: int) -> NDArray[np.float32]:
        """Returns the mean of the two steps that describe a moment, which errs less than either, or the one step there is."""
        own = max(moment + _BEHIND - self._first, 0)
        found: NDArray[np.float32]
        if moment + _BEHIND > newest:
            found = self._steps[newest - self._first][1]
        elif own == 0:
            found = self._steps[0][0]
        else:
            found = (self._steps[own][0] + self._steps[own - 1][1]) / np.float32(2)
        return found

    def forget(self, step: int) -> None:
        """Drops the steps before `step`, but never the last one."""
        drop = max(0, min(step - self._first, len(self._steps) - 1))
        del self._steps[:drop]
        self._first += drop


def _ramp(value: float, off: float, on: float) -> float:
    return min(1.0, max(0.0, (value - off) / (on - off)))

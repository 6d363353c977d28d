"""`musetalk-agent measure-sync VIDEO`: how much later the lips of a video move than its voice says, in milliseconds.

The opening of the mouth is measured in the frames and predicted from the audio; both are compared at every lag. Loudness
would not do: it leads and trails the lips by tens of milliseconds, depending on the sounds. Where SyncNet's weights are, its
figures are reported, too.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from musetalk_agent.agent_settings import offline_settings
from musetalk_agent.avatars.face import FaceNet
from musetalk_agent.errors import AgentError
from musetalk_agent.features.visemes import VisemeFeatures
from musetalk_agent.measure import lip_measures
from musetalk_agent.measure.lip_measures import MouthTrack, VideoUnreadable, find_faces, mouth_heard, mouth_seen
from musetalk_agent.media_types import FEATURE_RATE
from musetalk_agent.tools.audio_file import AudioFile, AudioUnreadable, mono
from musetalk_agent.weights import Manifest, ModelStore

LEAST_CONFIDENCE = 0.6
"""Of talkers that the network never saw, every answer above it was right within a frame; one stranger in a hundred passes it
(docs/reference/tools.md)."""
_LEAST_SPEECH_S = 1.0
"""With less, 2 of 840 pieces of 3 s had a lag wrong by 220 ms at a confidence of 0.93 and 0.99 (docs/reference/tools.md)."""
_OPEN = 0.012  # outer eye distances: a tenth of a full opening


@dataclass(frozen=True)
class SyncReport:
    """Result of a measurement.

    `problem` is None, or one sentence that says why the lag cannot be measured. `syncnet` is None without its weights, or where the
    video is too short for it."""

    lag: Lag | None
    problem: str | None
    syncnet: lip_measures.LipSync | None = None

    def as_json(self) -> str:
        """`lag_ms` (null with a problem; positive when the lips are late), `correlation`, `confidence`; `lse_c`, `lse_d` and
        `syncnet_offset_ms` (positive when the lips are late) if SyncNet judged; `problem` if any."""
        lag = self.lag
        fields: dict[str, float | str | None] = {
            "lag_ms": round(1000 * lag.lag_s, 1) if lag and not self.problem else None,
            "correlation": round(lag.correlation, 3) if lag else None,
            "confidence": round(lag.confidence, 3) if lag else None,
        }
        if self.syncnet is not None:
            fields["lse_c"] = round(self.syncnet.confidence, 3)
            fields["lse_d"] = round(self.syncnet.distance, 3)
            fields["syncnet_offset_ms"] = self.syncnet.offset_ms
        return json.dumps(fields if self.problem is None else {**fields, "problem": self.problem})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", type=Path, metavar="VIDEO", help="a film of one talking face")
    parser.add_argument("--audio", type=Path, default=None, metavar="SOUND", help="its sound (default: the film's own)")
    parser.add_argument("--json", action="store_true", help="print JSON, also when the lag cannot be measured")


def run(args: argparse.Namespace) -> int:
    """Runs the command: 0 measured, 1 when the video cannot be read or the lag cannot be measured (a sentence says why)."""
    try:
        store = ModelStore(offline_settings().models_dir, Manifest.load())
        with tqdm(unit=" frames", desc="measure-sync", file=sys.stderr, leave=False) as bar:
            verdict = measure(args.video, args.audio, store, VisemeFeatures.load(), bar.update)
    except (VideoUnreadable, AudioUnreadable) as error:
        print(f"measure-sync: {error}", file=sys.stderr)
        return 1
    except AgentError as error:
        print(f"{error.code.value}: {error.detail}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if args.json:
        print(verdict.as_json())
    if verdict.problem is not None:
        print(f"measure-sync: {verdict.problem}", file=sys.stderr)
        return 1
    if not args.json and verdict.lag is not None:
        print(_sentence(verdict.lag))
        if verdict.syncnet is not None:
            print(_syncnet_sentence(verdict.syncnet))
    return 0


def measure(
    video: Path, audio: Path | None, store: ModelStore, features: VisemeFeatures, progress: Callable[[int], object]
) -> SyncReport:
    """Measures one video against its own audio, or against `audio`, which then begins with its first frame.

    `progress` is called with 1 for every frame read; with SyncNet's weights every frame is read twice.

    Raises:
        VideoUnreadable, AudioUnreadable: a file cannot be used.
        WeightsMissing: the face networks are not there.
        WeightsInvalid: SyncNet's weights are there, but are something else.
    """
    sound = AudioFile.open(audio or video)
    faces = find_faces(video, FaceNet(store), lambda _: progress(1))
    start = sound.start_s if audio is None else float(faces.times[0])
    voice = mono(sound, FEATURE_RATE)
    seen, heard = mouth_seen(faces), mouth_heard(features, voice, start)
    lag = estimate_lag(seen, heard)
    path = lip_measures.syncnet_weights(store)
    syncnet = lip_measures.judge_sync(path, video, faces, voice, start, lambda _: progress(1)) if path else None
    return SyncReport(lag, _problem(seen, heard, lag), syncnet)


def _problem(seen: MouthTrack, heard: MouthTrack, lag: Lag | None) -> str | None:
    missing = int(np.isnan(seen.aperture).sum())
    if 2 * missing > len(seen.times):
        return f"{missing} of {len(seen.times)} frames show no face; the lag cannot be measured."
    speech = float((heard.aperture > _OPEN).mean()) * float(heard.times[-1] - heard.times[0])
    if speech < _LEAST_SPEECH_S:
        return (
            f"only {speech:.1f} s of open-mouthed speech are heard; {_LEAST_SPEECH_S:g} s are needed, ten are better."
        )
    if lag is None:
        return f"pictures of a face and sound overlap for less than {LEAST_S:g} s; ten are better."
    if lag.confidence < LEAST_CONFIDENCE:
        return (
            f"the lips do not follow this sound at any lag within half a second (correlation {lag.correlation:.2f}, "
            f"confidence {lag.confidence:.2f}, {LEAST_CONFIDENCE:g} needed): another voice, a turned face, or too short."
        )
    return None


def _sentence(lag: Lag) -> str:
    late = round(1000 * lag.lag_s)
    text = "the lips are in step" if late == 0 else f"the lips are {abs(late)} ms {'late' if late > 0 else 'early'}"
    return f"{text} (correlation {lag.correlation:.2f}, confidence {lag.confidence:.2f})"


def _syncnet_sentence(found: lip_measures.LipSync) -> str:
    return f"SyncNet: LSE-C {found.confidence:.2f}, LSE-D {found.distance:.2f}, offset {found.offset_ms} ms"


Series = NDArray[np.float64]

REACH_S = 0.5
"""Lags that are compared, to both sides."""
LEAST_S = 2.0
"""Frames with a face, beside audio, that are needed, in seconds."""
_STEP_S = 0.005
_DRIFT_S = 1.0
"""What changes more slowly than this is the pose, the talker's habit or the tracker's mood, and no syllable."""
_EMPHASIS = 0.5
_EMPHASIS_S = 0.04
"""This share of the value a moment before is taken off each: movements count for more than positions, and the peak is narrower.
The moment is a whole number of frames."""
_MEMORY_S = 0.4
"""How far apart moments may be and still be alike, for the count of independent ones."""
_TRUST = 0.6
"""Share of the independent moments that count as evidence. With all, 12 % of strangers were believed (docs/reference/tools.md)."""
_MOST = 0.9
"""Correlations above it count alike: no real mouth follows a prediction more closely (docs/reference/tools.md)."""
_FRAME_S = 0.04
_NO_CORRELATION = 1e-12


@dataclass(frozen=True)
class Lag:
    """The best lag.

    Args:
        lag_s: positive when the lips are late, within ±`REACH_S`.
        correlation: Pearson's, of the openings seen and heard at that lag, slow changes taken off both and movements emphasised.
        confidence: the probability that the true lag lies within a frame of 25 fps of this one, 0 … 1: against every other lag
            within `REACH_S`, and against lips that say something else. A lag at the edge of the reach has 0: the true one may
            lie beyond.
    """

    lag_s: float
    correlation: float
    confidence: float


@dataclass(frozen=True)
class LagCurve:
    """How well lips and audio agree at every lag.

    Args:
        lags: float64 `[n]`, seconds, evenly spaced from -`REACH_S` to `REACH_S`; positive when the lips are late.
        agreement: float64 `[n]`, Pearson's correlation at each, slow changes taken off both and movements emphasised.
        moments: float64 `[n]`, how many independent pairs of moments each correlation is made of.
    """

    lags: Series
    agreement: Series
    moments: Series

    @property
    def evidence(self) -> Series:
        """float64 `[n]`, natural logarithm of how many times likelier a lag is than lips that say something else."""
        agreed = np.clip(self.agreement, 0, _MOST)
        return np.asarray(-_TRUST * self.moments / 2 * np.log1p(-(agreed**2)), np.float64)


def lag_curve(seen: MouthTrack, heard: MouthTrack, least_s: float = LEAST_S) -> LagCurve | None:
    """Compares the two at every lag; None where less than `least_s` can be compared.

    `heard` must be evenly spaced. Frames without a face (NaN) are left out.
    """
    known = np.isfinite(seen.aperture)
    if len(heard.times) < 2 or known.sum() < 2:
        return None
    period = float(np.median(np.diff(seen.times)))
    times = seen.times[known]
    if ((times >= heard.times[0]) & (times <= heard.times[-1])).sum() * period < least_s:
        return None
    filled = MouthTrack(seen.times, np.interp(seen.times, times, seen.aperture[known]))
    before_s = max(1, round(_EMPHASIS_S / period)) * period
    pictures = _movements(filled, period, before_s)
    sound = _movements(heard, float(heard.times[1] - heard.times[0]), before_s)
    steps = round(REACH_S / _STEP_S)
    lags = np.arange(-steps, steps + 1, dtype=np.float64) * _STEP_S
    found = [_agreement(times - lag, pictures[known], heard.times, sound) for lag in lags]
    agreement, shared = np.array([r for r, _ in found]), np.array([float(count) for _, count in found])
    alike = _alike(pictures, np.interp(seen.times, heard.times, sound), round(_MEMORY_S / period))
    return LagCurve(lags, agreement, shared / alike)


def best_lag(curve: LagCurve) -> Lag:
    """The top of the curve."""
    lags, agreement = curve.lags, curve.agreement
    best = int(agreement.argmax())
    peak = float(agreement[best])
    if best in (0, len(lags) - 1):
        return Lag(float(lags[best]), peak, 0.0)
    before, after = agreement[best - 1], agreement[best + 1]
    bend = 2 * peak - before - after
    offset = (after - before) / (2 * bend) if bend > 0 else 0.0  # top of the parabola through three points
    return Lag(float(lags[best] + offset * _STEP_S), peak, _confidence(curve, best))


def estimate_lag(seen: MouthTrack, heard: MouthTrack) -> Lag | None:
    """The lag at which the two agree best; None, and what `heard` must be, as in `lag_curve`."""
    curve = lag_curve(seen, heard)
    return None if curve is None else best_lag(curve)


def _confidence(curve: LagCurve, best: int) -> float:
    """The share of lags within a frame of the best one in all that may be true.

    `curve.moments` independent pairs with the correlation r are (1 − r²)^(−moments / 2) times as likely if they belong together, by
    a normal model, as if they do not. Each lag has the same chance beforehand, and that none is true has as much as all together.
    """
    weight, lags = curve.evidence, curve.lags
    top = float(weight.max())
    likely = np.exp(weight - top)
    near = np.abs(lags - lags[best]) < _FRAME_S + _STEP_S / 2
    return float(likely[near].sum() / (likely.sum() + len(lags) * np.exp(-top)))


def _alike(one: Series, other: Series, reach: int) -> float:
    """How many pairs are worth one independent pair, by Bartlett's formula: both tracks resemble themselves a moment later."""
    one, other = one - one.mean(), other - other.mean()
    scale = float((one @ one) * (other @ other))
    if scale < _NO_CORRELATION**2:
        return 1.0
    reach = min(reach, len(one) - 1)
    pairs = [float((one[k:] @ one[:-k]) * (other[k:] @ other[:-k])) for k in range(1, reach + 1)]
    return max(1.0, 1 + 2 * sum(pairs) / scale)


def _movements(track: MouthTrack, period: float, before_s: float) -> Series:
    """The track without its slow changes, less a share of what it was `before_s` ago."""
    quick = _quick(track.aperture, _DRIFT_S / period)
    moved: Series = quick - _EMPHASIS * np.interp(track.times - before_s, track.times, quick)
    return moved


def _quick(values: Series, window: float) -> Series:
    """`values` without their moving mean over about `window` of them."""
    half = max(1, round(window / 2))
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(0, index - half), np.minimum(len(values), index + half + 1)
    quick: Series = values - (total[high] - total[low]) / (high - low)
    return quick


def _agreement(times: Series, pictures: Series, heard_times: Series, sound: Series) -> tuple[float, int]:
    """Correlation of `pictures` with the audio at `times`, where there is audio, and of how many."""
    inside = (times >= heard_times[0]) & (times <= heard_times[-1])
    count = int(inside.sum())
    if count < 2:
        return 0.0, count
    one, other = pictures[inside], np.interp(times[inside], heard_times, sound)
    one, other = one - one.mean(), other - other.mean()
    scale = float(np.sqrt((one @ one) * (other @ other)))
    return (float(one @ other) / scale if scale > _NO_CORRELATION else 0.0), count

"""What is measured of a mouth against the sound: whether it follows, how late, whether it stands still, and whether it rests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.features.mouth_network import STEP
from musetalk_agent.features.speech_detector import SpeechDetector
from musetalk_agent.features.visemes import VisemeFeatures
from musetalk_agent.judge import bars
from musetalk_agent.judge.film_report import Measure, Verdict, at_most, not_judged
from musetalk_agent.measure.lip_measures import MouthTrack, mouth_made
from musetalk_agent.measure.measure_sync import best_lag, lag_curve
from musetalk_agent.media_types import FEATURE_RATE, Pcm

Series = NDArray[np.float64]
Flags = NDArray[np.bool_]

_DETECTED_S = 0.06
"""The detector is sure of speech that much later than it begins."""
_OPEN = 0.012
"""An opening that is heard, in outer eye distances: a tenth of a full one."""
_SPEECH_LEAST_S = 1.0
"""Open-mouthed speech that a lag needs, as in `measure-sync`."""
_BESIDE_SPEECH_S = 0.3
"""Lips move so long before and after speech, and are at rest beyond."""
_PAUSE_S = 0.3
"""A shorter pause belongs to the speech around it."""
_WINDOW_S = 1.0
"""Over so much the motion of a mouth is compared with that of the face."""
_WORST = 4


@dataclass(frozen=True)
class Heard:
    """What a film's sound asks of a mouth.

    Args:
        mouth: the opening that the mouth network hears, evenly spaced.
        speech: bool `[n]`, whether each 20 ms is speech.
        start_s: time of the first of them.
    """

    mouth: MouthTrack
    speech: Flags
    start_s: float

    @classmethod
    def of(cls, features: VisemeFeatures, voice: Pcm, start_s: float) -> Heard:
        """Hears a whole recording, int16 `[n]` at 16 kHz, whose first sample has the time `start_s`."""
        return cls.in_pieces(
            features, (voice[at : at + FEATURE_RATE] for at in range(0, len(voice), FEATURE_RATE)), start_s
        )

    @classmethod
    def in_pieces(cls, features: VisemeFeatures, pieces: Iterable[Pcm], start_s: float) -> Heard:
        """The same of a recording that comes in pieces, of which none is kept."""
        detector, said = SpeechDetector.shipped(), list[bool]()

        def noted() -> Iterator[Pcm]:
            for piece in pieces:
                said.extend(detector.push(piece))
                yield piece

        mouth = mouth_made(features, noted(), start_s)
        return cls(mouth, np.array(said, bool), start_s)

    def speaking(self, times: Series) -> Flags:
        """Whether speech is heard at each time; short pauses count as speech."""
        spoken = _closed(self.speech, round(_PAUSE_S * FEATURE_RATE / STEP))
        return self._at(spoken, times)

    def silent(self, times: Series) -> Flags:
        """Whether no speech is heard at each time, nor near it, nor is the time outside the recording."""
        reach = round(_BESIDE_SPEECH_S * FEATURE_RATE / STEP)
        near = np.convolve(self.speech.astype(np.int64), np.ones(2 * reach + 1, np.int64), "same") > 0
        inside = (times >= self.start_s) & (times < self.start_s + len(self.speech) * STEP / FEATURE_RATE)
        return inside & ~self._at(near, times)

    def _at(self, flags: Flags, times: Series) -> Flags:
        index = np.floor((times - self.start_s + _DETECTED_S) * FEATURE_RATE / STEP).astype(np.int64)
        inside = (index >= 0) & (index < len(flags))
        found = np.zeros(len(times), bool)
        found[inside] = flags[index[inside]]
        return found


@dataclass(frozen=True, slots=True)
class Following:
    """Whether lips follow the sound: the two measures, and the lag in seconds, 0 where it is not known."""

    lag: Measure
    correlation: Measure
    lag_s: float


def follow(seen: MouthTrack, heard: Heard | None) -> Following:
    """Compares the mouth that is seen with the one that is heard."""
    why = _cannot(heard)
    curve = None if heard is None or why else lag_curve(seen, heard.mouth)
    if heard is None or curve is None:
        missing = not_judged(why or "a face and sound overlap for less than two seconds.")
        return Following(missing, missing, 0.0)
    best = best_lag(curve)
    if best.confidence >= bars.LAG_CONFIDENCE and best.correlation >= bars.LIP_CORRELATION:
        ms = 1000 * best.lag_s
        failed = abs(ms) > bars.LAG_MS
        wrong = f"the lips are {abs(ms):.0f} ms {'late' if ms > 0 else 'early'}." if failed else None
        lag = Measure(ms, bars.LAG_MS, Verdict.FAILED if failed else Verdict.PASSED, wrong)
        return Following(lag, Measure(best.correlation, bars.LIP_CORRELATION, Verdict.PASSED), best.lag_s)
    near = float(curve.agreement[np.abs(curve.lags) <= bars.NEAR_MS / 1000 + 1e-9].max())
    lag = not_judged("the lag is not certain; more seconds of speech are needed.")
    if near >= bars.LIP_CORRELATION:
        return Following(lag, Measure(near, bars.LIP_CORRELATION, Verdict.PASSED), 0.0)
    wrong = "the lips do not follow this sound at any lag within half a second."
    worst = _disagreeing(seen, heard.mouth)
    return Following(
        not_judged("the lips do not follow the sound."),
        Measure(near, bars.LIP_CORRELATION, Verdict.FAILED, wrong, worst),
        0.0,
    )


def frozen(times: Series, mouth: Series, around: Series, heard: Heard | None) -> Measure:
    """The longest stretch of speech, in seconds, in which the mouth moves hardly more than the cheeks.

    `mouth` and `around` are the motions of `FrameMeasures`, NaN where there are none.
    """
    if heard is None:
        return not_judged("the film has no sound.")
    period = _period(times)
    speaking = heard.speaking(times)
    if speaking.sum() * period < bars.FROZEN_S:
        return not_judged(f"less than {bars.FROZEN_S:g} s of speech are heard.")
    known = np.isfinite(mouth) & np.isfinite(around)
    size = max(2, round(_WINDOW_S / period))
    window = np.ones(size)
    both = known & speaking
    moved, rest = (np.convolve(np.where(both, v, 0), window, "valid") for v in (mouth, around))
    count = np.convolve(both.astype(np.float64), window, "valid")
    full = count >= size - 2  # a frame or two without a measure do no harm
    still = full & (moved < bars.STILL * np.maximum(rest, bars.MOTION_LEAST * np.maximum(count, 1)))
    covered = np.zeros(len(times), bool)
    for at in np.flatnonzero(still):
        covered[at : at + size] = True
    start, length = _longest(covered)
    wrong = f"the lips stand still from {times[start]:.2f} s on while speech is heard."
    worst = tuple(float(times[start + length * k // _WORST]) for k in range(_WORST)) if length else ()
    return at_most(length * period, bars.FROZEN_S, wrong, worst)


def rest(times: Series, aperture: Series, heard: Heard | None, lag_s: float) -> Measure:
    """How much the mouth moves in silence: standard deviation of its opening, in outer eye distances.

    `lag_s` is how late the lips are, when it is known: late lips are no unrest.
    """
    if heard is None:
        return not_judged("the film has no sound.")
    silent = heard.silent(times - lag_s) & np.isfinite(aperture)
    if silent.sum() * _period(times) < bars.REST_LEAST_S:
        return not_judged(f"less than {bars.REST_LEAST_S:g} s of silence show the face.")
    values = aperture[silent]
    away = np.abs(values - np.median(values))
    worst = tuple(float(t) for t in times[silent][np.argsort(-away)[:_WORST]])
    return at_most(float(values.std()), bars.REST, "the mouth moves while nothing is said.", worst)


def _cannot(heard: Heard | None) -> str | None:
    if heard is None:
        return "the film has no sound."
    track = heard.mouth
    if len(track.times) < 2:
        return "the sound is too short."
    seconds = float((track.aperture > _OPEN).mean()) * float(track.times[-1] - track.times[0])
    if seconds < _SPEECH_LEAST_S:
        return f"only {seconds:.1f} s of open-mouthed speech are heard; {_SPEECH_LEAST_S:g} s are needed."
    return None


def _disagreeing(seen: MouthTrack, heard: MouthTrack) -> tuple[float, ...]:
    """Times at which the mouth that is seen differs most from the one that is heard."""
    known = np.isfinite(seen.aperture)
    times, one = seen.times[known], seen.aperture[known]
    other = np.interp(times, heard.times, heard.aperture)
    apart = np.abs((one - one.mean()) / (one.std() + 1e-9) - (other - other.mean()) / (other.std() + 1e-9))
    return tuple(float(t) for t in times[np.argsort(-apart)[:_WORST]])


def _period(times: Series) -> float:
    return float(np.median(np.diff(times))) if len(times) > 1 else 0.0


def _closed(flags: Flags, gap: int) -> Flags:
    """The flags with gaps of up to `gap` between true ones filled."""
    found = flags.copy()
    on = np.flatnonzero(flags)
    for one, other in pairwise(on.tolist()):
        if other - one <= gap:
            found[one:other] = True
    return found


def _longest(flags: Flags) -> tuple[int, int]:
    """Where the longest run of true ones begins, and how long it is."""
    best = start = length = 0
    for at, flag in enumerate(flags):
        length = length + 1 if flag else 0
        if length > best:
            best, start = length, at + 1 - length
    return start, best

"""Chooses whose mouth a dub changes, and when: every face's, the largest face's of each shot, one person's, or those that speak.

Who speaks in the footage is found as `measure-sync` finds a lag: a face's opening mouth is compared with the one that the footage's
own sound asks for, near lag 0, over windows of three seconds. A mouth that follows the sound speaks. Of 3 s of real talkers (GRID),
those that spoke had a correlation of 0.62 … 0.80 and listeners at most 0.20.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.avatars.face_track import covered_frames
from musetalk_agent.avatars.identity import FaceDescriber, cosine
from musetalk_agent.judge import bars
from musetalk_agent.judge.lips import Heard
from musetalk_agent.measure.lip_measures import MouthTrack, frame_middles
from musetalk_agent.measure.measure_sync import lag_curve
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.protocol.renders import Speaker
from musetalk_agent.renders.dub.footage_scan import FootageScan, Ints

WINDOW_S, _HOP_S = 3.0, 1.0
_LEAST_S = 1.0
"""A face that is seen for less of a window says nothing by its correlation."""
_SPEAKS, _PERHAPS = 0.40, 0.22
"""A mouth speaks from the first correlation on; from the second one on if it moves much and no other mouth has a higher one."""
_NEAR_S = 0.12
"""Lags up to this count as in step: footage is often a frame or two out of it."""
_MOVES, _MOVES_MUCH = 0.010, 0.020
"""Standard deviation of an opening, in eye distances, over a window: listeners measured 0.003 … 0.012, talkers 0.02 … 0.04."""
_SPEECH_LEAST = 0.1
"""Share of a window's time in which speech is heard, under which it says nothing of who speaks."""
_SPEECH_LEAST_S = 1.0
"""With less speech in all, the footage's sound cannot say who speaks."""
TURNED = float(np.radians(50.0))
"""A head that is turned further shows no mouth that could be drawn on."""

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Chosen:
    """Whose mouths are changed.

    Args:
        speaks: bool `[m]`, for each row of the look whether its mouth says the new sound.
        person: int64 `[numbers]`, which person each number of the look is, in order of appearance from 0.
        by: what decided, in the end: `largest` where `auto` could not decide at all.
    """

    speaks: Flags
    person: Ints
    by: str


def choose(look: FootageScan, speaker: Speaker, heard: Heard | None, describer: FaceDescriber) -> Chosen:
    """Decides. `heard` is the footage's own sound, on the film's time line; None where it has none.

    Raises ProblemError `no_face_in_video`, `speaker_not_found`.
    """
    shown = drawable(look)
    if not shown.any():
        text = (
            f"No frame of the video shows a face that is at least {bars.FACE_LEAST_PX:g} pixels wide, from the front."
        )
        raise ProblemError(ErrorCode.NO_FACE_IN_VIDEO, text, field="video_url", limit=bars.FACE_LEAST_PX)
    person = persons(look, describer)
    if isinstance(speaker, int):
        if speaker > person.max():
            text = (
                f"speaker: there is no person {speaker}; the video shows {int(person.max()) + 1}, counted from 0 in order of "
                "appearance."
            )
            raise ProblemError(
                ErrorCode.SPEAKER_NOT_FOUND, text, field="speaker", value=speaker, limit=int(person.max())
            )
        return Chosen(shown & (person[look.number] == speaker), person, "index")
    if speaker == "all":
        return Chosen(shown, person, "all")
    if speaker == "auto":
        found = shown & _speaking(look, heard)
        if found.any():
            return Chosen(found, person, "auto")
    return Chosen(shown & _largest(look), person, "largest")


def drawable(look: FootageScan) -> Flags:
    """Which rows show a mouth that may be drawn: large enough, not turned away, not covered. bool `[m]`."""
    shown = (look.width >= bars.FACE_LEAST_PX) & (np.abs(look.turn) <= TURNED)
    for number in np.unique(look.number):
        rows = np.flatnonzero(look.number == number)
        looked = {k: float(look.evidence[row]) for k, row in enumerate(rows) if np.isfinite(look.evidence[row])}
        angles = np.stack([look.turn[rows], look.nod[rows]], 1)
        shown[rows] &= ~covered_frames(len(rows), looked, angles)
    return np.asarray(shown, bool)


def persons(look: FootageScan, describer: FaceDescriber) -> Ints:
    """Which person each number is: numbers whose faces are alike and never seen at once are one. int64 `[numbers]`."""
    count = len(look.described)
    frames = [set(look.frame[look.number == number].tolist()) for number in range(count)]
    person = np.zeros(count, np.int64)
    groups: list[list[int]] = []
    for number in range(count):
        likeness = [
            -2.0
            if any(frames[number] & frames[other] for other in group)
            else max(cosine(look.described[number], look.described[other]) for other in group)
            for group in groups
        ]
        best = int(np.argmax(likeness)) if likeness else -1
        if best < 0 or likeness[best] < describer.same:
            best = len(groups)
            groups.append([])
        groups[best].append(number)
        person[number] = best
    return person


def _largest(look: FootageScan) -> Flags:
    """Rows of the face that fills most of each shot."""
    chosen = np.zeros(len(look.frame), bool)
    shots = look.shot_of(look.frame)
    for shot in np.unique(shots):
        rows = np.flatnonzero(shots == shot)
        numbers = np.unique(look.number[rows])
        area = [float((look.width[rows[look.number[rows] == number]] ** 2).sum()) for number in numbers]
        chosen[rows] = look.number[rows] == numbers[int(np.argmax(area))]
    return chosen


def _speaking(look: FootageScan, heard: Heard | None) -> Flags:
    """Rows whose mouths speak in the footage."""
    if heard is not None and heard.speech.sum() * _STEP_S < _SPEECH_LEAST_S:
        heard = None
    spoken = np.zeros(look.frames, bool) if heard is None else heard.speaking(look.times)
    chosen = np.zeros(len(look.frame), bool)
    middles = frame_middles(look.times)
    shots = look.shot_of(look.frame)
    for shot in np.unique(shots):
        rows = np.flatnonzero(shots == shot)
        windows = _windows(float(middles[look.frame[rows[0]]]), float(middles[look.frame[rows[-1]]]))
        voices = [_voice(look, heard, spoken, middles, rows, window) for window in windows]
        known = [k for k, voice in enumerate(voices) if voice is not None]
        if not known:
            continue
        centres = np.array([(windows[k][0] + windows[k][1]) / 2 for k in known])
        nearest = np.abs(middles[look.frame[rows]][:, None] - centres[None]).argmin(1)
        voice_of = np.array([voices[k] for k in known], np.int64)[nearest]
        chosen[rows] = look.number[rows] == voice_of
    return chosen


_STEP_S = 0.02
_NOBODY = -1


def _windows(first: float, last: float) -> list[tuple[float, float]]:
    """Windows that cover a shot, overlapping; one for a short shot."""
    if last - first <= WINDOW_S + _HOP_S:
        return [(first, last)]
    begins = [*np.arange(first, last - WINDOW_S, _HOP_S).tolist(), last - WINDOW_S]
    return [(begin, begin + WINDOW_S) for begin in begins]


def _voice(
    look: FootageScan,
    heard: Heard | None,
    spoken: Flags,
    middles: NDArray[np.float64],
    rows: Ints,
    window: tuple[float, float],
) -> int | None:
    """The number of the face that speaks in a window; `_NOBODY` if no face speaks, None if the window is undecided."""
    at = middles[look.frame[rows]]
    inside = rows[(at >= window[0]) & (at <= window[1])]
    if not len(inside):
        return None
    if heard is not None and spoken[look.frame[inside]].mean() < _SPEECH_LEAST:
        return None
    best, score = _NOBODY, 0.0
    for number in np.unique(look.number[inside]):
        mine = inside[look.number[inside] == number]
        found = _score(look, heard, middles, mine)
        if found > score:
            best, score = int(number), found
    return best


def _score(look: FootageScan, heard: Heard | None, middles: NDArray[np.float64], rows: Ints) -> float:
    """How surely a face speaks in these rows; 0 where it does not."""
    aperture = look.aperture[rows].astype(np.float64)
    motion = float(np.nanstd(aperture))
    if heard is None:
        return motion if motion >= _MOVES_MUCH else 0.0
    curve = lag_curve(MouthTrack(middles[look.frame[rows]], aperture), heard.mouth, _LEAST_S)
    if curve is None:
        return motion if motion >= _MOVES_MUCH else 0.0
    near = float(curve.agreement[np.abs(curve.lags) <= _NEAR_S].max())
    if motion >= _MOVES and near >= _SPEAKS:
        return 1 + near
    return near if motion >= _MOVES_MUCH and near >= _PERHAPS else 0.0

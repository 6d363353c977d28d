"""The judge: looks at a film and says of each face whether it passes. `Judge.judge` is what renders call on their own films."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.avatars.face import FaceNet
from musetalk_agent.avatars.identity import Descriptor, FaceDescriber, cosine, describer, mean_descriptor
from musetalk_agent.features.mouth_network import MouthNetwork, default_weights
from musetalk_agent.features.visemes import VisemeFeatures
from musetalk_agent.judge import bars, lips
from musetalk_agent.judge.closures import closures, lip_sounds
from musetalk_agent.judge.face_record import (
    APERTURE,
    AROUND,
    BLUE,
    INSIDE,
    LIGHTNESS,
    MOTION,
    MOUTH,
    SHARPNESS,
    SIZE,
    TIME,
    FaceRecord,
)
from musetalk_agent.judge.film_report import FaceReport, FilmReport, Measure, Verdict, at_least, at_most, not_judged
from musetalk_agent.judge.film_scan import FilmScan, Progress, scan
from musetalk_agent.judge.seam import seam
from musetalk_agent.measure.lip_measures import MouthTrack, frame_middles
from musetalk_agent.media_types import FEATURE_RATE
from musetalk_agent.tools.audio_file import AudioFile, AudioUnreadable, mono
from musetalk_agent.weights import ModelStore

Series = NDArray[np.float64]

_WORST = 4
_UPPER_TENTH = 90
_STILL_STANDS = "the lips stand still, which says all."
_NO_REFERENCE = "a reference is needed: faces differ by more than a patch does."


@dataclass(frozen=True)
class _Reference:
    """A face of the reference, in the figures that a film's face is compared with."""

    descriptor: Descriptor
    sharpness: float
    colour: Series
    flicker: float
    gradients: Series
    black: float

    @classmethod
    def of(cls, face: FaceRecord, found: FilmScan) -> _Reference:
        rows = face.rows
        flicker = _flicker(rows)
        return cls(
            mean_descriptor(face.descriptors),
            float(np.nanmedian(rows[:, SHARPNESS])) if np.isfinite(rows[:, SHARPNESS]).any() else np.nan,
            _colour(rows),
            float(np.nanpercentile(flicker, _UPPER_TENTH)) if np.isfinite(flicker).any() else 0.0,
            face.mean_gradients,
            float(found.black.mean()),
        )


@dataclass(frozen=True)
class Judge:
    """Judges films, one after the other; use it from one thread.

    Args:
        net: the face networks.
        features: the mouth network, as `warp` uses it.
        network: the same, for its phonemes.
        describer: what distinguishes people.
    """

    net: FaceNet
    features: VisemeFeatures
    network: MouthNetwork
    describer: FaceDescriber

    @classmethod
    def load(cls, store: ModelStore) -> Judge:
        """With the networks of a models folder. Raises `WeightsMissing`."""
        return cls(FaceNet(store), VisemeFeatures.load(), MouthNetwork.load(default_weights()), describer(store))

    def judge(
        self,
        film: Path,
        *,
        reference: Path | None = None,
        audio: Path | None = None,
        text: str | None = None,
        lips_meet: list[tuple[float, float]] | None = None,
        progress: Progress = lambda _: None,
    ) -> FilmReport:
        """Judges a film. Memory grows by some hundred bytes a frame and face, and by its sound (2 MB a minute).

        Args:
            film: any video that FFmpeg reads.
            reference: the clip that the film was made of, or another video or picture of the same people in the same light.
            audio: the film's sound, beginning with its first frame; default: its own. A film without one is judged by its pictures.
            text: what is said, for `closures`.
            lips_meet: when /p b m/ are heard, begin and end in the film's seconds; where that is known `text` is not looked for.
            progress: called with 1 for every frame read, of the reference too.

        Raises:
            VideoUnreadable: film or reference cannot be read.
            AudioUnreadable: `audio` cannot be read.
        """
        known = None if reference is None else self.look(reference, progress, least_s=0.0)
        return self.decide(
            film, self.look(film, progress), reference=known, audio=audio, text=text, lips_meet=lips_meet
        )

    def look(self, film: Path, progress: Progress = lambda _: None, *, least_s: float = bars.FACE_LEAST_S) -> FilmScan:
        """The first half of `judge`, which takes nearly all of its time: reads the pictures. Faces seen for less than `least_s`
        seconds are left out. Raises `VideoUnreadable`."""
        return scan(film, self.net, self.describer, progress, least_s=least_s)

    def decide(
        self,
        film: Path,
        seen: FilmScan,
        *,
        reference: FilmScan | None = None,
        audio: Path | None = None,
        text: str | None = None,
        lips_meet: list[tuple[float, float]] | None = None,
    ) -> FilmReport:
        """The second half of `judge`: the verdicts on a film that was looked at, which may be asked for with several sounds.

        Raises:
            AudioUnreadable: `audio` cannot be read.
        """
        references = [_Reference.of(face, reference) for face in reference.faces] if reference is not None else []
        heard, sounds = self._heard(film, audio, None if lips_meet is not None else text, float(seen.times[0]))
        sounds = lips_meet if lips_meet is not None else sounds
        faces = [
            _judged(number, face, seen, heard, sounds, _matching(face, references), self.describer)
            for number, face in enumerate(seen.faces)
        ]
        shown = float(np.median(np.diff(seen.times))) if len(seen.times) > 1 else 0.0
        return FilmReport(
            film=film,
            seconds=float(seen.times[-1] - seen.times[0]) + shown,
            frames=len(seen.times),
            black=float(seen.black.mean()),
            describer=self.describer.name,
            faces=_who_speaks(faces),
            left_out=seen.left_out,
        )

    def _heard(
        self, film: Path, audio: Path | None, text: str | None, start_s: float
    ) -> tuple[lips.Heard | None, list[tuple[float, float]] | None]:
        """The film's sound, and when /p b m/ of the text are heard, in the film's seconds."""
        try:
            sound = AudioFile.open(audio or film)
        except AudioUnreadable:
            if audio is not None:
                raise
            return None, None
        voice = mono(sound, FEATURE_RATE)
        begin = sound.start_s if audio is None else start_s
        found = lip_sounds(text, voice, self.network) if text else None
        return (
            lips.Heard.of(self.features, voice, begin),
            None if found is None else [(begin + one, begin + other) for one, other in found],
        )


def judge_film(
    film: Path,
    store: ModelStore,
    *,
    reference: Path | None = None,
    audio: Path | None = None,
    text: str | None = None,
) -> FilmReport:
    """Judges one film; see `Judge.judge`, and `Judge.load` for what else it raises."""
    return Judge.load(store).judge(film, reference=reference, audio=audio, text=text)


def _matching(face: FaceRecord, references: list[_Reference]) -> _Reference | None:
    """The reference's face that is most like this one."""
    mean = mean_descriptor(face.descriptors)
    return max(references, key=lambda one: cosine(mean, one.descriptor), default=None)


def _judged(
    number: int,
    face: FaceRecord,
    seen: FilmScan,
    heard: lips.Heard | None,
    sounds: list[tuple[float, float]] | None,
    reference: _Reference | None,
    people: FaceDescriber,
) -> FaceReport:
    rows = face.rows
    times = rows[:, TIME]
    same = _identity(face, times, reference, people)
    if same.verdict is Verdict.FAILED:
        reference = None  # another person's face says nothing of this one
    measures = _pictures(face, rows, reference) | {"identity": same, "black": _black(seen, times, reference)}
    measures |= _mouth(rows, seen, heard, sounds)
    if measures["sharpness"].verdict is Verdict.FAILED:  # lips that cannot be read are not called still or wrong, too
        for name in ("lip_correlation", "frozen"):
            if measures[name].verdict is Verdict.FAILED:
                measures[name] = not_judged("the mouth is too blurred to be read.")
    return FaceReport(number, float(times[0]), float(times[-1]), face.frames, float(np.median(rows[:, SIZE])), measures)


def _identity(face: FaceRecord, times: Series, reference: _Reference | None, people: FaceDescriber) -> Measure:
    groups = face.groups()
    others = [reference.descriptor] if reference is not None else groups
    likeness = [min(cosine(group, other) for other in others) for group in groups]
    at = int(np.argmin(likeness))
    worst = tuple(
        float(t) for t in np.array_split(times, len(groups))[at][:: max(1, len(times) // len(groups) // 4)][:4]
    )
    what = "the face is not the reference's." if reference is not None else "the face turns into another one."
    return at_least(likeness[at], people.same, what, worst)


def _pictures(face: FaceRecord, rows: Series, reference: _Reference | None) -> dict[str, Measure]:
    """Flicker, sharpness, seam and colour step."""
    times, excess, colour = rows[:, TIME], _flicker(rows), _colour(rows)
    flicker = float(np.nanpercentile(excess, _UPPER_TENTH)) if np.isfinite(excess).any() else np.nan
    flicker = max(0.0, flicker - (reference.flicker if reference is not None else 0.0))
    sharp = rows[:, SHARPNESS]
    sharpness = float(np.nanmedian(sharp)) if np.isfinite(sharp).any() else np.nan
    bar = bars.SHARPNESS
    if reference is not None and np.isfinite(reference.sharpness):
        bar = bars.SHARPNESS_OF_REFERENCE * reference.sharpness
    found = {
        "flicker": at_most(flicker, bars.FLICKER, "the skin around the mouth flickers.", _largest(times, excess)),
        "sharpness": at_least(
            sharpness, bar, "the mouth is blurred against the rest of the face.", _largest(times, -sharp)
        ),
        "seam": not_judged(_NO_REFERENCE),
        "colour_step": not_judged(_NO_REFERENCE),
    }
    if reference is not None:
        edge = seam(face.mean_gradients, reference.gradients, face.mean_mouth)
        middle = (float(times[len(times) // 2]),)
        found["seam"] = at_most(edge, bars.SEAM, "an edge runs round the mouth.", middle)
        away = np.linalg.norm(rows[:, LIGHTNESS : BLUE + 1] - reference.colour, axis=1)
        step = float(np.linalg.norm(colour - reference.colour))
        wrong = "the skin around the mouth has another colour than the reference's."
        found["colour_step"] = at_most(step, bars.COLOUR_STEP, wrong, _largest(times, away))
    return found


def _mouth(
    rows: Series, seen: FilmScan, heard: lips.Heard | None, sounds: list[tuple[float, float]] | None
) -> dict[str, Measure]:
    """Lag, correlation, closures, rest and frozen."""
    middles, aperture = _on_film(rows, seen)
    still = lips.frozen(rows[:, TIME], rows[:, MOUTH], rows[:, MOTION], heard)
    if still.verdict is Verdict.FAILED:
        unknown = not_judged(_STILL_STANDS)
        return {"lag_ms": unknown, "lip_correlation": unknown, "closures": unknown, "rest": unknown, "frozen": still}
    following = lips.follow(MouthTrack(middles, aperture), heard)
    other = following.correlation.verdict is Verdict.FAILED
    unlike = not_judged("the lips follow another sound.")
    shut = not_judged("the text is not known, too long, or not in Latin letters.")
    if sounds is not None:
        shifted = [(begin + following.lag_s, end + following.lag_s) for begin, end in sounds]
        shut = unlike if other else closures(middles, aperture, shifted)
    return {
        "lag_ms": following.lag,
        "lip_correlation": following.correlation,
        "closures": shut,
        "rest": unlike if other else lips.rest(middles, aperture, heard, following.lag_s),
        "frozen": still,
    }


def _on_film(rows: Series, seen: FilmScan) -> tuple[Series, Series]:
    """Middles of the film's frames from the face's first to its last, and the mouth's opening in each, NaN without the face."""
    inside = (seen.times >= rows[0, TIME]) & (seen.times <= rows[-1, TIME])
    middles = frame_middles(seen.times)[inside]
    aperture = np.full(len(middles), np.nan)
    aperture[np.searchsorted(seen.times[inside], rows[:, TIME])] = rows[:, APERTURE]
    return middles, aperture


def _black(seen: FilmScan, times: Series, reference: _Reference | None) -> Measure:
    inside = (seen.times >= times[0]) & (seen.times <= times[-1])
    dark = seen.times[seen.black & inside]
    share = len(dark) / max(1, int(inside.sum()))
    allowed = bars.BLACK + (reference.black if reference is not None else 0.0)
    return at_most(share, allowed, f"{len(dark)} frames are black.", tuple(float(t) for t in dark[:_WORST]))


def _who_speaks(faces: list[FaceReport]) -> list[FaceReport]:
    """Of several faces only those that follow the sound are held to it; where none does, the one that follows it best is."""
    speaking = [face for face in faces if face.measures["lip_correlation"].verdict is Verdict.PASSED]
    for face in faces if len(faces) > 1 else []:
        others = speaking or [max(faces, key=lambda one: one.measures["lip_correlation"].value or -1.0)]
        if face not in others:
            listens = not_judged("another face speaks.")
            for name in ("lag_ms", "lip_correlation", "closures", "rest", "frozen"):
                face.measures[name] = listens
    return faces


def _flicker(rows: Series) -> Series:
    return np.asarray(rows[:, INSIDE] - rows[:, AROUND], np.float64)


def _colour(rows: Series) -> Series:
    """Median colour step, float64 `[3]`."""
    colours = rows[:, LIGHTNESS : BLUE + 1]
    known = colours[np.isfinite(colours).all(1)]
    return np.median(known, axis=0) if len(known) else np.full(3, np.nan)


def _largest(times: Series, values: Series) -> tuple[float, ...]:
    order = np.argsort(-np.where(np.isfinite(values), values, -np.inf))[:_WORST]
    return tuple(float(times[k]) for k in order if np.isfinite(values[k]))

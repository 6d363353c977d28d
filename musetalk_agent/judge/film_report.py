"""What the judge says of a film: measures, verdicts, and how they are written down."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

MEASURES = (
    *("lag_ms", "lip_correlation", "closures", "rest", "flicker", "sharpness", "seam", "colour_step", "identity"),
    *("frozen", "black"),
)
"""Names of all measures, in order."""


class Verdict(StrEnum):
    """What a measure says. `not_judged` is no fault; the measure's reason says why."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_JUDGED = "not_judged"


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure of one face.

    Args:
        value: in the measure's own unit (docs/reference/judge.md); None where it could not be measured.
        bar: what it is held against; None where it is not.
        verdict: the outcome.
        reason: why it is not judged, or what is wrong, in a sentence; None when it passed.
        worst: times in seconds, at most four, at which it is worst.
    """

    value: float | None
    bar: float | None
    verdict: Verdict
    reason: str | None = None
    worst: tuple[float, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The fields for JSON; a missing reason and no times are left out."""
        fields: dict[str, Any] = {
            "value": None if self.value is None else round(self.value, 4),
            "bar": self.bar,
            "verdict": self.verdict.value,
        }
        if self.reason is not None:
            fields["reason"] = self.reason
        if self.worst:
            fields["worst_s"] = [round(time, 3) for time in self.worst]
        return fields


def not_judged(reason: str, value: float | None = None) -> Measure:
    """A measure without a verdict."""
    return Measure(value, None, Verdict.NOT_JUDGED, reason)


def at_most(value: float, bar: float, wrong: str, worst: tuple[float, ...] = ()) -> Measure:
    """A measure that passes up to its bar; `wrong` says what it means when it does not. NaN is not judged."""
    if math.isnan(value):
        return not_judged("too little of the face was seen.")
    failed = value > bar
    return Measure(value, bar, Verdict.FAILED if failed else Verdict.PASSED, wrong if failed else None, worst)


def at_least(value: float, bar: float, wrong: str, worst: tuple[float, ...] = ()) -> Measure:
    """A measure that passes from its bar on."""
    if math.isnan(value):
        return not_judged("too little of the face was seen.")
    failed = value < bar
    return Measure(value, bar, Verdict.FAILED if failed else Verdict.PASSED, wrong if failed else None, worst)


@dataclass(frozen=True, slots=True)
class FaceReport:
    """What was found of one face.

    Args:
        number: from 0, in the order in which faces appear.
        first_s, last_s: times of its first and last frame, in seconds of the film.
        frames: how many show it.
        width_px: median width of its mesh in the film's pixels.
        measures: one `Measure` for each name of `MEASURES`.
    """

    number: int
    first_s: float
    last_s: float
    frames: int
    width_px: float
    measures: dict[str, Measure]

    @property
    def faults(self) -> list[str]:
        """Names of the measures that failed, in order."""
        return [name for name in MEASURES if self.measures[name].verdict is Verdict.FAILED]


@dataclass(frozen=True, slots=True)
class FilmReport:
    """What was found of a film.

    Args:
        film: its path.
        seconds: from its first frame to the end of its last.
        frames: how many it has.
        black: share of them that are black.
        describer: what identity was measured with, `dlib` or `plain`.
        faces: those that were judged; empty when none is seen long enough and large enough.
        left_out: faces that were too small or seen too shortly.
    """

    film: Path
    seconds: float
    frames: int
    black: float
    describer: str
    faces: list[FaceReport] = field(default_factory=list)
    left_out: int = 0

    @property
    def faults(self) -> list[str]:
        """Names of all measures that failed on some face, in order; `no_face` when no face could be judged."""
        if not self.faces:
            return ["no_face"]
        found = {name for face in self.faces for name in face.faults}
        return [name for name in MEASURES if name in found]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.faults

    def as_json(self) -> str:
        """`as_dict`, on one line."""
        return json.dumps(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """One JSON object: the fields, `passed`, `faults`, and for each face its `measures`."""
        faces = [
            {
                "face": face.number,
                "first_s": round(face.first_s, 3),
                "last_s": round(face.last_s, 3),
                "frames": face.frames,
                "width_px": round(face.width_px),
                **{name: face.measures[name].as_dict() for name in MEASURES},
            }
            for face in self.faces
        ]
        fields: dict[str, Any] = {"film": str(self.film), "seconds": round(self.seconds, 3), "frames": self.frames}
        fields |= {"passed": self.passed, "faults": self.faults, "black": round(self.black, 4)}
        return fields | {"describer": self.describer, "left_out": self.left_out, "faces": faces}

    def as_text(self) -> str:
        """A table a face, and one line that says the outcome."""
        lines = []
        for face in self.faces:
            lines.append(
                f"face {face.number}: {face.width_px:.0f} px wide, {face.frames} frames, {face.first_s:.2f} to {face.last_s:.2f} s"
            )
            lines.extend(_line(name, face.measures[name]) for name in MEASURES)
        outcome = "passed" if self.passed else f"failed: {', '.join(self.faults)}"
        return "\n".join([*lines, f"{self.film}: {outcome}"])


def _line(name: str, measure: Measure) -> str:
    mark = {Verdict.PASSED: "ok", Verdict.FAILED: "FAIL", Verdict.NOT_JUDGED: "–"}[measure.verdict]
    value = "" if measure.value is None else f"{measure.value:.3g}"
    bar = "" if measure.bar is None else f"{measure.bar:g}"
    return f"  {mark:4}  {name:16}{value:>8}  {bar:>6}  {measure.reason or ''}".rstrip()

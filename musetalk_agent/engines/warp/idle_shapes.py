"""The shape of the mouth in every idle frame, its own and with the lips together; and the reference frames, whose lips are drawn.

There is one reference for each direction of the head, so that lips are never bent far: lips seen from the front do not fit a face
seen from the side, whose far half is narrower and has the background behind it. A clip of a still head has one reference; a clip
whose head turns and nods has more, each with the most closed mouth of the frames around it.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.engines.warp.articulation import JAW_WINDOW, closed, narrowness, on_cheeks
from musetalk_agent.engines.warp.mouth_space import (
    CHIN,
    EYES,
    IU,
    LEVELS,
    OL,
    OU,
    SAMPLES,
    Floats,
    MouthShape,
    S,
    ordered,
    to_mouth,
)

Ints = NDArray[np.int64]

APART = np.radians(10.0)
"""Poses further than this from every reference get one of their own (radians)."""
BENT = np.radians(35.0)
"""So far closed lips may be bent before open ones from a nearer idle frame are better (radians). Of an opening something is left on
the lips that are cut around it, above all where a beard hides their edges; a bend is hardly seen."""
SHUT = 0.03
"""Lips that the mesh sees closer together than this are closed (eye distances)."""
SMILES_OPEN = 1.4, 0.2
"""Where lips are always apart, those up to this multiple of the least opening count as closed, for the mesh reads smiles unevenly.
Lips that are never less apart than the second (eye distances) are those of no smile."""
OPEN_AWAY = np.radians(250.0), np.radians(30.0)
"""How much further away open lips count, for each eye distance that they are open, and at most (radians)."""
MOST = 12
"""References of a clip at most: each costs 50 ms of preparation."""
NEAR = 0.5
"""A reference is sought within this share of `APART` around the idle frame that lacks one."""
CLEAR = 0.04
"""How far a chin must be from the image's edge, in eye distances, in a frame that lends its lips."""


def apertures(landmarks: Floats) -> Floats:
    """How open the mesh sees the lips of each idle frame, in eye distances."""
    eyes = np.linalg.norm(landmarks[:, EYES[0]] - landmarks[:, EYES[1]], axis=1)
    return np.asarray(np.linalg.norm(landmarks[:, 13] - landmarks[:, 14], axis=1) / np.maximum(eyes, 1), np.float32)


def whole_chins(landmarks: Floats, width: int, height: int) -> NDArray[np.bool_]:
    """Which idle frames show the whole chin, bool `[n]`."""
    room = CLEAR * np.linalg.norm(landmarks[:, EYES[0]] - landmarks[:, EYES[1]], axis=1)[:, None]
    chin = landmarks[:, 152]
    inside: NDArray[np.bool_] = ((chin > room) & (chin < np.array([width, height]) - 1 - room)).all(1)
    return inside


def chosen(angles: Floats, openness: Floats, usable: Ints, first: int) -> Ints:
    """Indices of the references, `first` before all others.

    Each idle frame of `usable` with closed lips is within `APART` of one, as far as `MOST` reaches. Open lips are taken only
    where no others are within `BENT`.
    """
    found = [first]
    shut = usable[openness[usable] <= closed_to(float(openness[first]))]
    for idle_shapes, apart in ((shut, APART), (usable, BENT)):
        away = np.linalg.norm(angles[idle_shapes, None] - angles[found][None], axis=2).min(1)
        while len(found) < MOST and float(away.max(initial=0.0)) > apart:
            far = angles[idle_shapes[int(np.argmax(away))]]
            # not near one that is there already: of several open frames the same one would be chosen again
            near = idle_shapes[
                (np.linalg.norm(angles[idle_shapes] - far, axis=1) <= NEAR * APART) & (away > NEAR * APART)
            ]
            best = int(near[int(np.argmin(openness[near]))])
            found.append(best)
            away = np.minimum(away, np.linalg.norm(angles[idle_shapes] - angles[best], axis=1))
    return np.array(found, np.int64)


def closed_to(least: float) -> float:
    """Up to which opening lips count as closed in a clip whose most closed ones are `least` apart (eye distances)."""
    return max(SHUT, SMILES_OPEN[0] * least if least < SMILES_OPEN[1] else 0.0)


def nearest(angles: Floats, references: Ints, openness: Floats | None = None) -> Ints:
    """For each idle frame the reference that it shows, an index into `references`. Open ones count as further away."""
    away = np.linalg.norm(angles[:, None] - angles[references][None], axis=2)
    if openness is not None:
        apart = openness[references] - closed_to(float(openness[references[0]]))
        away = away + np.clip(OPEN_AWAY[0] * apart, 0, OPEN_AWAY[1])
    return np.asarray(away.argmin(1), np.int64)


SETTLE = 1.5
"""Standard deviation, in frames, of the smoothing of the idle frames' shapes over time: the mesh's noise is shorter than speech."""
HEAD_SETTLE = 2.0
"""The same for the head's direction."""
HEAD_SURE = 0.05
"""Spread of the head's direction (radians) in a clip from which on what goes with it is taken to be its doing."""
TREMOR = 0.008
"""What changes faster than `SETTLE` by no more than this (eye distances) is the mesh's noise: speech changes it by more."""
CHANGE = 2.0
"""Standard deviation, in frames, of the passage from one reference's form to the next one's."""
CHIN_FALLS = 0.67
"""How far the chin goes down with an opening, per opening that the mesh reads: 0.60 … 0.83 on seven talkers, the head's direction
taken out. The upper lip's outer edge moves by −0.09 … 0.07 of it."""
CHIN_SEEN = 0.9
"""How much of what the mesh's chin falls in a still head is taken, instead of that: 0.7 … 1.7 by the pixels of ten talkers."""
HEAD_MOVES = np.radians(3.0)
"""Spread of the head's direction (radians) from which on the mesh's chin counts by half."""
NEVER_SHUT = 0.5
"""A mouth whose tenth percentile of openings is this share of the ninetieth never shuts: what of its opening goes with the head's
direction is how it is seen there. A mouth that shuts is seen shut in any direction, and may open whenever the head nods."""
CHIN_LIFT = 0.03
"""How far the chin is lifted at most to close references, where even the most closed mouth of the clip is open so far (eye
distances): no frame shows that chin at its rest, and the lips do the rest of the way. A chin is to be within 0.05 of the
clip's own, where a head that turns and nods takes up to 0.02 of that; lifted further, it is seen to move."""
SMILE_HALF_WIDTHS = (0.31, 0.35)
"""Half widths of mouths (eye distances) that are no smile yet, and a smile for sure: its lips part without the jaw, and closing
them leaves the chin where it is. Talkers have up to 0.30, toothy smiles 0.34 to 0.39."""
FACING = 0.25
"""Share of the idle frames, those that are turned least, whose median width counts: the mesh sees a turned mouth up to a quarter
narrower."""
JAW_NARROWS = 0.3
"""How far below the lips, on the way to the chin, the face's outline counts too: skin that follows the corners must not drag it."""
OUTLINE = (234, 93, 132, 58, 172, 136), (454, 323, 361, 288, 397, 365)
"""Mesh points of the face's outline beside the mouth, left and right in the image."""


def over_time(rows: Floats, sigma: float) -> Floats:
    """Rows `[n, c]` smoothed over time, `sigma` in frames."""
    if len(rows) < 3:
        return rows
    blurred = cv2.GaussianBlur(rows, (1, 0), sigmaX=1e-3, sigmaY=sigma, borderType=cv2.BORDER_REFLECT_101)
    return np.asarray(blurred, np.float32)


def steadied(angles: Floats) -> Floats:
    """The directions of the head `[n, 2]` without the tremor of the mesh.

    A turn goes on before the clip's first frame and after its last one: turned back there, as `over_time` does it, a head that is
    seen from the front in the first frame of a fast turn would be taken for one from the side, and get the lips of one.
    """
    around = round(4 * HEAD_SETTLE)
    further = np.pad(angles, ((around, around), (0, 0)), "reflect", reflect_type="odd")
    smooth = over_time(np.asarray(further, np.float32), HEAD_SETTLE)[around:-around]
    return np.asarray(np.clip(smooth, angles.min(0), angles.max(0)), np.float32)


def settled(
    meshes: list[MouthShape], angles: Floats, shapes: tuple[MouthShape, ...], references: Ints, shown: Ints
) -> tuple[MouthShape, ...]:
    """The idle frames' shapes without the mesh's tremor, with its error at their references taken off all of them.

    What the head's direction explains is kept as it is, for a nod may be fast; only the rest is smoothed over time.
    """
    rows = np.array([np.concatenate([[m.centre, m.half], m.curves.ravel()]) for m in meshes], np.float32)
    turned = explained(rows, angles)
    rows = turned + over_time(rows - turned, SETTLE)
    errors = np.stack([shape.curves - meshes[k].curves for k, shape in zip(references, shapes, strict=True)])
    errors[:, CHIN] = 0
    each = np.einsum("nk,kls->nls", _shares(shown, len(references)), errors)
    return tuple(
        MouthShape(float(row[0]), float(row[1]), ordered(row[2:].reshape(LEVELS, SAMPLES) + error))
        for row, error in zip(rows, each, strict=True)
    )


def fallen(meshes: list[MouthShape], angles: Floats) -> Floats:
    """How far the chin of each idle frame is down because its mouth is open, float32 `[n]` in eye distances, from any level.

    A turn or a nod of the head carries the chin further than speech, in what the mesh reads too: what the head's direction explains
    is left out, and the more the head moves, the more the lips say it and the less the chin itself. A syllable takes as few frames
    as the mesh's tremor does, so only what is as small as that is smoothed over time.
    """
    rows = np.array([(mesh.opening, mesh.curves[CHIN][SAMPLES // 2]) for mesh in meshes], np.float32)
    least, most = np.quantile(rows[:, 0], (0.1, 0.9))
    share = min(1.0, float(least) / max(NEVER_SHUT * float(most), 1e-3))
    own = rows - np.array((share, 1.0), np.float32) * explained(rows, angles)
    slow = over_time(own, SETTLE)
    quick = own - slow
    gap, chin = (slow + np.copysign(np.maximum(np.abs(quick) - TREMOR, 0), quick)).T
    still = 1 / (1 + float(angles.var(0).sum()) / HEAD_MOVES**2)
    return np.asarray(CHIN_FALLS * (1 - still * CHIN_SEEN) * gap + still * CHIN_SEEN * chin, np.float32)


def explained(rows: Floats, angles: Floats) -> Floats:
    """The part of rows `[n, c]` that is a quadratic function of the head's direction `[n, 2]`: ridge regression."""
    turn, nod = (angles - angles.mean(0)).T.astype(np.float64)
    design = np.stack([turn, nod, turn * turn, turn * nod, nod * nod], 1)
    design -= design.mean(0)
    normal = design.T @ design + len(rows) * HEAD_SURE**2 * np.eye(design.shape[1])
    return np.asarray(design @ np.linalg.solve(normal, design.T @ rows), np.float32)


def _shares(shown: Ints, count: int) -> Floats:
    """How much each reference counts in each idle frame, float32 `[n, count]`: it changes over some frames where `shown` jumps."""
    return over_time(np.eye(count, dtype=np.float32)[shown], CHANGE)


def smile_of(meshes: list[MouthShape], angles: Floats) -> float:
    """How much the clip's mouth is that of a smile, 0 … 1, by its width where the head is turned least."""
    turn = np.abs(angles[:, 0])
    facing = np.flatnonzero(turn <= np.quantile(turn, FACING))
    half = float(np.median([meshes[k].half for k in facing]))
    return float(np.clip((half - SMILE_HALF_WIDTHS[0]) / (SMILE_HALF_WIDTHS[1] - SMILE_HALF_WIDTHS[0]), 0, 1))


def rest_shapes(
    idle_shapes: tuple[MouthShape, ...],
    shapes: tuple[MouthShape, ...],
    references: Ints,
    shown: Ints,
    falls: Floats,
    smile: float,
) -> tuple[MouthShape, ...]:
    """Each idle frame's mouth with the lips together: its reference's form, where the idle frame has its own mouth and chin.

    A head that nods or turns carries lips and chin past the nose, for they lie at other depths. So they are not where the
    reference has them, even in a map that follows the nose. The upper lip's outer edge says where the lips are, for an opening
    hardly moves it; what an opening of the idle frame's own moved the chin is taken back (`falls`, as `fallen` says). Where the
    references are open themselves, closing them lifts the chin too, but for a `smile` (0 … 1); by `CHIN_LIFT` at most if no idle
    frame is closed.
    """
    tilt = np.stack([np.ones(SAMPLES), np.clip(S, -1.3, 1.3)])
    fit = np.linalg.pinv(tilt[:, np.abs(S) <= 1].T)
    lips = np.stack([idle_index.curves[OU] for idle_index in idle_shapes])[:, np.abs(S) <= 1] @ fit.T
    centres = np.array([idle_index.centre for idle_index in idle_shapes])
    places = np.column_stack([lips, centres])
    share = _shares(shown, len(references))
    moves = places[:, None] - places[references][None]
    rests = [closed(shape) for shape in shapes]
    lifts = np.array([(one.curves[CHIN] - rest.curves[CHIN]).max() for one, rest in zip(shapes, rests, strict=True)])
    lifts *= 1 - smile
    if lifts[0] > CHIN_LIFT:
        lifts = np.minimum(lifts, CHIN_LIFT)
    out = []
    for n, idle_index in enumerate(idle_shapes):
        curves = np.zeros((LEVELS, SAMPLES), np.float32)
        centre = half = lift = 0.0
        for k in np.flatnonzero(share[n] > 0):
            part, rest, move = float(share[n, k]), rests[k], moves[n, k]
            curves[:CHIN] += part * (rest.curves[:CHIN] + move[:2] @ tilt)
            centre += part * (rest.centre + float(move[2]))
            half += part * rest.half
            lift += part * (float(lifts[k]) + float(falls[n] - falls[references[k]]))
        curves[CHIN] = idle_index.curves[CHIN] - lift * JAW_WINDOW
        out.append(MouthShape(centre, half, ordered(curves)))
    return tuple(out)


def outlines(frames: Floats, landmarks: Floats, rests: tuple[MouthShape, ...]) -> Floats:
    """How far the face's outline is to the left and right of each mouth's middle, float32 `[n, 2]` in eye distances: at the lips,
    or below them where it is near."""
    out = np.empty((len(rests), 2), np.float32)
    for n, rest in enumerate(rests):
        points = to_mouth(frames[n], landmarks[n])
        line, below, chin = rest.curves[[IU, OL, CHIN], SAMPLES // 2]
        rows = line, below, below + JAW_NARROWS * (chin - below)
        for side, ids in enumerate(OUTLINE):
            chain = points[list(ids)]
            chain = chain[np.argsort(chain[:, 1])]
            ends = np.abs(np.interp(rows, chain[:, 1], chain[:, 0]) - rest.centre)
            out[n, side] = ends[0] + (ends.min() - ends[0]) * float(narrowness(ends.min()))
    return over_time(out, SETTLE)


def kept_beside(
    rests: tuple[MouthShape, ...], idle_shapes: tuple[MouthShape, ...], sides: Floats
) -> tuple[MouthShape, ...]:
    """The mouths at rest with the idle frames' own curves towards the face's outline, where nothing is to be moved up or down."""
    out = []
    for rest, own, ends in zip(rests, idle_shapes, sides, strict=True):
        curves = rest.curves.copy()
        curves[:CHIN] = own.curves[:CHIN] + (rest.curves[:CHIN] - own.curves[:CHIN]) * on_cheeks(rest, ends)
        out.append(MouthShape(rest.centre, rest.half, ordered(curves)))
    return tuple(out)

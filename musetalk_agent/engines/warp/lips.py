"""Where the lips of the reference frame really end: the mesh's inner contour, corrected by what the pixels say.

The mesh places the inner lips up to a tenth of the eye distance off, enough to leave a line of teeth on closed lips. Here each
column across the mouth is split into upper lip, inside and lower lip: the inside is what is darker than the lips, or less red
than they are (teeth). The best pair of curves is found by dynamic programming and is exact for its cost. In a mouth that the
mesh sees open, tooth, tongue and dark each have a colour of their own, which is learned from what the mesh encloses.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.engines.warp.lip_line import lip_line
from musetalk_agent.engines.warp.mouth_space import IL, IU, OL, OU, SAMPLES, Floats, MouthShape, S, ordered
from musetalk_agent.engines.warp.tooth_rows import lowered
from musetalk_agent.media_types import Pixels

COLUMNS = 81
STEP = 0.004
"""Row height of the search (eye distances): half a pixel of a face 125 px between the eyes."""
SIDE = 1.12
"""The inside is looked for a little past the mesh's corners."""
ABOVE, BELOW = 0.12, 0.16
"""How far above and below the mesh's lip line the inside is looked for at least (eye distances)."""
BEYOND = 0.85, 0.95
"""The same for a wide open mouth, in openings that the mesh sees: it reads 0.62 of the real one."""
ROWS = 100
"""A wide open mouth has larger rows, so that there are no more than this: the search's cost grows with their square."""
CUT = 0.010
"""The found edges are moved into the lips by this much, past the mixed pixels of the edge itself (eye distances)."""
DOUBTFUL = 0.035
"""Where the mesh sees lips this far apart, pale pixels under their line are teeth; otherwise they are a gleam on the lip."""
SHUT = 0.02
"""Where the mesh sees lips closer together than this, they may be closed whatever the pixels say (eye distances). One talker whose
teeth show reads 0.027."""
MISREAD = 0.03, 1.6
"""Of such lips pixels that say more than this (eye distances) and this multiple of the mesh's opening took a moustache, a shadow
or dark lips for the inside: so in 4 of 56 images of people, all with closed lips."""
LINE_ROWS = 6
"""Rows above and below the mesh's line in which the lips of such a mouth meet where no line is seen."""
LINE_SURE = 0.03
"""Depth of the dark line, in logarithms of light, from which on it counts fully."""
SLIT = 8
"""Rows under the line in which such teeth are looked for."""
DARK = 0.80
"""Pixels under this share of the lips' own luminance belong to the inside."""
BEND = float(np.float32(0.35))
"""Cost of moving an edge by one row from one column to the next, in rows of certain inside. Of float32, so that sums are exact."""
LEAP = 3
CLOSED_LINE = 0.05
"""A dark line up to this thick on the average (eye distances) may be the shadow between closed lips."""
PALE = 0.12
"""Least difference in redness (log of red over green) between lips and teeth."""
BRIGHT = 0.10
"""By how much of a lip's luminance teeth are brighter at least."""
OPEN = 0.045
"""Lips that the mesh sees this far apart, and that the pixels part too, are open (eye distances)."""
SURELY = 0.09
"""The same whatever the pixels say: the mesh errs by no more."""
WIDE = 0.12
"""Lips that the mesh sees further apart are apart by more than that, for it follows a shout only part of the way."""
SHOUT = 0.3
"""Share of dark pixels in what the mesh encloses of a wide opening from which on it is a shout: rows of teeth lie beyond it."""
TOOTH = 0.3
"""How much less red (log of red over green) than the skin around the mouth a tooth of a shout is, as a share of the skin's own
redness; half of it is undecided. Painted shouts: 0.2 and more. Lips, brown ones too, are as red as the skin or redder."""
LAG = 0.3
"""By how much of the mesh's opening a row of teeth may reach beyond it on either side and be believed: the mesh reads 0.62."""
LIP_KEPT = 0.8
"""Share of the lower lip's height in the mesh that it has at least under rows of teeth that the mesh took for it."""
FAR = 6.0
"""Doubt per eye distance away from the inside that the mesh sees."""


def refine(shape: MouthShape, frame: Floats, image: Pixels, lent: bool = True) -> MouthShape:
    """The shape with the inner edges of the lips where `image` (BGR) shows them; `frame` leads from mouth space to its pixels.

    Lips that are `lent` are cut out along the edges: no tooth may be left on them, so rows of teeth are looked for further below.
    """
    s = np.linspace(-SIDE, SIDE, COLUMNS, dtype=np.float32)
    line = np.interp(s, S, (shape.curves[IU] + shape.curves[IL]) / 2)
    mesh_gap = float((shape.curves[IL] - shape.curves[IU]).max())
    above, below = max(ABOVE, BEYOND[0] * mesh_gap), max(BELOW, BEYOND[1] * mesh_gap)
    step = max(STEP, (above + below) / ROWS)
    rows = np.arange(-above, below, step, dtype=np.float32)
    v = (line + rows[:, None]).astype(np.float32)
    u = np.broadcast_to(shape.u_of_s(s), v.shape)
    crop = sample(image, frame, u, v)
    outer = np.interp(s, S, shape.curves[OU]), np.interp(s, S, shape.curves[OL])
    inner = np.interp(s, S, shape.curves[IU]), np.interp(s, S, shape.curves[IL])
    score, teeth, light = _inside_score(crop, v, outer, inner)
    top, bottom = _best_interval(score)
    is_open = mesh_gap > SURELY or (mesh_gap > OPEN and _parted(teeth, light, top, bottom))
    if is_open:
        top, bottom = _best_interval(_open_score(crop, v, outer, inner, teeth))
    upper, lower = line + rows[0] + top * step, line + rows[0] + bottom * step
    if not is_open and not _parted(teeth, light, top, bottom):
        middle = _meeting(light, top, bottom, line)
        slit = _slit(teeth, middle - line - rows[0]) if mesh_gap > DOUBTFUL else 0.0
        return _with_inner(shape, s, middle, middle + slit)
    kernel = cv2.getGaussianKernel(9, 2.0).ravel()
    under = (
        lowered(lambda v: sample(image, frame, np.broadcast_to(u[0], v.shape), v), lower)
        if lent and mesh_gap > SURELY
        else lower
    )
    below_teeth = bool((under > lower).any())
    smooth = [np.convolve(np.pad(edge, 4, "edge"), kernel, "valid") for edge in (upper, under)]
    if mesh_gap > WIDE or below_teeth:
        smooth[1] = _bulging(s, smooth[1])
    fitted = [np.polyval(np.polyfit(s, edge, 6), s) for edge in (upper, lower)]
    upper, lower = np.minimum(smooth[0], fitted[0]), np.maximum(smooth[1], fitted[1])
    middle = (upper + lower) / 2
    half_gap = (np.maximum(lower - upper, 0) / 2 + CUT) * np.clip((SIDE - np.abs(s)) / 0.25, 0, 1)
    if mesh_gap < SHUT and 2 * float(half_gap.max()) > MISREAD[0] + MISREAD[1] * mesh_gap:
        middle = _line_seen(light, line)
        return _with_inner(shape, s, middle, middle)
    if below_teeth:
        shape = _lip_kept(shape, s, middle + half_gap)
    return _with_inner(shape, s, middle - half_gap, middle + half_gap)


def _lip_kept(shape: MouthShape, s: Floats, lower: NDArray[np.float64]) -> MouthShape:
    """The shape whose lower lip ends far enough under its inner edge `lower`: the mesh's lip was a row of teeth in part."""
    curves = shape.curves.copy()
    least = np.interp(S, s, lower) + LIP_KEPT * (curves[OL] - curves[IL])
    within = np.abs(S) < 1
    curves[OL][within] = np.maximum(curves[OL], least)[within]
    return MouthShape(shape.centre, shape.half, curves)


def sample(image: Pixels, frame: Floats, u: Floats, v: Floats) -> Pixels:
    """BGR pixels of `image` at mouth-space positions, linear, edges repeated."""
    x = frame[0, 0] * u + frame[0, 1] * v + frame[0, 2]
    y = frame[1, 0] * u + frame[1, 1] * v + frame[1, 2]
    mapped = cv2.remap(
        image, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(mapped, np.uint8)


def _inside_score(
    crop: Pixels, v: Floats, outer: tuple[NDArray[np.float64], ...], inner: tuple[NDArray[np.float64], ...]
) -> tuple[Floats, Floats, Floats]:
    """How surely each pixel `[rows, COLUMNS]` is inside the mouth, −1 … 1, how surely a tooth, and its luminance."""
    bgr = cv2.blur(crop.astype(np.float32), (3, 3)) + 6  # the offset keeps the redness of black pixels quiet
    light: Floats = np.asarray(bgr @ np.array([0.114, 0.587, 0.299], np.float32), np.float32)
    red: Floats = np.log(bgr[..., 2] / bgr[..., 1])
    middle = np.abs(np.linspace(-SIDE, SIDE, COLUMNS)) < 0.65
    upper = (v > outer[0] + 0.1 * (inner[0] - outer[0])) & (v < outer[0] + 0.6 * (inner[0] - outer[0])) & middle
    lower = (v > inner[1] + 0.5 * (outer[1] - inner[1])) & (v < inner[1] + 0.9 * (outer[1] - inner[1])) & middle
    near = (v > inner[0] - 0.025) & (v < inner[1] + 0.025) & middle
    if min(upper.sum(), lower.sum(), near.sum()) < 10:
        none: Floats = np.full(light.shape, -1, np.float32)
        return none, none, light
    dim = DARK * min(float(np.median(light[upper])), float(np.median(light[lower])))
    shown = red[near & (light > dim)]
    pale = float(np.percentile(shown, 8)) if shown.size else 0.0
    teeth = np.minimum(_unlike(light, red, upper, pale), _unlike(light, red, lower, pale))
    score = np.clip(np.maximum(teeth, (dim - light) / (0.25 * dim)), -1, 1)
    away = np.maximum(np.maximum(inner[0] - v, v - inner[1]), 0)
    within = (v > outer[0] + 0.3 * (inner[0] - outer[0])) & (v < outer[1] - 0.35 * (outer[1] - inner[1]))
    doubt = FAR * away * (1 + 3 * np.linspace(-SIDE, SIDE, COLUMNS) ** 2)
    return np.where(within, score - doubt, -1).astype(np.float32), teeth, light


def _open_score(
    crop: Pixels,
    v: Floats,
    outer: tuple[NDArray[np.float64], ...],
    inner: tuple[NDArray[np.float64], ...],
    teeth: Floats,
) -> Floats:
    """The score of a mouth that the mesh sees open: its inside may be tooth, tongue or dark, each with a colour of its own.

    What the mesh encloses for sure gives the colours of the inside, what it calls lip those of the lips.
    """
    bgr = cv2.blur(crop.astype(np.float32), (3, 3)) + 6
    blue, green, red = (np.log(bgr[..., k]) for k in range(3))
    light = np.log(bgr @ np.array([0.114, 0.587, 0.299], np.float32))
    colour = np.stack([light / 0.22, (red - green) / 0.10, (blue - green) / 0.14], -1).astype(np.float32)
    gap = inner[1] - inner[0]
    middle = np.abs(np.linspace(-SIDE, SIDE, COLUMNS)) < 0.8
    core = (v > inner[0] + 0.2 * gap) & (v < inner[1] - 0.2 * gap) & middle
    upper = (v > outer[0] + 0.1 * (inner[0] - outer[0])) & (v < outer[0] + 0.6 * (inner[0] - outer[0])) & middle
    lower = (v > inner[1] + 0.4 * (outer[1] - inner[1])) & (v < inner[1] + 0.9 * (outer[1] - inner[1])) & middle
    inside, one, other = (_kinds(colour, *area) for area in ((core, 3), (upper, 2), (lower, 2)))
    lips = np.concatenate([_unmixed(one, other, inside), _unmixed(other, one, inside)])
    widest = float(gap.max())
    deep = np.minimum(v - inner[0], inner[1] - v) / max(widest, 1e-3)
    within = v > outer[0] + 0.25 * (inner[0] - outer[0]) - 0.02
    within &= v < outer[1] - 0.25 * (outer[1] - inner[1])
    score = np.maximum(0.4 * (_far(colour, lips) - _far(colour, inside)), 0.5 * teeth).clip(-1, 1)
    skin = (v > outer[0] - 0.07) & (v < outer[0] - 0.02) & middle
    under = (v > outer[1] + 0.01) & (v < outer[1] + 0.06) & middle
    if widest > WIDE and skin.any():  # the mesh lags behind a shout, its outer lips too, but the dark is no lip
        dark = np.clip((float(np.median(light[skin])) - 1.0 - light) / 0.2, 0, 1)
        score += 0.8 * dark
        within |= (dark > 0.5) & (v > outer[0] - 0.1 * gap) & (v < outer[1] + 0.6 * gap)
        if under.any() and core.any() and float((dark[core] > 0.5).mean()) > SHOUT:
            redness = red - green
            above, below = float(np.median(redness[skin])), float(np.median(redness[under]))
            own = max(above, (above + below) / 2)
            pale = ((own - redness) / (TOOTH * max(own, PALE)) * 2 - 1).clip(-1, 1)
            band = (v > outer[0] + 0.2 * (inner[0] - outer[0])) & (v < outer[1] - 0.2 * (outer[1] - inner[1]))
            pale[(dark > 0.5) | ~band] = -1
            score = np.maximum(score, 0.8 * pale)
            reached = _as_far_as(pale, v < (inner[0] + inner[1]) / 2)
            deep = np.where(reached, np.maximum(deep, np.minimum(deep + LAG, 0)), deep)
            within &= band | (dark > 0.5)
    prior = np.where(deep > 0, np.minimum(4 * deep, 0.8), 3.0 * deep)
    return np.where(within, score + prior, -1).astype(np.float32)


def _as_far_as(pale: Floats, upper: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """From the middle of the mouth to the furthest tooth of each column; `upper` is the half above the middle."""
    teeth = cv2.blur(pale, (9, 3)) > 0
    above = np.logical_or.accumulate(teeth & upper)
    below = np.logical_or.accumulate((teeth & ~upper)[::-1])[::-1]
    return np.asarray(np.where(upper, above, below), np.bool_)


def _bulging(s: Floats, edge: NDArray[np.float64]) -> NDArray[np.float64]:
    """The lowest edge that curves one way only: a tongue of the lips' colour leaves a bay in what was found."""
    hull: list[int] = []
    for k in range(len(s)):
        while len(hull) > 1 and (edge[hull[-1]] - edge[hull[-2]]) * (s[k] - s[hull[-2]]) < (
            edge[k] - edge[hull[-2]]
        ) * (s[hull[-1]] - s[hull[-2]]):
            hull.pop()
        hull.append(k)
    return np.interp(s, s[hull], edge[hull])


def _kinds(colour: Floats, where: NDArray[np.bool_], kinds: int) -> Floats:
    """The commonest colours `[kinds, 3]` of the pixels `where`; none where there are too few of them."""
    pixels = colour[where]
    if len(pixels) < 4 * kinds:
        return np.zeros((0, 3), np.float32)
    cv2.setRNGSeed(1)
    labels, stop = np.zeros(len(pixels), np.int32), (cv2.TERM_CRITERIA_COUNT, 10, 0)
    return np.asarray(cv2.kmeans(pixels, kinds, labels, stop, 1, cv2.KMEANS_PP_CENTERS)[2], np.float32)


def _unmixed(lip: Floats, other: Floats, inside: Floats) -> Floats:
    """The colours of one lip without those that are the inside's: where the mesh lies low, its upper lip is teeth."""
    return lip[_far(lip, inside) > 0.5 * _far(lip, other)]


def _far(colour: Floats, kinds: Floats) -> Floats:
    """Distance of each colour `[…, 3]` from the nearest of `kinds`."""
    if not len(kinds):
        return np.full(colour.shape[:-1], 3, np.float32)
    return np.asarray(np.linalg.norm(colour[..., None, :] - kinds, axis=-1).min(-1), np.float32)


def _parted(teeth: Floats, light: Floats, top: NDArray[np.float64], bottom: NDArray[np.float64]) -> bool:
    """Whether the lips are apart: wide enough, or with something bright between them. A thin dark line is where they meet."""
    middle = np.flatnonzero(np.abs(np.linspace(-SIDE, SIDE, COLUMNS)) < 0.6)
    thickness = float((bottom - top)[middle].mean()) * STEP
    if thickness > CLOSED_LINE:
        return True
    rows = np.arange(teeth.shape[0])[:, None]
    inside = ((rows >= top) & (rows < bottom))[:, middle]
    if not inside.any():
        return False
    lit = light[:, middle]
    # A peak between two troughs is a row of teeth; a line has a trough only, and a gleam on a lip is narrower.
    above, below = np.minimum.accumulate(lit, 0), np.minimum.accumulate(lit[::-1], 0)[::-1]
    peaks = np.where(inside, lit / np.maximum(np.maximum(above, below), 1) - 1, 0).max(0)
    pale = float((teeth[:, middle][inside] > 0).mean()) > 0.33 and thickness > 2 * STEP
    return pale or float(np.percentile(peaks, 60)) > 0.05


def _meeting(
    light: Floats, top: NDArray[np.float64], bottom: NDArray[np.float64], line: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Where closed lips meet, `v` per column: a smooth curve through the darkest pixels near what was found.

    `line` is the mesh's lip line, in whose form the curve ends: at the corners stubble and folds are as dark as lips.
    """
    s = np.linspace(-SIDE, SIDE, COLUMNS)
    rows = np.arange(light.shape[0])[:, None]
    near = (rows >= top - 2) & (rows < bottom + 2)
    darkness = np.where(near, np.maximum(light.max(0) - light, 0), 0) ** 4
    row = (darkness * (rows + 0.5)).sum(0) / np.maximum(darkness.sum(0), 1e-6)
    seen = line - ABOVE + row * STEP
    sure = np.where(darkness.any(0), np.clip((1.05 - np.abs(s)) / 0.3, 0, 1), 0)
    shift = float(np.median((seen - line)[sure > 0.9])) if (sure > 0.9).any() else 0.0
    both = np.concatenate([seen, line + shift])
    return np.asarray(
        np.polyval(np.polyfit(np.tile(s, 2), both, 5, w=np.concatenate([sure, 0.3 + 0.3 * (1 - sure)])), s)
    )


def _line_seen(light: Floats, line: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where lips meet that the mesh sees closed, and the pixels wide open: a smooth curve along the dark line that is seen.

    `line` is the mesh's, near which the darkest pixels are taken where no line is seen.
    """
    s = np.linspace(-SIDE, SIDE, COLUMNS)
    found = lip_line(light, ABOVE / STEP, np.abs(s) < 0.8)
    if found is None:
        row = np.full(COLUMNS, ABOVE / STEP)
        return _meeting(light, row - LINE_ROWS, row + LINE_ROWS, line)
    row, depth = found
    seen = line - ABOVE + row * STEP
    within = np.clip((1.05 - np.abs(s)) / 0.2, 0, 1)  # beyond the corners are hairs and folds
    sure = np.minimum(depth / LINE_SURE, 1) * within
    both = np.concatenate([seen, line + float(np.average(seen - line, weights=sure))])
    return np.asarray(np.polyval(np.polyfit(np.tile(s, 2), both, 6, w=np.concatenate([sure, 0.3 * (1 - sure)])), s))


def _slit(teeth: Floats, row: NDArray[np.float64]) -> NDArray[np.float64]:
    """Depth of the teeth that show right under the line of nearly closed lips, per column (eye distances)."""
    first = np.clip(np.rint(row / STEP).astype(int) + 1, 0, teeth.shape[0] - 1)
    below = np.minimum(first + np.arange(SLIT)[:, None], teeth.shape[0] - 1)
    pale = np.take_along_axis(teeth, below, 0) > 0
    last = np.where(pale, np.arange(1, SLIT + 1)[:, None], 0).max(0)
    depth = np.where(pale.mean(0) >= 0.3, last * STEP + CUT / 2, 0).astype(np.float32)
    wide = cv2.dilate(depth[None], np.ones((1, 7), np.uint8))
    return np.asarray(cv2.GaussianBlur(wide, (9, 1), 2.0).ravel(), np.float64)


def _unlike(light: Floats, red: Floats, lip: NDArray[np.bool_], pale: float) -> Floats:
    """How much more like teeth than like this lip each pixel is: brighter, or paler; 0 is undecided."""
    lip_light, lip_red = float(np.median(light[lip])), float(np.median(red[lip]))
    brighter = (light / lip_light - 1) / BRIGHT - 1
    paler = (lip_red - red) / max(lip_red - pale, PALE) * 2 - 1
    return np.asarray(np.maximum(brighter, paler), np.float32)


def _best_interval(score: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """First and last row edge of the inside in each column, a path of least cost through all intervals.

    Sums are exact: of paths that are equally good the same is taken on every machine.
    """
    rows, columns = score.shape
    total = np.vstack([np.zeros((1, columns)), np.cumsum(score, 0, dtype=np.float64)])
    starts, ends = np.meshgrid(np.arange(rows + 1), np.arange(rows + 1), indexing="ij")
    never = -1e6
    legal = np.where(ends >= starts, 0, never)
    best = np.where(ends == starts, 0, never)
    came = np.zeros((2, columns, rows + 1, rows + 1), np.int8)
    for column in range(columns):
        # a step costs the same for either edge, so that the best step of the two is the best of each
        best, came[1, column] = _best_step(best, 1)
        best, came[0, column] = _best_step(best, 0)
        best += legal + total[:, column] - total[:, column, None]
    best = np.where(ends == starts, best, never)
    top, bottom = (int(i) for i in np.unravel_index(int(best.argmax()), best.shape))
    path = np.zeros((2, columns))
    for column in range(columns - 1, -1, -1):
        path[:, column] = top, bottom
        top += int(came[0, column, top, bottom])
        bottom += int(came[1, column, top, bottom])
    return path[0], path[1]


def _best_step(best: NDArray[np.float64], axis: int) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
    """The most that a step of at most LEAP rows along `axis` leads to, less its cost, and that step."""
    rows = best.shape[axis]
    most, step = np.full_like(best, -np.inf), np.zeros(best.shape, np.int8)
    for leap in range(-LEAP, LEAP + 1):
        begin, end = max(0, -leap), rows - max(0, leap)
        here, there = ((slice(None),) * axis + (slice(k, k + end - begin),) for k in (begin, begin + leap))
        value = best[there] - BEND * abs(leap)
        better = value > most[here]
        np.copyto(most[here], value, where=better)
        np.copyto(step[here], leap, where=better, casting="unsafe")
    return most, step


def _with_inner(shape: MouthShape, s: Floats, upper: NDArray[np.float64], lower: NDArray[np.float64]) -> MouthShape:
    """The shape with new inner edges, its lips' line beyond the corners continued, and its outer edges kept outside."""
    curves = shape.curves.copy()
    within = np.abs(S) <= SIDE
    curves[IU][within] = np.interp(S[within], s, upper)
    curves[IL][within] = np.interp(S[within], s, lower)
    for side, edge in ((S < -SIDE, 0), (S > SIDE, -1)):
        shift = (upper[edge] + lower[edge]) / 2 - curves[IU][side][-1 if edge == 0 else 0]
        curves[:4, side] += np.float32(shift)
    assert curves.shape[1] == SAMPLES
    return MouthShape(shape.centre, shape.half, ordered(curves))

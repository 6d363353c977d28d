"""How well weights do on real talkers, through the very code that runs in the product.

Run: `python judge.py CACHE WEIGHTS…`. Each of WEIGHTS is a file (its talkers were all seen, or none: you must know) or a folder
made by `real.py --folds` and `finish.py`, whose files hold the names of the talkers that they have not seen; only those are judged
by them. Several folders are several seeds: every figure is printed for each, then the mean and the spread.

Figures, all at lag 0 unless a lag is named: a clip's correlation between the aperture that is made in frame k and the real one of
frame k; the same given the mean mouth of the other talkers (partial correlation); medians over a talker's clips, at most 30 of
them, then over talkers with two clips and more. Best lag: of the mean of a talker's curves, by half frames; positive is late.
Closures: share of /p b m/ (by the words' times) whose made aperture reaches the lowest quarter of its clip's range (5th to 95th
percentile of its speech) within a frame of the closure; chance: the same at every other moment of speech.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import talkers
from evaluate import drawn
from numpy.typing import NDArray
from talkers import FPS, FRAMES, Clip

from musetalk_agent.features.phonemes import ROUNDING, TUCK
from musetalk_agent.features.phonemes import WIDTH as SPREAD
from musetalk_agent.features.visemes import VisemeFeatures

MOST = 30
LAGS = np.arange(-6, 7)  # half frames
_REACH = 1  # frames beside a closure that count as it
_FULL = 0.12  # aperture at opening 1, in outer eye distances
Array = NDArray[np.floating]

#: Where in a word lips meet or tuck: share of the word's length. From the spellings of the corpus's 51 words.
CLOSED_AT = {
    **dict.fromkeys(("bin", "blue", "by", "place", "please", "b", "p"), (0.0,)),
    "m": (0.85,),
}
TUCKED_AT = {"four": (0.05,), "five": (0.05, 0.8), "f": (0.75,), "v": (0.05,)}


@dataclass
class Talker:
    """What was seen of one talker: a row for each clip."""

    lag0: list[float] = field(default_factory=list)
    given_mean: list[float] = field(default_factory=list)
    by_lag: list[list[float]] = field(default_factory=list)
    closed: list[bool] = field(default_factory=list)
    chance: list[bool] = field(default_factory=list)
    really: list[bool] = field(default_factory=list)
    really_chance: list[bool] = field(default_factory=list)
    tucked: list[bool] = field(default_factory=list)
    tuck_chance: list[bool] = field(default_factory=list)
    spread: list[float] = field(default_factory=list)
    size: list[float] = field(default_factory=list)


def chosen(clips: Sequence[Clip]) -> list[Clip]:
    """At most `MOST`, spread over the list."""
    index = np.unique(np.linspace(0, len(clips) - 1, min(MOST, len(clips))).round().astype(int))
    return [clips[i] for i in index]


def filled(track: Array) -> Array:
    """Without holes: frames without a face are bridged."""
    seen = np.isfinite(track)
    return np.interp(np.arange(len(track)), np.flatnonzero(seen), track[seen])


def correlation(a: Array, b: Array) -> float:
    """Pearson; 0 where one of the two does not move."""
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 1e-6 and b.std() > 1e-6 else 0.0


def mean_mouths(corpus: dict[str, list[Clip]]) -> dict[str, Array]:
    """By talker: the mean mouth of all the others, each talker scaled to its own range and counted once."""
    own = {}
    for name, clips in corpus.items():
        tracks = np.stack([filled(clip.aperture) for clip in chosen(clips)])
        low, high = np.percentile(tracks, [5, 95])
        own[name] = ((tracks - low) / (high - low)).mean(0)
    return {name: np.mean([track for other, track in own.items() if other != name], axis=0) for name in corpus}


def shifted(track: Array, half_frames: int) -> Array:
    """The track as it would be, were it `half_frames` earlier."""
    frames = np.arange(len(track))
    out: Array = np.interp(frames + half_frames / 2, frames, track)
    return out


def _partial(a: Array, b: Array, given: Array) -> float:
    basis = np.column_stack([np.ones(len(a)), given])
    rest = [y - basis @ np.linalg.lstsq(basis, y, rcond=None)[0] for y in (a, b)]
    return correlation(*rest)


def marks(clip: Clip, where: dict[str, tuple[float, ...]]) -> list[int]:
    """Frames of a kind of sound."""
    at = [start + share * (end - start) for word, start, end in clip.words for share in where.get(word, ())]
    return [round(second * FPS) for second in at if 2 <= round(second * FPS) < FRAMES - 2]


def speaking(clip: Clip) -> NDArray[np.bool_]:
    """By frame: between the beginning and the end of a word, by the words' times."""
    out = np.zeros(FRAMES, bool)
    for word, start, end in clip.words:
        if word not in ("sil", "sp"):
            out[int(start * FPS) : int(end * FPS) + 1] = True
    return out


def _reached(track: Array, said: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """By frame: the lowest quarter of the range in speech is reached within `_REACH` frames."""
    low, high = np.percentile(track[said], [5, 95])
    lowest = np.min([np.roll(track, k) for k in range(-_REACH, _REACH + 1)], axis=0)
    out: NDArray[np.bool_] = lowest <= low + (high - low) / 4
    return out


def made_at(features: VisemeFeatures, clip: Clip, fps: int) -> Array:
    """Vectors [75, 5] of a stream at `fps`, as they are at the middles of the clip's frames."""
    stream = features.stream(fps)
    vectors = np.array(stream.push(clip.sound) + stream.flush())
    own, middles = (np.arange(len(vectors)) + 0.5) / fps, (np.arange(FRAMES) + 0.5) / FPS
    return np.stack([np.interp(middles, own, column) for column in vectors.T], 1)


def look(features: VisemeFeatures, clip: Clip, mean_mouth: Array, into: Talker, fps: int) -> None:
    """Adds one clip's figures."""
    vectors = made_at(features, clip, fps)
    made, real = drawn(vectors), filled(clip.aperture)
    into.lag0.append(correlation(made, real))
    into.given_mean.append(_partial(made, real, mean_mouth))
    into.by_lag.append([correlation(shifted(made, lag), real) for lag in LAGS])
    width = filled(clip.width)
    into.spread.append(correlation(vectors[:, SPREAD] - vectors[:, ROUNDING], width))
    into.size.append(float(np.percentile(made, 95) * _FULL))
    said = speaking(clip)
    if not said.any():
        return
    shut, tucked = marks(clip, CLOSED_AT), marks(clip, TUCKED_AT)
    near = {frame + k for frame in shut for k in range(-3, 4)}
    far = [k for k in np.flatnonzero(said) if k not in near]
    reached = _reached(made, said)
    into.closed += reached[shut].tolist()
    into.chance += reached[far].tolist()
    into.really += _reached(real, said)[shut].tolist()
    into.really_chance += _reached(real, said)[far].tolist()
    tuck = np.max([np.roll(vectors[:, TUCK], k) for k in (-1, 0, 1)], axis=0) > 0.5
    near = {frame + k for frame in tucked for k in range(-3, 4)}
    into.tucked += tuck[tucked].tolist()
    into.tuck_chance += tuck[[k for k in np.flatnonzero(said) if k not in near]].tolist()


def talkers_seen(corpus: dict[str, list[Clip]], weights: Path, fps: int = FPS) -> dict[str, Talker]:
    """Every talker by weights that have not seen it (a folder), or by one file."""
    means, out = mean_mouths(corpus), {}
    for path in sorted(weights.glob("*.npz")) if weights.is_dir() else [weights]:
        features = VisemeFeatures.load(path)
        names = path.stem.split("_") if weights.is_dir() else list(corpus)
        for name in names:
            out[name] = Talker()
            for clip in chosen(corpus[name]):
                look(features, clip, means[name], out[name], fps)
    return out


def best_lag_ms(talker: Talker) -> float:
    """Positive: the made mouth is late."""
    return float(LAGS[int(np.argmax(np.mean(talker.by_lag, axis=0)))] * 500 / FPS)


def summary(found: dict[str, Talker]) -> dict[str, float]:
    """The bars' figures."""
    several = [t for t in found.values() if len(t.lag0) >= 2]
    many = lambda pick: [flag for t in several for flag in pick(t)]  # noqa: E731
    return {
        "lag 0": float(np.median([np.median(t.lag0) for t in several])),
        "given mean": float(np.median([np.median(t.given_mean) for t in several])),
        "lag 0, every talker": float(np.median([np.median(t.lag0) for t in found.values()])),
        "given mean, every talker": float(np.median([np.median(t.given_mean) for t in found.values()])),
        "best lag ms": float(np.median([best_lag_ms(t) for t in several])),
        "best lag ms, every talker": float(np.median([best_lag_ms(t) for t in found.values()])),
        "closed": float(np.mean(many(lambda t: t.closed))),
        "closed chance": float(np.mean(many(lambda t: t.chance))),
        "closed really": float(np.mean(many(lambda t: t.really))),
        "closed really chance": float(np.mean(many(lambda t: t.really_chance))),
        "tucked": float(np.mean(many(lambda t: t.tucked))),
        "tucked chance": float(np.mean(many(lambda t: t.tuck_chance))),
        "width": float(np.median([np.median(t.spread) for t in several])),
        "p95 aperture": float(np.median([np.median(t.size) for t in several])),
    }


def _print_talkers(found: dict[str, Talker]) -> None:
    for name in sorted(found, key=lambda n: int(n.lstrip("s")) if n.lstrip("s").isdigit() else 0):
        t = found[name]
        print(
            f"  {name:4s} {len(t.lag0):2d} clips: {np.median(t.lag0):.3f} given mean {np.median(t.given_mean):.3f} "
            f"best lag {best_lag_ms(t):+.0f} ms, closed {np.mean(t.closed or [np.nan]):.2f} of {len(t.closed)}, "
            f"chance {np.mean(t.chance or [np.nan]):.2f}"
        )


def spread(rows: Iterable[dict[str, float]]) -> None:
    """Mean and range of each figure over seeds."""
    columns: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row.items():
            columns.setdefault(key, []).append(value)
    for key, values in columns.items():
        print(f"{key}: mean {np.mean(values):.3f}, {min(values):.3f} … {max(values):.3f}, of {len(values)}")


def main() -> None:
    """Prints everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("weights", type=Path, nargs="+")
    parser.add_argument("--fps", type=int, default=FPS, help="frames per second of what is made")
    parser.add_argument("--brief", action="store_true", help="no line for each talker")
    options = parser.parse_args()
    corpus, rows = talkers.load(options.cache), []
    for weights in options.weights:
        found = talkers_seen(corpus, weights, options.fps)
        rows.append(summary(found))
        print(weights, {key: round(value, 3) for key, value in rows[-1].items()})
        if not options.brief:
            _print_talkers(found)
    if len(rows) > 1:
        spread(rows)


if __name__ == "__main__":
    main()

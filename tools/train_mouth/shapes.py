"""Rounding, width, tucks and the depth of closures on real talkers, by the words' times: made lips beside the real ones.

Run: `python shapes.py CACHE WEIGHTS`, WEIGHTS as for `judge.py`. For rounded sounds (/w u: ow/) and spread ones (/i: eɪ ɪ/) the
chance that one of them shows more than a moment of other speech by the same talker does (0.5: no better than chance), median over
talkers with two clips and more. Real lips are judged likewise: by the distance of their corners, and by aperture over that.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import judge
import numpy as np
import talkers
from evaluate import drawn
from numpy.typing import NDArray
from talkers import FPS, Clip

from musetalk_agent.features.phonemes import ROUNDING, TUCK, WIDTH
from musetalk_agent.features.visemes import VisemeFeatures

#: Where in a word lips are round or spread: share of the word's length. From the spellings of the corpus's words.
ROUNDED_AT = {
    "blue": 0.75,
    "two": 0.75,
    "soon": 0.55,
    "q": 0.8,
    "u": 0.8,
    "one": 0.15,
    "zero": 0.9,
    "o": 0.7,
    "w": 0.85,
}
SPREAD_AT = {
    **dict.fromkeys("bcdgptv", 0.7),
    "three": 0.8,
    "please": 0.55,
    "green": 0.6,
    "eight": 0.4,
    "a": 0.5,
    "again": 0.75,
    "six": 0.3,
    "e": 0.6,
    "z": 0.8,
}
_BESIDE = 3  # frames around a marked sound that belong to neither kind
Array = NDArray[np.floating]
Rows = dict[str, list[Array]]
_COLUMNS = 4  # made rounding, made width, real width, real aperture over width


def add_shapes(rows: Rows, clip: Clip, vectors: Array) -> None:
    """Adds a clip's `round` and `spread` sounds (means of three frames) and its `other` frames, float[4] each."""
    real, spread = judge.filled(clip.aperture), judge.filled(clip.width)
    said = judge.speaking(clip)
    if not said.any():
        return
    relative = (spread - spread[said].mean()) / (spread[said].std() + 1e-9)
    table = np.stack([vectors[:, ROUNDING], vectors[:, WIDTH], relative, real / spread], 1)
    other = said.copy()
    for kind, where in (("round", ROUNDED_AT), ("spread", SPREAD_AT)):
        for frame in judge.marks(clip, {word: (share,) for word, share in where.items()}):
            rows.setdefault(kind, []).append(table[frame - 1 : frame + 2].mean(0))
            other[max(0, frame - _BESIDE) : frame + _BESIDE + 1] = False
    rows.setdefault("other", []).extend(table[other])


def chance_of_more(some: Array, others: Array) -> float:
    """How often one of `some` is larger than one of `others`; ties count half."""
    a, b = np.asarray(some)[:, None], np.asarray(others)[None]
    return float((a > b).mean() + (a == b).mean() / 2)


def compared(rows: Rows) -> dict[str, float]:
    """One talker's figures."""
    rounded, spread, other = (np.array(rows[kind]).reshape(-1, _COLUMNS).T for kind in ("round", "spread", "other"))
    return {
        "rounded against other, made": chance_of_more(rounded[0], other[0]),
        "rounded against other, real corners": chance_of_more(-rounded[2], -other[2]),
        "rounded against other, real aperture over width": chance_of_more(rounded[3], other[3]),
        "rounded against spread, made": chance_of_more(rounded[0], spread[0]),
        "rounded against spread, real corners": chance_of_more(-rounded[2], -spread[2]),
        "spread against other, made": chance_of_more(spread[1], other[1]),
        "spread against other, real corners": chance_of_more(spread[2], other[2]),
    }


def depths(clip: Clip, vectors: Array) -> list[tuple[float, float]]:
    """For each /p b m/: the least opening within a frame of it, made and real, as shares of the 95th percentile in speech above
    the 5th.
    """
    said = judge.speaking(clip)
    out: list[tuple[float, float]] = []
    for frame in judge.marks(clip, judge.CLOSED_AT):
        least = []
        for track in (drawn(vectors), judge.filled(clip.aperture)):
            low, high = np.percentile(track[said], [5, 95])
            least.append(float((track[frame - 1 : frame + 2].min() - low) / (high - low)))
        out.append((least[0], least[1]))
    return out


def tucks(clip: Clip, vectors: Array) -> list[tuple[str, bool]]:
    """For each /f v/: its word, and whether the lower lip tucks within a frame."""
    places = [(word, share) for word, shares in judge.TUCKED_AT.items() for share in shares]
    return [
        (f"{word} {share:.2f}", bool(vectors[frame - 1 : frame + 2, TUCK].max() > 0.5))
        for word, share in places
        for frame in judge.marks(clip, {word: (share,)})
    ]


def _print(found: dict[str, Rows], deep: Sequence[tuple[float, float]], tucked: Sequence[tuple[str, bool]]) -> None:
    several = [compared(rows) for rows in found.values() if {"round", "spread"} <= rows.keys()]
    counts = {
        kind: sum(len(rows[kind]) for rows in found.values() if kind in rows) for kind in ("round", "spread", "other")
    }
    print(counts)
    for key in several[0]:
        values = [figures[key] for figures in several]
        print(f"{key}: {np.median(values):.2f} ({min(values):.2f} … {max(values):.2f})")
    made, real = np.array(deep).T
    for name, values in (("made", made), ("real", real)):
        print(f"{len(deep)} closures, {name}: least opening of the range, median {np.median(values):.2f}, ", end="")
        print(f"75th percentile {np.percentile(values, 75):.2f}, 90th {np.percentile(values, 90):.2f}")
    for place in sorted({place for place, _ in tucked}):
        hits = [hit for other, hit in tucked if other == place]
        print(f"tuck in {place}: {np.mean(hits):.0%} of {len(hits)}")


def main() -> None:
    """Prints everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("weights", type=Path)
    options = parser.parse_args()
    corpus = {name: clips for name, clips in talkers.load(options.cache).items() if len(clips) >= 2}
    found: dict[str, Rows] = {name: {} for name in corpus}
    deep: list[tuple[float, float]] = []
    tucked: list[tuple[str, bool]] = []
    for path in sorted(options.weights.glob("*.npz")) if options.weights.is_dir() else [options.weights]:
        features = VisemeFeatures.load(path)
        for name in path.stem.split("_") if options.weights.is_dir() else corpus:
            for clip in judge.chosen(corpus.get(name, [])):
                vectors = judge.made_at(features, clip, FPS)
                add_shapes(found[name], clip, vectors)
                deep += depths(clip, vectors)
                tucked += tucks(clip, vectors)
    _print(found, deep, tucked)


if __name__ == "__main__":
    main()

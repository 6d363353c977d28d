"""Figures of exported weights, through the very code that runs in the product.

Run: `python evaluate.py CACHE WEIGHTS.npz [--brief]`, or with a folder of `finetune.py --leave-one-out`. Clips are judged
as a viewer samples frames: half way
between frame k and the next, against the real lips, at lag 0.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import augment
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.features.phonemes import CLOSURE, JAW, LIP_TUCKS, LIPS_MEET, SILENCE, TUCK
from musetalk_agent.features.visemes import VisemeFeatures

RATE, FPS, FRAME = 16_000, 25, 640
Array = NDArray[np.float32]


def mouth(features: VisemeFeatures, sound: NDArray[np.int16]) -> Array:
    """Articulation by frame [frames, 5]."""
    stream = features.stream(FPS)
    return np.array(stream.push(sound) + stream.flush())


def drawn(vectors: Array) -> Array:
    """The aperture the renderer draws, 1 = full."""
    out: Array = vectors[:, JAW] * (1 - vectors[:, CLOSURE])
    return out


def _correlation(a: Array, b: Array) -> float:
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 1e-9 and b.std() > 1e-9 else 0.0


def clip_figures(features: VisemeFeatures, cache: Path) -> dict[str, tuple[float, float]]:
    """For every clip: correlation at lag 0, and the same given the mean mouth of the others."""
    clips = {path.stem: dict(np.load(path)) for path in sorted((cache / "clips").glob("*.npz"))}
    out = {}
    for name, clip in clips.items():
        real = clip["aperture"]
        frames = drawn(mouth(features, clip["sound"]))
        made = np.interp(np.arange(len(real)) + 0.5, np.arange(len(frames)), frames)
        template = np.mean([other["aperture"] for key, other in clips.items() if key != name], axis=0)
        basis = np.column_stack([np.ones(len(real)), template])
        rest = [y - basis @ np.linalg.lstsq(basis, y, rcond=None)[0] for y in (real, made)]
        out[name] = _correlation(real, made), _correlation(*rest)
    return out


def lip_figures(features: VisemeFeatures, path: Path, seconds: int = 240) -> dict[str, float]:
    """Closures and tucks on labelled speech: how often within ±40 ms of the sound's span, and how often by chance."""
    stored = np.load(path)
    sound, spans = stored["sound"][: seconds * RATE], stored["spans"]
    spans = spans[spans[:, 2] < len(sound) - RATE]
    vectors = mouth(features, sound)
    made = drawn(vectors)
    speaking = np.zeros(len(made), bool)
    for kind, start, end in spans:
        speaking[start // FRAME : end // FRAME + 1] |= kind != SILENCE
    low = np.quantile(made[speaking], 0.05)
    quarter = low + (np.quantile(made[speaking], 0.95) - low) / 4
    frames_of = lambda s, e: slice(max(0, (s - 320) // FRAME), (e + 320) // FRAME + 1)  # noqa: E731
    inner = [spans[i] for i in range(1, len(spans) - 1) if spans[i - 1][0] != SILENCE and spans[i + 1][0] != SILENCE]
    hits = {"closed": [], "chance": [], "tucked": [], "tuck chance": [], "vowels pressed": []}  # type: ignore[var-annotated]
    for kind, start, end in inner:
        here = frames_of(start, end)
        if kind in LIPS_MEET:
            hits["closed"].append(made[here].min() <= quarter)
        else:
            hits["chance"].append(made[here].min() <= quarter)
        if kind == LIP_TUCKS:
            hits["tucked"].append(vectors[here, TUCK].max() > 0.5)
        elif kind not in LIPS_MEET:
            hits["tuck chance"].append(vectors[here, TUCK].max() > 0.5)
        if kind >= 15:  # vowels
            hits["vowels pressed"].append(vectors[(start + end) // 2 // FRAME, CLOSURE] > 0.5)
    return {name: float(np.mean(values)) for name, values in hits.items()} | {"range": float(quarter * 4)}


def noise_figures(features: VisemeFeatures, count: int = 6) -> dict[str, float]:
    """95th percentile of the aperture (1 = full) on sounds that are not speech, worst of `count` tries at five levels."""
    kinds = dict(zip(("white", "pink", "brownish", "hum", "clicks", "breath", "tones"), augment.NOISES, strict=True))
    rng = np.random.default_rng(99)
    out = {}
    for name, make in kinds.items():
        worst = []
        for level in (-50, -40, -30, -20, -12):
            for _ in range(count):
                sound = make(rng, 5 * RATE) * 10 ** (level / 20)
                heard = (np.clip(sound, -1, 1) * 32767).astype(np.int16)
                worst.append(float(np.quantile(drawn(mouth(features, heard)), 0.95)))
        out[name] = float(np.mean(np.array(worst) < 0.06))
        out[name + " worst"] = max(worst)
    return out


def loudness(features: VisemeFeatures, sound: NDArray[np.int16]) -> dict[int, float]:
    """p95 of the aperture by level (dBFS)."""
    x = sound.astype(np.float32) / np.sqrt(np.mean(sound.astype(np.float32) ** 2))
    return {
        level: float(
            np.quantile(
                drawn(mouth(features, np.clip(x * 32767 * 10 ** (level / 20), -32768, 32767).astype(np.int16))), 0.95
            )
        )
        for level in (-35, -25, -15, -10)
    }


def _tell(figures: dict[str, tuple[float, float]]) -> None:
    for name, (r, partial) in figures.items():
        print(f"{name}: r {r:.2f}, given the mean mouth {partial:.2f}")
    print("median", *np.round(np.median(list(figures.values()), axis=0), 3))
    print("mean", *np.round(np.mean(list(figures.values()), axis=0), 3))


def main() -> None:
    """Prints everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--brief", action="store_true", help="clips only")
    options = parser.parse_args()
    if options.weights.is_dir():
        found = {path.stem: VisemeFeatures.load(path) for path in sorted(options.weights.glob("*.npz"))}
        _tell({name: clip_figures(features, options.cache)[name] for name, features in found.items()})
        return
    features = VisemeFeatures.load(options.weights)
    _tell(clip_figures(features, options.cache))
    if options.brief:
        return
    for name in ("festival-ked_diphone", "piper-5", "flite-slt-1"):
        told = lip_figures(features, options.cache / "corpus" / f"{name}.npz")
        print(name, {key: round(value, 2) for key, value in told.items()})
    print("share of noises under 6 %, worst p95:", {k: round(v, 2) for k, v in noise_figures(features).items()})
    sound = np.load(options.cache / "corpus" / "piper-5.npz")["sound"][: 20 * RATE]
    print("p95 by level", {k: round(v, 3) for k, v in loudness(features, sound).items()})
    begun = time.perf_counter()
    count = len(mouth(features, sound))
    print(f"{1000 * (time.perf_counter() - begun) / count:.3f} ms a frame")


if __name__ == "__main__":
    main()

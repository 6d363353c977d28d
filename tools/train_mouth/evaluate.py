"""Figures of exported weights on made sound, through the very code that runs in the product. Real talkers: `judge.py`.

Run: `python evaluate.py CACHE WEIGHTS.npz [--languages] [--noises]`. CACHE holds labelled speech (corpus.py); the languages are
spoken anew, by voices of espeak-ng that the corpus does not have.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import augment
import corpus
import numpy as np
import sentences
import voices
from numpy.typing import NDArray
from table import table_jaw

from musetalk_agent.features.phonemes import CLOSURE, JAW, LIP_TUCKS, LIPS_MEET, SILENCE, TUCK
from musetalk_agent.features.visemes import VisemeFeatures

RATE, FPS, FRAME = 16_000, 25, 640
SPOKEN = ("festival-ked_diphone", "piper-0", "piper-5", "flite-slt-1")
Array = NDArray[np.float32]


def mouth(features: VisemeFeatures, sound: NDArray[np.int16]) -> Array:
    """Articulation by frame [frames, 5]."""
    stream = features.stream(FPS)
    return np.array(stream.push(sound) + stream.flush())


def drawn(vectors: Array) -> Array:
    """The aperture the renderer draws, 1 = full."""
    out: Array = vectors[:, JAW] * (1 - vectors[:, CLOSURE])
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


def noise_figures(features: VisemeFeatures, count: int = 6) -> dict[str, tuple[float, float, float]]:
    """By kind of sound that is no speech: share of recordings whose 95th percentile of the aperture is at most 6 % (1 = full), the
    median and the worst of those percentiles; five levels, `count` recordings each, from the first frame on."""
    rng = np.random.default_rng(99)
    out = {}
    for name, make in augment.KINDS.items():
        found = []
        for level in (-50, -40, -30, -20, -12):
            for i in range(count):
                sound = make(rng, 5 * RATE)
                sound = (augment.begun(rng, sound) if i % 2 else sound) * 10 ** (level / 20)
                heard = (np.clip(sound, -1, 1) * 32767).astype(np.int16)
                found.append(float(np.quantile(drawn(mouth(features, heard)), 0.95)))
        out[name] = float(np.mean(np.array(found) <= 0.06)), float(np.median(found)), max(found)
    return out


def language_figures(features: VisemeFeatures) -> dict[str, float]:
    """By language: correlation between what is made of espeak-ng's speech and the articulation table of its phonemes.

    Two voices that the corpus does not have; `chance`: the same against the table of the next recording.
    """
    espeak = voices.Espeak()
    out: dict[str, float] = {}
    apart: list[tuple[Array, Array]] = []
    for language, texts in sentences.OTHER_LANGUAGES.items() | {"en-us": "|".join(sentences.english(8, 900))}.items():
        pairs = []
        for voice in ("+m6", "+f5"):
            said = espeak.speak(language + voice, texts.split("|"))
            sound, spans = corpus.assemble(said, 0, random.Random(1))
            made = drawn(mouth(features, sound))
            pairs.append((made, table_jaw(spans, 2 * len(made))[::2]))
        apart += pairs
        out[language] = float(np.mean([np.corrcoef(made, table)[0, 1] for made, table in pairs]))
    mixed = [(made, apart[i - 1][1]) for i, (made, _) in enumerate(apart)]
    out["chance"] = float(np.mean([np.corrcoef(a[: len(b)], b[: len(a)])[0, 1] for a, b in mixed]))
    return dict(sorted(out.items()))


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


def cost_ms(features: VisemeFeatures, sound: NDArray[np.int16]) -> float:
    """Milliseconds of one core a frame of 25 fps, log-mels included."""
    begun = time.process_time()
    count = len(mouth(features, sound))
    return 1000 * (time.process_time() - begun) / count


def main() -> None:
    """Prints what is asked for, or everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--languages", action="store_true")
    parser.add_argument("--noises", action="store_true")
    options = parser.parse_args()
    features, everything = VisemeFeatures.load(options.weights), not (options.languages or options.noises)
    if options.languages or everything:
        print("against the table:", {k: round(v, 3) for k, v in language_figures(features).items()})
    if options.noises or everything:
        for kind, figures in noise_figures(features).items():
            print(f"{kind}: {figures[0]:.0%} within 6 %, median {figures[1]:.3f}, worst {figures[2]:.3f}")
    if not everything:
        return
    for path in sorted((options.cache / "corpus").glob("*.npz")):
        if path.stem in SPOKEN:
            told = lip_figures(features, path)
            print(path.stem, {key: round(value, 2) for key, value in told.items()})
    sound = np.load(next((options.cache / "corpus").glob("piper-*.npz")))["sound"][: 20 * RATE]
    print("p95 by level", {k: round(v, 3) for k, v in loudness(features, sound).items()})
    print(f"{cost_ms(features, sound):.3f} ms a frame")


if __name__ == "__main__":
    main()

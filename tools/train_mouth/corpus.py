"""Speaks the training corpus and stores it: one `.npz` per voice, sentences one after the other with pauses between.

Each file holds `sound` int16[n] at 16 kHz and `spans` int32[m, 3] of (class, start, end) in samples, ordered and gap-free.
Run: `python corpus.py CACHE [--minutes-scale 1.0] [--only espeak piper-0]`.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import sentences
import voices
from numpy.typing import NDArray

from musetalk_agent.features.phonemes import CLASSES, SILENCE, spans

RATE = voices.RATE
#: Piper's labels come late against its sound: 14–77 ms, taken back on average.
LATE_MS = {"piper": 40}
_STOPS = tuple(CLASSES.index(name) for name in ("pb", "td", "kg"))
_STEP = RATE // 100
#: How far a stop's label may be pulled back over the silence before its burst (labels of synthesisers differ in that).
_REACH = 8
_ESPEAK = (
    *("en-us", "en-us+f2", "en-us+m3", "en-us+klatt2", "en-us+Annie", "en-us+Mike", "en-us+steph", "en-us+Andy"),
    *(
        "en+f3",
        "en+m7",
        "en+Alicia",
        "en+klatt4",
        "en+travis",
        "en+linda",
        "en-us+f4",
        "en-us+m5",
        "en+max",
        "en-us+anika",
    ),
    *("de+f2", "fr+m2", "es+f1", "it", "pt-br+f3", "pl", "nl+m4", "sv+f2"),
)


def _stops_begin_with_silence(
    sound: NDArray[np.float32], found: list[tuple[int, int, int]]
) -> list[tuple[int, int, int]]:
    count = len(sound) // _STEP
    level = 10 * np.log10(np.mean(sound[: count * _STEP].reshape(count, _STEP) ** 2, axis=1) + 1e-9)
    quiet = level < np.percentile(level, 90) - 18
    out: list[tuple[int, int, int]] = []
    for kind, start, end in found:
        if kind in _STOPS and out:
            step = min(start // _STEP, count - 1)
            begin = step
            while begin > 0 and step - begin < _REACH and quiet[begin - 1]:
                begin -= 1
            previous = out[-1]
            moved = max(begin * _STEP, previous[1] + 2 * _STEP)
            if moved < start and previous[0] != SILENCE:
                out[-1] = (previous[0], previous[1], moved)
                start = moved
        if end > start:
            out.append((kind, start, end))
    return out


def assemble(
    said: Iterable[voices.Utterance], late_ms: int, rng: random.Random
) -> tuple[NDArray[np.int16], NDArray[np.int32]]:
    sounds: list[NDArray[np.float32]] = []
    labels: list[tuple[int, int, int]] = []
    at = 0
    for item in said:
        peak = float(np.abs(item.sound).max())
        if peak < 1e-3 or not item.segments:
            continue
        shift = late_ms * RATE // 1000
        moved = [(s, max(0, a - shift), max(0, b - shift)) for s, a, b in item.segments]
        sound = item.sound * (0.5 / peak)
        for kind, start, end in _stops_begin_with_silence(sound, spans(moved)):
            start, end = start + at, min(end, len(sound)) + at
            if labels and start > labels[-1][2]:
                labels.append((SILENCE, labels[-1][2], start))
            if end > start:
                labels.append((kind, start, end))
        pause = np.zeros(int(rng.uniform(0.1, 0.8) * RATE), np.float32)
        sounds += [sound, pause]
        at += len(sound) + len(pause)
        labels.append((SILENCE, labels[-1][2], at))
    whole = np.concatenate(sounds)
    return (whole * 32767).astype(np.int16), np.array(labels, dtype=np.int32)


def _jobs(scale: float) -> Iterator[tuple[str, Iterable[voices.Utterance]]]:
    for i, (name, kind) in enumerate((("slt", 0), ("rms", 0), ("awb", 0), ("kal16", 0))):
        for part, stretch in enumerate((0.85, 1.0, 1.2)):
            texts = sentences.english(int(70 * scale), 100 + 10 * i + part)
            yield f"flite-{name}-{part}", voices.flite(name, texts, stretch + kind)
    for i, name in enumerate(("kal_diphone", "ked_diphone", "cmu_us_slt_arctic_hts")):
        yield f"festival-{name}", voices.festival(name, sentences.english(int(130 * scale), 200 + i))
    espeak = voices.Espeak()
    for i, name in enumerate(_ESPEAK):
        language = name.split("+")[0]
        count = int(55 * scale)
        if language in sentences.OTHER_LANGUAGES:
            texts = sentences.foreign(language, count // 2, 300 + i)
        else:
            texts = sentences.english(count, 300 + i)
        yield f"espeak-{name}", espeak.speak(name, texts, rate=140 + 12 * (i % 5), pitch=35 + 9 * (i % 5))
    for part, stretch in enumerate((1.0, 0.85, 1.15, 1.0, 1.3, 0.95)):
        texts = sentences.english(int(130 * scale), 400 + part)
        yield f"piper-{part}", voices.piper(texts, stretch, noise_w=0.3 + 0.1 * part)


def main() -> None:
    """Writes what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--minutes-scale", type=float, default=1.0)
    parser.add_argument("--only", nargs="*", default=[""], help="beginnings of the names of the voices")
    options = parser.parse_args()
    folder = options.cache / "corpus"
    folder.mkdir(parents=True, exist_ok=True)
    for name, said in _jobs(options.minutes_scale):
        path = folder / f"{name}.npz"
        if path.exists() or not name.startswith(tuple(options.only)):
            continue
        sound, labels = assemble(said, LATE_MS.get(name.split("-")[0], 0), random.Random(name))
        np.savez(path, sound=sound, spans=labels)
        print(f"{name}: {len(sound) / RATE / 60:.1f} min, {len(labels)} sounds", flush=True)


if __name__ == "__main__":
    main()

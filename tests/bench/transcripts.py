"""What a transcript does for lips: `python -m tests.bench.transcripts GRID [--clips 12]`.

`GRID` holds `TALKER.npz` (`names`, `points` `[n, 75, p, 2]`, `mesh_index` `[p]`) and `TALKER.flac` (3 s for each name, 16 kHz) of
talkers of the GRID corpus, whose names are their sentences. It prints the correlation of the mouth that `warp` is asked for with
the talker's own, and the share of /p b m/ at which it closes: from the sound alone, and with the sentence known.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from musetalk_agent.engines.warp.articulation import Articulation
from musetalk_agent.features.mouth_network import MouthNetwork, default_weights
from musetalk_agent.features.visemes import VisemeFeatures
from musetalk_agent.judge.closures import HeardText, heard_text
from musetalk_agent.judge.forced_alignment import IPA
from musetalk_agent.media_types import FEATURE_RATE, Cue, Pcm
from musetalk_agent.tools.audio_file import AudioFile, mono
from tests.bench.figures import Figure

FPS, FRAMES = 25, 75
_WORDS = (
    {"b": "bin", "l": "lay", "p": "place", "s": "set"},
    {"b": "blue", "g": "green", "r": "red", "w": "white"},
    {"a": "at", "b": "by", "i": "in", "w": "with"},
    {},
    dict(zip("z123456789", "zero one two three four five six seven eight nine".split(), strict=True)),
    {"a": "again", "n": "now", "p": "please", "s": "soon"},
)
_NEAR_S, _CLOSED = 0.05, 0.25
"""As the judge's."""


def sentence(name: str) -> str:
    """What a clip of GRID says."""
    return " ".join(words.get(letter, letter) for words, letter in zip(_WORDS, name, strict=False))


def clips(folder: Path, talker: str, most: int) -> Iterator[tuple[str, Pcm, np.ndarray]]:
    """The sentence, the sound and the mouth's opening (outer eye distances, `[75]`) of each clip."""
    tracked, sound = np.load(folder / f"{talker}.npz"), mono(AudioFile.open(folder / f"{talker}.flac"), FEATURE_RATE)
    upper, lower, right, left = (list(tracked["mesh_index"]).index(point) for point in (13, 14, 33, 263))
    size = FRAMES * FEATURE_RATE // FPS
    for k, name in enumerate(tracked["names"][:most]):
        points = tracked["points"][k].astype(float)
        opening, eyes = (
            np.linalg.norm(points[:, a] - points[:, b], axis=1) for a, b in ((upper, lower), (right, left))
        )
        yield sentence(str(name)), sound[k * size : (k + 1) * size], opening / eyes


def asked(features: VisemeFeatures, voice: Pcm, cues: list[Cue]) -> np.ndarray:
    """The opening that `warp` is asked for in each frame."""
    stream = features.stream(FPS)
    stream.cue(cues)
    made = [*stream.push(voice), *stream.flush()]
    return np.array([Articulation.of(feature).aperture for feature in made[:FRAMES]])


def closed(opening: np.ndarray, heard: HeardText) -> list[bool]:
    """For each /p b m/ that was found, whether the mouth comes into the lowest quarter of its range."""
    low, high = np.percentile(opening, (2, 98))
    near = [opening[max(0, int((begin - _NEAR_S) * FPS)) : int((end + _NEAR_S) * FPS) + 1] for begin, end in heard.lips]
    return [float(part.min()) <= low + _CLOSED * (high - low) for part in near if len(part)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=12, help="of each talker, at most")
    args = parser.parse_args()
    features, network = VisemeFeatures.load(), MouthNetwork.load(default_weights())
    alike: dict[str, list[float]] = {"the sound alone": [], "the sentence known": []}
    shut: dict[str, list[float]] = {name: [] for name in alike}
    lost = total = 0
    for talker in sorted(path.stem for path in args.folder.glob("*.npz")):
        rows: dict[str, list[float]] = {name: [] for name in alike}
        hits: dict[str, list[bool]] = {name: [] for name in alike}
        for text, voice, real in clips(args.folder, talker, args.clips):
            heard = heard_text(text, voice, network)
            assert heard is not None
            phones = [phone for word in heard.words for phone in word.phones]
            total, lost = total + 1, lost + (not phones)
            cues = [Cue(IPA[p], round(a * FEATURE_RATE), round(b * FEATURE_RATE), found=True) for p, a, b in phones]
            for name, given in zip(alike, ([], cues), strict=True):
                opening = asked(features, voice, given)
                rows[name].append(float(np.corrcoef(opening, real)[0, 1]))
                hits[name] += closed(opening, heard) if phones else []
        for name in alike:
            alike[name].append(float(np.median(rows[name])))
            shut[name] += [float(np.mean(hits[name]))] if hits[name] else []
    note = f"{total} clips of {len(alike['the sound alone'])} talkers; {lost} without phones"
    for name in alike:
        print(
            Figure(f"lips, {name}: correlation, median of talkers", float(np.median(alike[name])), "", note=note).line()
        )
        print(Figure(f"lips, {name}: /p b m/ that close", 100 * float(np.mean(shut[name])), "%", note=note).line())


if __name__ == "__main__":
    main()

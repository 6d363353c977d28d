"""Real talkers: sound, mouth and words of the GRID corpus, from either of the two layouts it is found in.

Tracked: `TALKER.npz` (mesh points by frame), `TALKER.flac` (the clips' sound in a row), `align/TALKER/NAME.align`.
Published (Zenodo, record 3625687): `TALKER/NAME.mpg`, `TALKER/video/mpg_6000/NAME.mpg` or `video/TALKER/NAME.mpg`; words in
`alignments/TALKER/NAME.align` (or `align/`, or the talker's own folder `align`); sound, where it is there, in
`audio_25k/TALKER/NAME.wav` (or `audio/`, or the talker's own), else the video's. The faces are followed here with the product's
own mesh, which takes 1–2 s a clip. Clips that are damaged, silent or without a face are named and left out.

Run: `python talkers.py CORPUS CACHE [--most 400]`; writes `real/TALKER.npz` with `names` [n], `sound` int16[n, 48000] at 16 kHz,
`aperture` and `width` float32[n, 75] (inner lips apart, corners apart, in outer eye distances, 25 fps; NaN where no face is
found) and `words` [n]: a JSON list of (word, start, end) in seconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.avatars.face import FaceNet
from musetalk_agent.measure.lip_measures import VideoUnreadable, find_faces
from musetalk_agent.weights import Manifest, ModelStore

RATE = 16_000
FRAMES, FPS = 75, 25
SAMPLES = FRAMES * RATE // FPS
UPPER, LOWER, EYE_A, EYE_B, CORNER_A, CORNER_B = 13, 14, 33, 263, 61, 291
_POINTS = (UPPER, LOWER, EYE_A, EYE_B, CORNER_A, CORNER_B)
_ALIGN_RATE = 25_000  # units of the `.align` files
_VIDEO_FOLDERS = ("video", "mpg_vcd", "mpg_6000")
_SOUND_FOLDERS = ("audio_25k", "audio")
_ALIGN_FOLDERS = ("alignments", "align")
Words = list[tuple[str, float, float]]
_T = TypeVar("_T", bound=np.generic)


class ClipUnusable(Exception):
    """A clip that nothing can be learned from; the message says why."""


@dataclass(frozen=True)
class Clip:
    """Three seconds of one talker.

    Args:
        sound: int16[48000] at 16 kHz, from the first frame on.
        aperture, width: float32[75] in outer eye distances.
        words: (word, start, end) in seconds; `sil` for pauses; empty where the clip has no file of them.
    """

    talker: str
    name: str
    sound: NDArray[np.int16]
    aperture: NDArray[np.float32]
    width: NDArray[np.float32]
    words: Words


def load(cache: Path) -> dict[str, list[Clip]]:
    """Every talker's clips, in the corpus's order."""
    out: dict[str, list[Clip]] = {}
    for path in sorted((cache / "real").glob("*.npz")):
        with np.load(path) as stored:
            columns = [stored[key] for key in ("names", "sound", "aperture", "width", "words")]
        out[path.stem] = [
            Clip(path.stem, str(n), s, a, w, json.loads(str(x))) for n, s, a, w, x in zip(*columns, strict=True)
        ]
    return out


def heard(path: Path) -> NDArray[np.int16]:
    """The sound of a file, mono 16 kHz. Raises `ClipUnusable` without any, or when it is damaged."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
    parts: list[NDArray[np.int16]] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise ClipUnusable(f"{path.name} has no sound")
            for frame in container.decode(audio=0):
                parts += [f.to_ndarray()[0] for f in resampler.resample(frame)]
            parts += [f.to_ndarray()[0] for f in resampler.resample(None)]
    except av.error.FFmpegError as error:
        raise ClipUnusable(f"{path.name} cannot be decoded: {error}") from error
    if not sum(map(len, parts)):
        raise ClipUnusable(f"{path.name} has no sound")
    return np.concatenate(parts)


def _words(path: Path | None) -> Words:
    if path is None or not path.exists():
        return []
    rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
    try:
        return [(word, int(start) / _ALIGN_RATE, int(end) / _ALIGN_RATE) for start, end, word in rows]
    except ValueError as error:
        raise ClipUnusable(f"{path.name} is no list of words with their times: {error}") from error


def _fitted(values: NDArray[_T], size: int) -> NDArray[_T]:
    """Cut, or with its last value repeated, to a size."""
    return np.concatenate([values, np.repeat(values[-1:], max(0, size - len(values)))])[:size]


def _mouth(points: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Points [t, 6, 2] in the order of `_POINTS` → aperture and width float32[t]."""
    upper, lower, eye_a, eye_b, corner_a, corner_b = points.transpose(1, 0, 2)
    eyes = np.linalg.norm(eye_a - eye_b, axis=1)
    aperture, width = np.linalg.norm(upper - lower, axis=1) / eyes, np.linalg.norm(corner_a - corner_b, axis=1) / eyes
    return aperture.astype(np.float32), width.astype(np.float32)


def tracked(folder: Path, most: int) -> Iterator[Clip]:
    """The clips of the tracked layout."""
    for path in sorted(folder.glob("*.npz")):
        talker, sound = path.stem, heard(path.with_suffix(".flac"))
        with np.load(path) as stored:
            names, points = stored["names"], stored["points"]
            index = stored["mesh_index"].tolist()
        for i, name in enumerate(names[:most]):
            here = points[i][:, [index.index(point) for point in _POINTS]].astype(np.float64)
            words = _words(folder / "align" / talker / f"{name}.align")
            yield Clip(talker, str(name), sound[i * SAMPLES : (i + 1) * SAMPLES], *_mouth(here), words)


def _talker(path: Path, corpus: Path) -> str:
    """The folder's name, but for the folders that only sort the videos; where there is none, the corpus's own."""
    folders = [part for part in path.relative_to(corpus).parts[:-1] if part not in _VIDEO_FOLDERS]
    return folders[-1] if folders else corpus.resolve().name


def _beside(path: Path, corpus: Path, talker: str, folders: Sequence[str], suffix: str) -> Path | None:
    """A clip's file of another kind: in the corpus's folder of that kind or in the talker's own."""
    own = next(folder for folder in path.parents if folder.name == talker or folder == corpus)
    places = [place for kind in folders for place in (corpus / kind / talker, own / kind)]
    return next((file for place in places if (file := place / f"{path.stem}{suffix}").is_file()), None)


def _followed(path: Path, corpus: Path, net: FaceNet) -> Clip:
    talker = _talker(path, corpus)
    meshes = find_faces(path, net).meshes
    if all(mesh is None for mesh in meshes):
        raise ClipUnusable("no face in any picture")
    nothing = np.full((len(_POINTS), 2), np.nan)
    points = np.array([nothing if mesh is None else mesh[list(_POINTS)] for mesh in meshes], np.float64)
    aperture, width = (_fitted(series, FRAMES) for series in _mouth(points))
    sound = heard(_beside(path, corpus, talker, _SOUND_FOLDERS, ".wav") or path)[:SAMPLES]
    words = _words(_beside(path, corpus, talker, _ALIGN_FOLDERS, ".align"))
    return Clip(talker, path.stem, np.pad(sound, (0, SAMPLES - len(sound))), aperture, width, words)


def published(folder: Path, most: int) -> Iterator[Clip]:
    """The clips of the publisher's layout, followed with the product's mesh. Clips that cannot be used are named and left out."""
    net = FaceNet(ModelStore(None, Manifest.load()))
    counts: dict[str, int] = {}
    for path in sorted(folder.rglob("*.mpg")):
        talker = _talker(path, folder)
        if counts.get(talker, 0) >= most:
            continue
        try:
            yield _followed(path, folder, net)
        except (ClipUnusable, VideoUnreadable) as error:
            print(f"{path.relative_to(folder)} is left out: {error}", flush=True)
        else:
            counts[talker] = counts.get(talker, 0) + 1


def main() -> None:
    """Reads the corpus into the cache."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--most", type=int, default=400, help="clips of one talker")
    options = parser.parse_args()
    (options.cache / "real").mkdir(parents=True, exist_ok=True)
    layout = tracked if any(options.corpus.glob("*.flac")) else published
    talkers: dict[str, list[Clip]] = {}
    for clip in layout(options.corpus, options.most):
        talkers.setdefault(clip.talker, []).append(clip)
    if not talkers:
        parser.error(f"{options.corpus} has no clip that can be used: neither TALKER.flac nor videos *.mpg")
    for talker, clips in talkers.items():
        np.savez_compressed(
            options.cache / "real" / f"{talker}.npz",
            names=np.array([c.name for c in clips]),
            sound=np.stack([c.sound for c in clips]),
            aperture=np.stack([c.aperture for c in clips]),
            width=np.stack([c.width for c in clips]),
            words=np.array([json.dumps(c.words) for c in clips]),
        )
        print(talker, len(clips), np.round(np.nanpercentile(np.stack([c.aperture for c in clips]), [5, 50, 95]), 3))


if __name__ == "__main__":
    main()

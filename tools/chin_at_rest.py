"""Measures how far the warp engine's chin at rest is from the clip's own, in eye distances, in every frame.

    python tools/chin_at_rest.py CLIP.zip [TALKS.zip=STILL.zip …] [--every 1] [--sheet OUT.png] [--least 0.05] [--json OUT.json]

*Pixels*: a square around the chin is matched between the idle frame and the one with the mouth at rest. *Mesh*: the lowest point of
the face's outline, which the mesh reads in both; it moves its chin by up to 0.06 where only the lips have closed, so pixels are
the judge. *Open*: the same by pixels with the jaw at 0.8, less the drop that the engine was asked for. A clip that talks has a chin
of its own below its rest: with `=STILL.zip`, the same head made without the talking (`turned_heads.py`, with and without
`--talks`), the chin of that is the judge. Frames that hide the mouth, or whose chin is at the picture's edge, are left out.
`--sheet` shows the frames that are further off than `--least`, own and at rest.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from contact_sheet import ROOT, idle_frame, prepared, spoken

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.avatars.face import FaceNet, crop_of
from musetalk_agent.avatars.face_track import head_angles
from musetalk_agent.engines.warp import WarpEngine
from musetalk_agent.engines.warp.articulation import Articulation
from musetalk_agent.engines.warp.mouth_space import JAW
from musetalk_agent.features.visemes import VisemeFeatures
from musetalk_agent.media_types import Feature, Pixels
from musetalk_agent.weights import Manifest, ModelStore

FINER = 4
"""How many times the pictures are enlarged before they are matched."""
SQUARE, SEARCH = 0.22, 0.15
"""Half the side of the square around the chin, and how far it is looked for (eye distances)."""
REACH = 0.5
"""Half the side of what is enlarged, around the chin (eye distances)."""
TURNED_MOST = 60.0
"""A head is seen turned so far at most (degrees) when the distance of its eyes is taken for that of a face from the front."""
REST: Feature = np.zeros(5, np.float32)
OPEN: Feature = np.array((0.8, 0, 0, 0, 0), np.float32)
SIDE = 240
"""Width of a tile of the sheet in pixels."""


@dataclass(frozen=True)
class Frame:
    """What was measured of one frame, in eye distances.

    Args:
        pixels, likeness: how far the chin is off by its pixels, and how alike they are (1 at most).
        down: how far it is below its own.
        mesh: how far below it is as the mesh sees it.
        opened: how far below what was asked for it is with the jaw open.
    """

    pixels: float
    likeness: float
    down: float
    mesh: float
    opened: float


def matched(own: Pixels, made: Pixels, chin: np.ndarray, eyes: float) -> tuple[float, float, float]:
    """How far right and down the pixels around `chin` (of `own`) are in `made`, in eye distances, and their likeness."""
    start = np.maximum((chin - REACH * eyes).astype(int), 0)
    end = (chin + REACH * eyes).astype(int)
    one, other = (
        cv2.resize(p[start[1] : end[1], start[0] : end[0]], None, fx=FINER, fy=FINER, interpolation=cv2.INTER_LANCZOS4)
        for p in (own, made)
    )
    x, y = ((chin - start) * FINER).round().astype(int)
    half, search = round(SQUARE * eyes * FINER), round(SEARCH * eyes * FINER)
    left, top = max(x - half, 0), max(y - half, 0)
    x0, y0 = max(left - search, 0), max(top - search, 0)
    where = other[y0 : y + half + search, x0 : x + half + search]
    found = cv2.matchTemplate(where, one[top : y + half, left : x + half], cv2.TM_CCOEFF_NORMED)
    _, likeness, _, place = cv2.minMaxLoc(found)
    unit = FINER * eyes
    return (place[0] + x0 - left) / unit, (place[1] + y0 - top) / unit, float(likeness)


class Measure:
    """Measures clips. Raises what preparing an avatar raises for one that shows no face."""

    def __init__(self, models: Path) -> None:
        self._models = models
        self._net = FaceNet(ModelStore(models, Manifest.load(ROOT / "models" / "manifest.toml")))
        self._engine = WarpEngine(VisemeFeatures.load())
        self.tiles: list[Pixels] = []

    def clip(self, name: str, clip: Path, still: Path | None, every: int, least: float) -> dict[str, object]:
        """Each `every`th frame of `clip`, against its own or against `still`, as a row of the table."""
        with tempfile.TemporaryDirectory() as cache:
            bundle = self._bundle(clip, Path(cache) / "clip")
            judge = self._bundle(still, Path(cache) / "still") if still else bundle
            session = self._engine.open(bundle)
            angles = np.degrees(head_angles(np.asarray(bundle.landmarks)))
            frames = []
            for k in range(0, min(len(bundle), len(judge)), every):
                if bundle.mouth(k) < 1 or not _whole(judge, k):
                    continue
                own, rest = idle_frame(judge, k), spoken(self._engine, session, k, REST, 1.0)
                opened = spoken(self._engine, session, k, OPEN, 1.0)
                asked = Articulation.of(OPEN * np.float32(bundle.trusted(k))).drop
                points = np.asarray(judge.landmarks[k])
                eyes = float(np.linalg.norm(points[33] - points[263]))
                eyes /= float(np.cos(np.radians(min(abs(angles[k, 0]), TURNED_MOST))))
                frames.append(self._frame(own, rest, opened, asked, points, eyes))
                if frames[-1].pixels > least:
                    self._show(f"{name} {k}: {frames[-1].pixels:.3f}", own, rest, points[152], eyes)
            return _row(name, frames, angles)

    def _bundle(self, path: Path, cache: Path) -> Bundle:
        cache.mkdir()
        return asyncio.run(prepared(path.read_bytes(), cache, self._models))

    def _frame(self, own: Pixels, rest: Pixels, opened: Pixels, asked: float, points: np.ndarray, eyes: float) -> Frame:
        right, down, likeness = matched(own, rest, points[152], eyes)
        drop = matched(own, opened, points[152], eyes)[1]
        low, lower = (self._lowest(picture, points) for picture in (own, rest))
        return Frame(float(np.hypot(right, down)), likeness, down, (lower - low) / eyes, drop - asked)

    def _lowest(self, picture: Pixels, points: np.ndarray) -> float:
        """How far down the picture the face's outline reaches, by a mesh that begins at `points` (pixels)."""
        face = self._net.refine_mesh(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), crop_of(points))
        return float((points if face is None else face.points)[list(JAW), 1].max())

    def _show(self, label: str, own: Pixels, rest: Pixels, chin: np.ndarray, eyes: float) -> None:
        half = 0.8 * eyes
        matrix = np.array([[2 * half / SIDE, 0, chin[0] - half], [0, 2 * half / SIDE, chin[1] - 1.3 * half]])
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        pair = np.hstack([cv2.warpAffine(p, matrix, (SIDE, SIDE), flags=flags) for p in (own, rest)])
        cv2.putText(pair, label, (5, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 255, 0), 1, cv2.LINE_AA)
        self.tiles.append(np.asarray(pair, np.uint8))


def _whole(bundle: Bundle, idle_index: int) -> bool:
    """Whether the picture shows all that is compared."""
    points = np.asarray(bundle.landmarks[idle_index])
    room = SQUARE * float(np.linalg.norm(points[33] - points[263]))
    chin, size = points[152], np.array([bundle.width, bundle.height])
    return bool(((chin > room) & (chin < size - room)).all())


def _row(name: str, frames: list[Frame], angles: np.ndarray) -> dict[str, object]:
    pixels, mesh, opened = (np.abs([getattr(frame, what) for frame in frames]) for what in ("pixels", "mesh", "opened"))
    return {
        "clip": name,
        "frames": len(frames),
        "turn": angles[:, 0][[angles[:, 0].argmin(), angles[:, 0].argmax()]].round().tolist(),
        "nod": angles[:, 1][[angles[:, 1].argmin(), angles[:, 1].argmax()]].round().tolist(),
        **{
            f"{what} {word}": round(float(value), 3)
            for what, values in (("pixels", pixels), ("mesh", mesh), ("open", opened))
            for word, value in (
                ("median", np.median(values)),
                ("p95", np.percentile(values, 95)),
                ("max", values.max()),
            )
        },
        "beyond": int((pixels > 0.05).sum()),
        "likeness": round(min(frame.likeness for frame in frames), 2),
        "down": [round(frame.down, 3) for frame in frames],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+", help="CLIP.zip, or TALKS.zip=STILL.zip")
    parser.add_argument("--every", type=int, default=1, help="measure each n-th frame")
    parser.add_argument("--sheet", type=Path, help="a picture of the frames that are further off than --least")
    parser.add_argument("--least", type=float, default=0.05, help="eye distances")
    parser.add_argument("--json", type=Path, help="the rows, one a line")
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    options = parser.parse_args()
    measure, rows = Measure(options.models), []
    for clip in options.clips:
        path, _, still = clip.partition("=")
        row = measure.clip(Path(path).stem, Path(path), Path(still) if still else None, options.every, options.least)
        rows.append(row)
        print(" ".join(f"{key}={value}" for key, value in row.items() if key != "down"), flush=True)
    if options.json:
        options.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if options.sheet and measure.tiles:
        tiles = measure.tiles + [np.zeros_like(measure.tiles[0])] * (-len(measure.tiles) % 3)
        sheet = np.vstack([np.hstack(tiles[k : k + 3]) for k in range(0, len(tiles), 3)])
        cv2.imwrite(str(options.sheet), sheet, [cv2.IMWRITE_PNG_COMPRESSION, 9])


if __name__ == "__main__":
    main()

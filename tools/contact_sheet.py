"""Draws what the warp engine makes of a face: the idle frame, rest, vowels and consonants, or what it says to some speech.

    python tools/contact_sheet.py OUT.png CLIP [CLIP …] [--speech SOUND] [--frames 8] [--scale 2] [--pose 4] [--whole]

Each clip is a picture, a video that PyAV reads, or a zip of frames; it goes through the same preparation as any avatar. A row
per clip; `--whole` shows whole frames, otherwise the lower face and the mouth below it are shown enlarged. With `--speech` the
columns are moments of the speech, spread evenly, over as many poses of the clip.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.avatars.library import AvatarLibrary
from musetalk_agent.engines.interface import PatchRequest
from musetalk_agent.engines.warp import WarpEngine
from musetalk_agent.engines.warp.engine import WarpSession
from musetalk_agent.features.visemes import VisemeFeatures
from musetalk_agent.media_types import Feature, Pixels
from musetalk_agent.protocol.http import AvatarSource, Picture
from musetalk_agent.tools.audio_file import AudioFile, mono
from musetalk_agent.weights import Manifest, ModelStore

ROOT = Path(__file__).resolve().parent.parent
SHOWN: tuple[tuple[str, tuple[float, ...], float], ...] = (
    # jaw, width, rounding, closure, tuck; blend weight
    ("rest", (0, 0, 0, 0, 0), 1.0),
    ("/a/", (0.8, 0.1, 0, 0, 0), 1.0),
    ("/a/ wide", (1.0, 0, 0, 0, 0), 1.0),
    ("/e/", (0.4, 0.3, 0, 0, 0), 1.0),
    ("/i/", (0.3, 0.8, 0, 0, 0), 1.0),
    ("/o/", (0.5, -0.2, 0.7, 0, 0), 1.0),
    ("/u/", (0.25, -0.4, 1, 0, 0), 1.0),
    ("/m/", (0.3, 0, 0, 1, 0), 1.0),
    ("/f/", (0.1, 0.1, 0, 0, 1), 1.0),
    ("/a/ p 0.5", (0.8, 0.1, 0, 0, 0), 0.5),
)
MOMENTS = 12
"""Columns of a sheet of speech."""


@dataclass(frozen=True)
class Style:
    """How tiles are cut: `side` pixels wide; whole frames, or the lower face over the mouth."""

    side: int
    whole: bool


def clip_bytes(path: Path, frames: int, scale: int) -> bytes:
    """The clip as an avatar's upload: the file itself, or the first frames of a video as a zip of PNG pictures."""
    if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".zip"):
        return path.read_bytes()
    out = io.BytesIO()
    with av.open(str(path)) as container, zipfile.ZipFile(out, "w") as archive:
        for k, frame in enumerate(container.decode(video=0)):
            if k == frames:
                break
            picture = frame.to_ndarray(format="bgr24")
            large = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
            archive.writestr(f"{k:04d}.png", cv2.imencode(".png", large)[1].tobytes())
    return out.getvalue()


async def prepared(data: bytes, cache: Path, models: Path) -> Bundle:
    """The clip as a bundle."""
    library = AvatarLibrary(cache, ModelStore(models, Manifest.load(ROOT / "models" / "manifest.toml")))
    try:
        avatar_id = await library.add(data)
        return await library.prepare(AvatarSource(avatar_id=avatar_id), Picture())
    finally:
        library.close()


def idle_frame(bundle: Bundle, pose: int) -> Pixels:
    """The published picture of `pose`, BGR; the face window from its own pixels."""
    frame = cv2.cvtColor(np.asarray(bundle.frames[pose]), cv2.COLOR_YUV2BGR_I420)
    box = bundle.box(pose)
    frame[box.y0 : box.y1, box.x0 : box.x1] = bundle.faces[pose]
    return np.asarray(frame, np.uint8)


def spoken(engine: WarpEngine, engine_session: WarpSession, pose: int, feature: Feature, blend_weight: float) -> Pixels:
    """The published picture of `pose` with the mouth made from `feature`."""
    frame = idle_frame(engine_session.bundle, pose)
    patch = engine.infer([PatchRequest(engine_session, pose, feature, blend_weight)])[0]
    if patch is not None:
        frame[patch.box.y0 : patch.box.y1, patch.box.x0 : patch.box.x1] = patch.pixels
    return frame


def said(features: VisemeFeatures, sound: Path, fps: int) -> list[tuple[float, Feature]]:
    """Time (s) and feature at `MOMENTS` frames of the sound."""
    stream = features.stream(fps)
    frames = [*stream.push(mono(AudioFile.open(sound), 16000)), *stream.flush()]
    chosen = np.linspace(0, len(frames) - 1, MOMENTS).round().astype(int)
    return [(k / fps, frames[k]) for k in chosen.tolist()]


def tile(bundle: Bundle, pose: int, frame: Pixels, style: Style, label: str) -> Pixels:
    """One column of a row."""
    if style.whole:
        height = round(style.side * bundle.height / bundle.width)
        out = cv2.resize(frame, (style.side, height), interpolation=cv2.INTER_AREA)
    else:
        face, mouth = (_cut(bundle, pose, frame, style.side, reach) for reach in (0.85, 0.45))
        out = np.vstack([face, mouth[style.side // 5 : -style.side // 5]])
    cv2.putText(out, label, (5, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 3, cv2.LINE_AA)
    cv2.putText(out, label, (5, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
    return np.asarray(out, np.uint8)


def _cut(bundle: Bundle, pose: int, frame: Pixels, side: int, reach: float) -> Pixels:
    """A square around the mouth, `reach` eye distances to each side."""
    points = bundle.landmarks[pose]
    eyes = float(np.linalg.norm(points[33] - points[263]))
    x, y = points[[13, 14]].mean(0)
    y += eyes * (reach - 0.45) * 0.3
    half = reach * eyes
    matrix = np.array([[2 * half / side, 0, x - half], [0, 2 * half / side, y - half]])
    cut = cv2.warpAffine(frame, matrix, (side, side), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)
    return np.asarray(cut, np.uint8)


def row(data: bytes, options: argparse.Namespace) -> Pixels:
    """All of `SHOWN` for one clip, or moments of a speech."""
    engine, style = WarpEngine(VisemeFeatures.load()), Style(options.side, options.whole)
    with tempfile.TemporaryDirectory() as cache:
        bundle = asyncio.run(prepared(data, Path(cache), options.models))
        chosen = min(len(bundle) - 1, len(bundle) // 2 if options.pose is None else options.pose)
        engine_session = engine.open(bundle)
        tiles = [tile(bundle, chosen, idle_frame(bundle, chosen), style, "idle")]
        if options.speech:
            moments = said(VisemeFeatures.load(), options.speech, bundle.fps)
            for (time_s, feature), pose in zip(
                moments, np.linspace(0, len(bundle) - 1, MOMENTS).astype(int), strict=True
            ):
                frame = spoken(engine, engine_session, int(pose), feature, 1.0)
                tiles.append(tile(bundle, int(pose), frame, style, f"{time_s:.2f} s"))
        else:
            for label, values, blend_weight in SHOWN:
                frame = spoken(engine, engine_session, chosen, np.array(values, np.float32), blend_weight)
                tiles.append(tile(bundle, chosen, frame, style, label))
    return np.hstack(tiles)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--frames", type=int, default=8, help="frames taken from a video")
    parser.add_argument("--scale", type=int, default=1, help="enlarge a video's frames first")
    parser.add_argument("--speech", type=Path, help="a sound that PyAV reads: show what it makes the mouth do")
    parser.add_argument("--pose", type=int, help="idle frame to lie on (default: the middle one)")
    parser.add_argument("--side", type=int, default=200, help="width of a tile in pixels")
    parser.add_argument("--whole", action="store_true", help="whole frames")
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    options = parser.parse_args()
    rows = [row(clip_bytes(clip, options.frames, options.scale), options) for clip in options.clips]
    width = max(r.shape[1] for r in rows)
    sheet = np.vstack([np.pad(r, ((0, 4), (0, width - r.shape[1]), (0, 0))) for r in rows])
    cv2.imwrite(str(options.out), sheet, [cv2.IMWRITE_PNG_COMPRESSION, 9])


if __name__ == "__main__":
    main()

"""What the figures of a card share: engines, and avatars of 720p; real ones where the avatar code is installed, else drawn."""

from __future__ import annotations

import asyncio
import io
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

_REPOSITORY = Path(__file__).resolve().parents[2]
DEMO = _REPOSITORY / "musetalk_agent" / "assets" / "demo-avatar.png"
MESH = _REPOSITORY / "tests" / "data" / "demo_mesh.npy"
"""float32 `[468, 2]`: the face mesh of the demo avatar, in pixels of its 640×640."""
NEEDS_CARD = "needs a card"
SIDE = 720
"""Pixels of the demo picture in a frame."""


@dataclass
class Bench:
    """What the figures share: one engine per profile, loaded when first asked for, and an avatar.

    `faces` is a folder of faces to be filmed, `films` where the films go, `weights` the folder of real weights for them.
    """

    models: Path
    device: str
    tiny: bool
    profile: str
    seconds: float
    folder: Path
    faces: Path | None = None
    films: Path = Path("films")
    weights: Path = Path("models")
    batchers: dict[str, Any] = field(default_factory=dict)

    async def batcher(self, profile: str | None = None) -> Any:
        """A started batcher of an engine with that profile."""
        from musetalk_agent.engines.batcher import Batcher
        from musetalk_agent.engines.musetalk.engine import MuseTalkEngine

        name = profile or self.profile
        if name not in self.batchers:
            engine = await asyncio.to_thread(MuseTalkEngine, self.models, self.options(name))
            self.batchers[name] = Batcher(engine)
            await self.batchers[name].start()
        return self.batchers[name]

    async def drop(self, profile: str) -> None:
        """Frees the card of one engine."""
        await self.batchers.pop(profile).aclose()

    def options(self, profile: str | None = None, **changes: Any) -> Any:
        """The engine's options here."""
        from musetalk_agent.engines.musetalk.profiles import Options

        buckets = (1, 2, 4) if self.tiny else None
        return Options(**{"device": self.device, "profile": profile or self.profile, "buckets": buckets} | changes)

    async def bundle(self, engine: Any) -> Any:
        """A 720p avatar of ten idle frames (the small network's: of two) with a face 300 px wide, prepared for the engine."""
        return (await prepared(self.folder / "avatar", engine, 2 if self.tiny else 10))[0]


async def prepared(folder: Path, engine: Any, frames: int) -> tuple[Any, float | None, float]:
    """A bundle of `frames` frames of 720p; seconds for all of it (None where it was drawn), and for the engine's part."""
    spent: list[float] = []

    def derive(bundle: Any, progress: Any = None) -> None:
        begun = time.perf_counter()
        engine.prepare(bundle, progress)
        spent.append(time.perf_counter() - begun)

    try:
        from musetalk_agent.avatars.library import AvatarLibrary
        from musetalk_agent.protocol.http import AvatarSource, Picture
        from musetalk_agent.weights import Manifest, ModelStore, default_models_dir
    except ImportError:  # a lent machine has torch and OpenCV, and not everything else
        bundle = await asyncio.to_thread(drawn, folder, frames)
        await asyncio.to_thread(derive, bundle)
        return bundle, None, sum(spent)
    library = AvatarLibrary(folder, ModelStore(default_models_dir(), Manifest.load()))
    try:
        avatar_id = await library.add(await asyncio.to_thread(_zip, pictures(frames)))
        begun = time.perf_counter()
        bundle = await library.prepare(AvatarSource(avatar_id=avatar_id), Picture(), derive=derive)
        return bundle, time.perf_counter() - begun, sum(spent)
    finally:
        library.close()


def pictures(frames: int) -> list[np.ndarray]:
    """1280×720, the demo face about 300 px wide and two pixels further in each."""
    face = cv2.resize(cv2.imread(str(DEMO)), (SIDE, SIDE))
    made = []
    for number in range(frames):
        picture = np.full((720, 1280, 3), 96, np.uint8)
        left = _left(number)
        picture[:, left : left + SIDE] = face
        made.append(picture)
    return made


def _left(number: int) -> int:
    return 200 + 2 * (number % 100)


def _zip(frames: list[np.ndarray]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as file:
        for number, picture in enumerate(frames):
            file.writestr(f"{number:05d}.jpg", bytes(cv2.imencode(".jpg", picture)[1]))
    return out.getvalue()


def drawn(folder: Path, frames: int) -> Any:
    """The same frames as a bundle, its mesh from the test data instead of from the landmark models."""
    from musetalk_agent.avatars import framing
    from musetalk_agent.avatars.bundle import Bundle
    from musetalk_agent.media_types import Box
    from musetalk_agent.protocol.http import AvatarReport

    mesh = np.load(MESH) * (SIDE / 640)
    points = np.stack([mesh + np.array((_left(number), 0)) for number in range(frames)]).astype(np.float32)
    boxes = framing.face_windows(points, 1280, 720)
    planes = np.stack([cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420) for picture in pictures(frames)])
    windows = [Box(*(int(v) for v in box)) for box in boxes]
    faces = [framing.to_bgr(framing.crop_i420(p, (1280, 720), box)) for p, box in zip(planes, windows, strict=True)]
    report = AvatarReport(avatar_id="drawn", frames=frames, width=1280, height=720, fps=25)
    return Bundle(folder, 1280, 720, 25, planes, points, boxes, np.stack(faces), report)


def why(error: Exception) -> str:
    return f"failed: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]

"""What the picture's settings do and cost: a painted network's faces on a drawn clip or on real ones, before and after.

`--faces DIR` takes clips of real people (any video) instead of the drawn one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.agent_settings import offline_settings
from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.avatars.library import AvatarLibrary
from musetalk_agent.compose.compositor import paste
from musetalk_agent.compose.idle import PingPongLoop
from musetalk_agent.engines.musetalk.artefacts import MuseTalkArtefacts
from musetalk_agent.engines.musetalk.picture.mouth_picture import MouthPicture, mouth_places
from musetalk_agent.media_types import Box, Patch, Pixels
from musetalk_agent.protocol.avatar_settings import AvatarSettings
from musetalk_agent.protocol.http import AvatarSource, Picture
from musetalk_agent.weights import Manifest, ModelStore
from tests.bench.figures import Figure
from tests.fakes.painted_mouth import LIP_HEIGHT, Faults, Painter, Speech, lag_frames, opening_of, speech, trembling
from tests.musetalk_agent.engines.musetalk.faces import bundle_of, moved

FRAMES = 400
SIZE = (720, 640)
LOOKS = {
    "off": AvatarSettings(smoothing="off"),
    "light": AvatarSettings(smoothing="light"),
    "strong": AvatarSettings(smoothing="strong"),
    "multiband": AvatarSettings(blend="multiband"),
    "poisson": AvatarSettings(blend="poisson"),
    "sharpen 0.5": AvatarSettings(sharpen=0.5),
    "sharpen 1": AvatarSettings(sharpen=1.0),
}
RAW = "raw"
"""Upstream's patch: resized and masked, and no more."""


@dataclass(frozen=True)
class Seen:
    """Of one look on one clip: openings in the network's pixels; by how much the mask's edge differs from the frame, `[8, 3]`."""

    openings: NDArray[np.float64]
    edge: NDArray[np.float64]
    flicker: float
    sharpness: float
    seam: float
    cost_ms: float


class PaintedClip:
    """A bundle with artefacts and painted faces for `reported`."""

    def __init__(self, bundle: Bundle, reported: Speech, faults: Faults | None = None) -> None:
        self.bundle, self.reported = bundle, reported
        self._crops: list[Pixels] = []
        self.artefacts = MuseTalkArtefacts.of(bundle, self._keep)
        self.places = mouth_places(bundle.landmarks, self.artefacts)
        x1, _, x2, _ = (float(v) for v in self.artefacts.boxes[0])
        self.half = float(abs(bundle.landmarks[0, 291, 0] - bundle.landmarks[0, 61, 0])) * 128 / (x2 - x1)
        painter, loop = Painter(faults or Faults()), PingPongLoop(len(bundle))
        self.indices = [loop.idle_index(k) for k in range(len(reported.openings))]
        self.faces = [
            painter.face(self._crops[k], self.mouth(k), opening)
            for k, opening in zip(self.indices, reported.openings, strict=True)
        ]

    def mouth(self, idle_index: int) -> tuple[float, float, float]:
        """Middle and half width of a mouth in the idle frame's crop: where the head has it, whatever the clip's own mouth does.

        The network does not see the clip's mouth either: the lower half of what it is shown is black.
        """
        x, y = self.places[idle_index]
        return float(x), float(y), self.half

    def idle(self, idle_index: int, box: Box) -> Pixels:
        """The idle frame's pixels."""
        window = self.bundle.box(idle_index)
        face = self.bundle.faces[idle_index]
        return np.asarray(face[box.y0 - window.y0 : box.y1 - window.y0, box.x0 - window.x0 : box.x1 - window.x0])

    def patches(self, settings: AvatarSettings | None) -> tuple[list[Patch], float]:
        """The patches of a look, or upstream's without one, and what each cost in milliseconds of processor time."""
        picture = None if settings is None else MouthPicture(self.artefacts, self.bundle, settings)
        faces = [face.copy() for face in self.faces]
        begun = time.process_time()
        made = [
            picture.patch(k, face, 1.0, speaking=True) if picture else self.artefacts.patch(k, face)
            for k, face in zip(self.indices, faces, strict=True)
        ]
        return made, 1000 * (time.process_time() - begun) / len(made)

    def _keep(self, crops: Pixels) -> NDArray[np.float16]:
        self._crops += list(crops)
        return np.zeros((len(crops), 8, 32, 32), np.float16)


def seen(clip: PaintedClip, settings: AvatarSettings | None) -> Seen:
    """Measures a look."""
    patches, cost = clip.patches(settings)
    openings, steps, sharp, seams, shown = [], [], [], [], []
    for idle_index, patch, reported in zip(clip.indices, patches, clip.reported.openings, strict=True):
        idle = clip.idle(idle_index, patch.box)
        composed = paste(idle, patch.pixels, patch.mask) if patch.mask is not None else patch.pixels
        x1, y1, x2, y2 = (int(v) for v in clip.artefacts.boxes[idle_index])
        across, down = 256 / (x2 - x1), 256 / (y2 - y1)
        x, y, half = clip.mouth(idle_index)
        place = x / across + x1 - patch.box.x0, y / down + y1 - patch.box.y0
        openings.append(
            opening_of(composed, place, (LIP_HEIGHT - 1 + reported / 2) / down) * down
        )  # skin may be as dark
        mask = clip.artefacts.mask(idle_index)
        away = _away_from(mask, place, half / across)
        steps.append(_sectors(composed, idle, mask, away))
        seams.append(_seam(composed, idle, mask, away))
        sharp.append(_fineness(composed, mask, away) / max(_fineness(idle, mask, away), 1e-6))
        low = cv2.GaussianBlur(composed.astype(np.float32) - idle, (0, 0), 1.5)
        shown.append((low, (mask > 200) & away))
    flicker = [_change(one, other) for one, other in pairwise(shown)]
    mean = lambda values: float(np.mean(values))  # noqa: E731 - three of them follow
    return Seen(
        np.array(openings),
        np.ma.masked_invalid(np.stack(steps)).mean(0).filled(np.nan),
        mean(flicker),
        mean(sharp),
        mean(seams),
        cost,
    )


def _change(
    one: tuple[NDArray[np.float32], NDArray[np.bool_]], other: tuple[NDArray[np.float32], NDArray[np.bool_]]
) -> float:
    """Mean change between two frames where both are looked at; boxes may differ by some pixels."""
    h, w = (min(a, b) for a, b in zip(one[1].shape, other[1].shape, strict=True))
    both = one[1][:h, :w] & other[1][:h, :w]
    return float(np.abs(one[0][:h, :w] - other[0][:h, :w])[both].mean())


def _away_from(mask: Pixels, at: tuple[float, float], half: float) -> NDArray[np.bool_]:
    """Places that the painted mouth never covers."""
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]]
    return np.asarray((np.abs(x - at[0]) > 1.4 * half) | (np.abs(y - at[1]) > 1.1 * half), np.bool_)


def _sectors(composed: Pixels, idle: Pixels, mask: Pixels, away: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Median difference to the frame just inside the mask's edge, in eight sectors of it: `[8, 3]`, NaN where there is little."""
    inside = (mask > 128) & (mask < 230) & away
    y, x = np.nonzero(inside)
    sector = ((np.arctan2(y - mask.shape[0] / 2, x - mask.shape[1] / 2) / np.pi + 1) * 4).astype(int) % 8
    difference = cv2.GaussianBlur(composed.astype(np.float64) - idle, (0, 0), 2)[inside]
    few = np.full(3, np.nan)
    return np.array([np.median(difference[sector == k], 0) if (sector == k).sum() > 30 else few for k in range(8)])


def _seam(composed: Pixels, idle: Pixels, mask: Pixels, away: NDArray[np.bool_]) -> float:
    """How much steeper the picture is along the mask's edge than the frame is there, in levels a pixel."""
    edge = (mask > 8) & (mask < 200) & away

    def steep(picture: Pixels) -> float:
        low = cv2.GaussianBlur(picture, (0, 0), 2).astype(np.float32)
        gradients = [cv2.Sobel(low, cv2.CV_32F, *axis, ksize=3) / 8 for axis in ((1, 0), (0, 1))]
        return float(np.sqrt(gradients[0] ** 2 + gradients[1] ** 2)[edge].mean())

    return abs(steep(composed) - steep(idle)) if edge.any() else 0.0


def _fineness(picture: Pixels, mask: Pixels, away: NDArray[np.bool_]) -> float:
    """Mean size of what is finer than two pixels, on the skin that the mask shows whole."""
    fine = np.abs(picture.astype(np.float32) - cv2.GaussianBlur(picture.astype(np.float32), (0, 0), 1.5))
    inside = (mask > 200) & away
    return float(fine[inside].mean()) if inside.any() else 0.0


def drawn(folder: Path, frames: int = 50) -> Bundle:
    """The demo avatar's face, 300 pixels wide, that sways by some pixels, with the grain of a camera."""
    rng = np.random.default_rng(0)
    pictures = []
    for k in range(frames):
        x, y = 6 * np.sin(k / 9), 3 * np.sin(k / 7)
        picture, points = moved(70 + x, 30 + y, 1.0, SIZE)
        grain = rng.normal(0, 2, picture.shape[:2])[..., None]
        pictures.append((np.clip(picture + grain, 0, 255).astype(np.uint8), points))
    return bundle_of(folder, pictures)


async def real(folder: Path, clip: Path) -> Bundle:
    """A clip as the agent prepares it."""
    library = AvatarLibrary(folder, ModelStore(offline_settings().models_dir, Manifest.load()))
    try:
        avatar_id = await library.add(clip.read_bytes(), clip.name)
        return await library.prepare(AvatarSource(avatar_id=avatar_id), Picture())
    finally:
        library.close()


def figures_of(name: str, bundle: Bundle, frames: int = FRAMES) -> Iterator[Figure]:
    """The figures of one clip."""
    clip = PaintedClip(bundle, speech(frames))
    x1, _, x2, _ = (int(v) for v in clip.artefacts.boxes[0])
    note = f"{name}, face box {x2 - x1} px, {frames} painted frames"
    raw = seen(clip, None)
    untinted = seen(PaintedClip(bundle, clip.reported, Faults(tint=((0, 0, 0),) * 3)), None).edge
    before = trembling(raw.openings, clip.reported.holds)
    met = [min(raw.openings[closure]) < 2.0 for closure in map(_slice, clip.reported.closures)]
    for look, settings in {RAW: None, **LOOKS}.items():
        made = raw if settings is None else seen(clip, settings)
        trembles = trembling(made.openings, clip.reported.holds)
        kept = [
            min(made.openings[closure]) < 2.0
            for closure, was in zip(map(_slice, clip.reported.closures), met, strict=True)
            if was
        ]
        smooth = settings is not None and settings.smoothing != "off"
        yield Figure(f"{look}: trembling of the lips", trembles, "px of 256", before / 2 if smooth else None, note=note)
        yield Figure(f"{look}: lag behind {RAW}", 40 * lag_frames(made.openings, raw.openings), "ms", 2, note=note)
        yield Figure(f"{look}: closures kept", 100 * float(np.mean(kept)), "%", 95, at_least=True, note=note)
        step = float(np.nanmax(np.abs(made.edge - untinted)))
        yield Figure(f"{look}: colour step", step, "levels", None if settings is None else 2, note=note)
        yield Figure(f"{look}: flicker of the skin", made.flicker, "levels a frame", note=note)
        yield Figure(f"{look}: seam", made.seam, "levels a px", note=note)
        yield Figure(f"{look}: sharpness of the skin", made.sharpness, "of the clip's own", note=note)
        costly = settings is None or settings.blend != "feather" or settings.sharpen > 0
        yield Figure(f"{look}: cost", made.cost_ms, "ms of a core a frame", None if costly else 1, note=note)


def _slice(frames: range) -> slice:
    return slice(frames.start, frames.stop)


async def picture(faces: Path | None) -> list[Figure]:
    """All looks on the drawn clip, or on each clip of a folder."""
    cv2.setNumThreads(1)
    out: list[Figure] = []
    with TemporaryDirectory() as folder:
        if faces is None:
            return list(figures_of("drawn", drawn(Path(folder))))
        for clip in sorted(path for path in faces.iterdir() if path.suffix in {".mp4", ".mpg", ".webm", ".mov"}):
            out += figures_of(clip.stem, await real(Path(folder) / clip.stem, clip))
    return out

"""What the engine derives from a bundle once: latents, face boxes and blend masks; and how a generated face becomes a patch.

On disk, in the engine's folder of the bundle (written whole and renamed into place, read by memory map, never pickle):

    latents.npy     float16 [n, 8, 32, 32]: the masked crop's latent, then the unmasked one's
    boxes.npy       int32 [n, 2, 4]: the face box, and the part of it (even coordinates) that is ever shown
    masks.npy       uint8 [sum of the shown parts' pixels]: their masks one after the other
    placements.npy  float32 [n, 2, 3], of a head that leans: where the pixels of the 256×256 crop lie in the image
"""

from __future__ import annotations

import contextlib
import errno
import logging
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from musetalk_agent.arrays import DamagedArrays, damage_errors, load_array, map_array
from musetalk_agent.avatars import framing
from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.engines.interface import Progress
from musetalk_agent.engines.musetalk.face_region import (
    Boxes,
    FaceBox,
    blend_mask,
    crop_box,
    face_boxes,
    middle,
    region_of_classes,
    region_of_mesh,
    resize,
)
from musetalk_agent.engines.musetalk.turned import Turned, cut, laid, laid_mask, moved, turned_faces, within
from musetalk_agent.media_types import Box, Patch, Pixels

log = logging.getLogger(__name__)

Latents = NDArray[np.float16]
Encode = Callable[[Pixels], Latents]
"""uint8 BGR `[b, 256, 256, 3]` → float16 `[b, 8, 32, 32]`: masked latent, then reference latent, both scaled."""
Parse = Callable[[Pixels], Pixels]
"""uint8 BGR `[b, n, n, 3]` → uint8 classes `[b, 512, 512]`."""

SIDE = 256
"""Pixels of a side of the network's input."""
_PARSED_SIDE = 512
_BATCH = 8
_LATENT = (8, 32, 32)
_REPLACED = "replaced"


@dataclass(frozen=True)
class MuseTalkArtefacts:
    """Everything that inference and composition need beside the bundle's pixels; read-only, shared by all sessions.

    Args:
        latents: float16 `[n, 8, 32, 32]`, per idle frame.
        boxes: int32 `[n, 4]`, the face box: x1, y1, x2, y2 in pixels of the image.
        shown: int32 `[n, 4]`, the even box around the pixels whose mask is not 0.
        masks: uint8, the masks over `shown`, one after the other.
        starts: int64 `[n + 1]`, where each mask begins in `masks`.
        placements: float32 `[n, 2, 3]`, from the crop's pixels to the image's, of a head that leans; None for boxes along the
            image's edges. `boxes` are then those of the face turned upright, within the image.
    """

    latents: Latents
    boxes: Boxes
    shown: Boxes
    masks: Pixels
    starts: NDArray[np.int64]
    placements: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.latents)

    @classmethod
    def of(
        cls,
        bundle: Bundle,
        encode: Encode,
        parse: Parse | None = None,
        bbox_shift: int = 0,
        progress: Progress | None = None,
    ) -> MuseTalkArtefacts:
        """Derives them, a batch of frames at a time; masks come from the mesh without `parse`.

        Raises NoFaceInAvatar when the face is outside the image in every frame, and what `encode` and `parse` raise.
        """
        boxes = face_boxes(bundle.landmarks, bundle.width, bundle.height, bbox_shift)
        turned = turned_faces(np.asarray(bundle.landmarks), bbox_shift)
        if turned is not None:
            boxes = _inside([face.whole_box for face in turned], boxes, bundle.width, bundle.height)
        latents = np.empty((len(bundle), *_LATENT), np.float16)
        shown = np.empty((len(bundle), 4), np.int32)
        masks: list[Pixels] = []
        for start in range(0, len(bundle), _BATCH):
            idle_indices = range(start, min(start + _BATCH, len(bundle)))
            latents[start : idle_indices.stop] = encode(
                np.stack([_crop(bundle, k, boxes[k], turned[k] if turned else None) for k in idle_indices])
            )
            parsed = (
                parse(
                    np.stack([_surroundings(bundle, k, boxes[k], turned[k] if turned else None) for k in idle_indices])
                )
                if parse
                else None
            )
            for k, idle_index in enumerate(idle_indices):
                classes = None if parsed is None else parsed[k]
                if turned is not None:
                    box, part = _shown_turned(turned[idle_index], classes, bundle.width, bundle.height)
                else:
                    face = _tuple(boxes[idle_index])
                    mask = _mask(bundle.landmarks[idle_index], face, classes)
                    box, part = _shown(mask, face, bundle.width, bundle.height)
                shown[idle_index] = (box.x0, box.y0, box.x1, box.y1)
                masks.append(part.reshape(-1))
            if progress:
                progress(idle_indices.stop, len(bundle))
        placements = None if turned is None else np.stack([face.placement(SIDE) for face in turned]).astype(np.float32)
        return cls(latents, boxes, shown, np.concatenate(masks), _starts(shown), placements)

    @classmethod
    def found_or_made(cls, folder: Path, bundle: Bundle, make: Callable[[], MuseTalkArtefacts]) -> MuseTalkArtefacts:
        """What lies in `folder`, or, where there is nothing or something damaged, what `make` returns, saved there first.

        Raises OSError when the folder cannot be written, and what `make` raises.
        """
        try:
            found = cls.load(folder)
            if len(found) == len(bundle) and found.fits(bundle.width, bundle.height):
                return found
            log.warning("artefacts of another clip are made again", extra={"folder": str(folder)})
        except FileNotFoundError:
            pass
        except DamagedArrays as error:
            log.warning("damaged artefacts are made again", extra={"folder": str(folder), "error": str(error)})
        make().save(folder)
        return cls.load(folder)

    def save(self, folder: Path) -> None:
        """Writes them as `folder`, whole or not at all; what lay there is replaced. Raises OSError."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        try:
            np.save(part / "latents.npy", self.latents, allow_pickle=False)
            np.save(part / "boxes.npy", np.stack([self.boxes, self.shown], axis=1), allow_pickle=False)
            np.save(part / "masks.npy", self.masks, allow_pickle=False)
            if self.placements is not None:
                np.save(part / "placements.npy", self.placements, allow_pickle=False)
            with contextlib.suppress(FileNotFoundError):  # readers keep what they have mapped
                folder.rename(part / _REPLACED)
            try:
                part.rename(folder)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
                # another process was quicker; its artefacts are the same
            shutil.rmtree(folder / _REPLACED, ignore_errors=True)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path) -> MuseTalkArtefacts:
        """Opens what `save` wrote.

        Raises FileNotFoundError where there is nothing, and DamagedArrays where it is not whole.
        """
        with damage_errors(folder.name):
            latents = cast("Latents", _mapped(folder / "latents.npy"))
            masks = cast("Pixels", _mapped(folder / "masks.npy"))
            boxes = cast("Boxes", load_array(folder / "boxes.npy"))
            if latents.dtype != np.float16 or latents.shape[1:] != _LATENT:
                raise ValueError(f"latents are {latents.dtype} of shape {latents.shape}")
            if boxes.dtype != np.int32 or boxes.shape != (len(latents), 2, 4) or len(latents) == 0:
                raise ValueError(f"boxes are {boxes.dtype} of shape {boxes.shape} beside {len(latents)} latents")
            if (boxes[..., 2:] <= boxes[..., :2]).any() or (boxes[..., :2] < 0).any() or (boxes[:, 1] % 2).any():
                raise ValueError("a box is empty, outside the picture or odd")
            starts = _starts(boxes[:, 1])
            if masks.dtype != np.uint8 or masks.shape != (starts[-1],):
                raise ValueError(f"masks are {masks.dtype} of shape {masks.shape} instead of {starts[-1]} pixels")
            return cls(latents, boxes[:, 0], boxes[:, 1], masks, starts, _placements(folder, len(latents)))

    def fits(self, width: int, height: int) -> bool:
        """Whether every box lies within an image of this size."""
        return bool((np.maximum(self.boxes[:, 2:], self.shown[:, 2:]) <= (width, height)).all())

    def mask(self, idle_index: int) -> Pixels:
        """The mask over the shown part of `idle_index`, uint8 `[h, w]`."""
        x0, y0, x1, y1 = self.shown[idle_index]
        return self.masks[self.starts[idle_index] : self.starts[idle_index + 1]].reshape(int(y1 - y0), int(x1 - x0))

    def patch(self, idle_index: int, face: Pixels, blend_weight: float = 1.0) -> Patch:
        """The shown part of a generated face, uint8 BGR `[256, 256, 3]`, for idle frame `idle_index`. Any thread may call it.

        Resized as upstream does it (OpenCV's bilinear). `blend_weight` (0 … 1) scales the mask. Outside the face box
        the mask is 0 and the pixels mean nothing.
        """
        box = Box(*_tuple(self.shown[idle_index]))
        if self.placements is not None:
            pixels = laid(face, moved(self.placements[idle_index], box.x0, box.y0), (box.width, box.height))
        else:
            pixels = self._resized(idle_index, face, box)
        mask = self.mask(idle_index)
        if blend_weight < 1.0:
            mask = cast("Pixels", cv2.convertScaleAbs(mask, alpha=max(0.0, blend_weight)))
        return Patch(box, pixels, mask)

    def _resized(self, idle_index: int, face: Pixels, box: Box) -> Pixels:
        x1, y1, x2, y2 = _tuple(self.boxes[idle_index])
        whole = cv2.resize(face, (x2 - x1, y2 - y1), interpolation=cv2.INTER_LINEAR)
        pixels = whole[max(0, box.y0 - y1) : box.y1 - y1, max(0, box.x0 - x1) : box.x1 - x1]
        if pixels.shape[:2] != (box.height, box.width):  # even coordinates reach a pixel past the face box
            top, left = max(0, y1 - box.y0), max(0, x1 - box.x0)
            bottom, right = box.height - top - pixels.shape[0], box.width - left - pixels.shape[1]
            pixels = cv2.copyMakeBorder(pixels, top, bottom, left, right, cv2.BORDER_REPLICATE)
        return cast("Pixels", pixels)


def _mask(points: NDArray[np.float32], box: FaceBox, classes: Pixels | None) -> Pixels:
    """The mask over the face box. Classes without a lower face, of a network that saw none, give way to the mesh."""
    if classes is not None:
        region = region_of_classes(classes, box)
        if region.any():
            return blend_mask(region, box)
    return blend_mask(region_of_mesh(points, box), box)


def _shown(mask: Pixels, face: FaceBox, width: int, height: int) -> tuple[Box, Pixels]:
    """The even box around what is not 0 in a mask over a face box, and the mask over it."""
    x, y, w, h = (int(v) for v in cv2.boundingRect(mask))
    if w == 0:  # nothing is shown: a patch is never empty, so it gets two by two pixels of nothing
        x, y, w, h = 0, middle(face) - face[1], 1, 1
    box = Box(face[0] + x, face[1] + y, face[0] + x + w, face[1] + y + h).even(width, height)
    part = np.zeros((box.height, box.width), np.uint8)
    top, left = face[1] + y - box.y0, face[0] + x - box.x0
    part[top : top + h, left : left + w] = mask[y : y + h, x : x + w]
    return box, part


def _shown_turned(face: Turned, classes: Pixels | None, width: int, height: int) -> tuple[Box, Pixels]:
    """The same for the mask of a face that leans."""
    mask = _mask(face.points, face.whole_box, classes)
    placement = face.mask_placement(mask)
    around = within(placement, mask.shape[1], mask.shape[0])
    upright = laid_mask(mask, moved(placement, around.x0, around.y0), (around.width, around.height))
    x0, y0 = max(0, around.x0), max(0, around.y0)
    x1, y1 = min(width, around.x1), min(height, around.y1)
    if x1 <= x0 or y1 <= y0:
        return _shown(np.zeros((2, 2), np.uint8), (0, 0, 2, 2), width, height)
    inside = upright[y0 - around.y0 : y1 - around.y0, x0 - around.x0 : x1 - around.x0]
    return _shown(np.ascontiguousarray(inside), (x0, y0, x1, y1), width, height)


def _crop(bundle: Bundle, idle_index: int, box: NDArray[np.int32], turned: Turned | None = None) -> Pixels:
    """The face box's pixels as the network sees them: 256×256, OpenCV's Lanczos, the shape not kept."""
    if turned is not None:
        return _cut(bundle, idle_index, turned.placement(SIDE), SIDE)
    pixels = _pixels(bundle, idle_index, Box(*_tuple(box)))
    return cast("Pixels", cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_LANCZOS4))


def _cut(bundle: Bundle, idle_index: int, placement: NDArray[np.float64], side: int) -> Pixels:
    around = within(placement, side, side)
    return cut(_pixels(bundle, idle_index, around), moved(placement, around.x0, around.y0), side)


def _surroundings(bundle: Bundle, idle_index: int, box: NDArray[np.int32], turned: Turned | None = None) -> Pixels:
    """The crop that is parsed, 512×512 as Pillow resizes it; black where it reaches out of the image."""
    if turned is not None:
        return _cut(bundle, idle_index, turned.square_placement(_PARSED_SIDE), _PARSED_SIDE)
    pixels = _pixels(bundle, idle_index, Box(*crop_box(_tuple(box))))
    return resize(pixels, _PARSED_SIDE, "bilinear")


def _pixels(bundle: Bundle, idle_index: int, box: Box) -> Pixels:
    """BGR pixels of an idle frame in any box, black outside the image.

    They come from the face window where it holds them, else from the frame's planes: the window was cut from the same ones.
    """
    window = bundle.box(idle_index)
    inside = window.x0 <= box.x0 and window.y0 <= box.y0 and box.x1 <= window.x1 and box.y1 <= window.y1
    if inside:
        face = bundle.faces[idle_index]
        return np.asarray(face[box.y0 - window.y0 : box.y1 - window.y0, box.x0 - window.x0 : box.x1 - window.x0])
    out = np.zeros((box.height, box.width, 3), np.uint8)
    seen = box.even(bundle.width, bundle.height)
    if seen.x0 < seen.x1 and seen.y0 < seen.y1:
        part = framing.to_bgr(framing.crop_i420(bundle.frames[idle_index], (bundle.width, bundle.height), seen))
        x0, y0 = max(box.x0, seen.x0), max(box.y0, seen.y0)
        x1, y1 = min(box.x1, seen.x1), min(box.y1, seen.y1)
        out[y0 - box.y0 : y1 - box.y0, x0 - box.x0 : x1 - box.x0] = part[
            y0 - seen.y0 : y1 - seen.y0, x0 - seen.x0 : x1 - seen.x0
        ]
    return out


def _inside(turned: list[FaceBox], boxes: Boxes, width: int, height: int) -> Boxes:
    """The upright boxes as far as they lie in the image, and those along its edges where nothing of them does."""
    low, high = np.zeros(4, np.int32), np.array([width, height, width, height], np.int32)
    inside = np.clip(np.array(turned, np.int32), low, high).astype(np.int32)
    return np.where((inside[:, 2:] > inside[:, :2]).all(1, keepdims=True), inside, boxes)


def _placements(folder: Path, count: int) -> NDArray[np.float32] | None:
    """Raises ValueError for other ones than `save` writes."""
    if not (folder / "placements.npy").exists():
        return None
    placements = load_array(folder / "placements.npy")
    if placements.dtype != np.float32 or placements.shape != (count, 2, 3) or not np.isfinite(placements).all():
        raise ValueError(f"placements are {placements.dtype} of shape {placements.shape} beside {count} latents")
    return cast("NDArray[np.float32]", placements)


def _starts(shown: Boxes) -> NDArray[np.int64]:
    sizes = (shown[:, 2:] - shown[:, :2]).astype(np.int64).prod(1)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])


def _mapped(path: Path) -> NDArray[np.generic]:
    """A `.npy` by memory map, read-only. Raises ValueError when the file has another size than its header says."""
    array = map_array(path)
    if path.stat().st_size != array.nbytes + array.offset:
        raise ValueError(f"{path.name} has the wrong size")
    return cast("NDArray[np.generic]", array)


def _tuple(box: NDArray[np.int32]) -> FaceBox:
    x1, y1, x2, y2 = (int(v) for v in box)
    return x1, y1, x2, y2

"""MuseTalk's boxes, masks, blending and frame numbers, one frame after the other, with Pillow, from a description alone.

Slow and straight; imports nothing of the product. A face box is (x1, y1, x2, y2); pictures are uint8 BGR `[h, w, 3]`.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from PIL import Image

FaceBox = tuple[int, int, int, int]


def face_box(face68: np.ndarray, height: int, bbox_shift: int = 0) -> FaceBox:
    """§3.4 for v1.5: integer points `[68, 2]` in dlib's order; the margin of 10 included."""
    middle = int(face68[29, 1]) + bbox_shift
    lowest = max(int(y) for _, y in face68)
    upper = max(0, middle - (lowest - middle))
    left = min(int(x) for x, _ in face68)
    right = max(int(x) for x, _ in face68)
    return left, upper, right, min(lowest + 10, height)


def crop_box(box: FaceBox) -> tuple[FaceBox, int]:
    """§3.6: the square around a face box, and half its side."""
    x1, y1, x2, y2 = box
    xc, yc = (x1 + x2) // 2, (y1 + y2) // 2
    width, height = x2 - x1, y2 - y1
    half = int(max(width, height) // 2 * 1.5)
    return (xc - half, yc - half, xc + half, yc + half), half


def network_picture(frame: np.ndarray, box: FaceBox) -> np.ndarray:
    """§3.5: what is encoded, BGR 256×256."""
    x1, y1, x2, y2 = box
    return cv2.resize(frame[y1:y2, x1:x2], (256, 256), interpolation=cv2.INTER_LANCZOS4)


def parsed_picture(frame: np.ndarray, box: FaceBox) -> np.ndarray:
    """§3.6: what is parsed, RGB 512×512."""
    body = Image.fromarray(frame[:, :, ::-1])
    return np.array(body.crop(crop_box(box)[0]).resize((512, 512), Image.Resampling.BILINEAR))


def jaw_region(classes: np.ndarray) -> np.ndarray:
    """§3.6, mode "jaw": classes `[512, 512]` → 0 or 255, by loops over the kernels' offsets."""
    skin = classes == 1
    grown = np.zeros_like(skin)
    for r in range(10, 33):
        half = min(r - 10, 10)
        for c in range(16 - half, 16 + half + 1):
            grown |= _shifted(skin, r - 16, c - 16, outside=False)
    narrowed = grown
    for _ in range(2):
        before, narrowed = narrowed, narrowed.copy()
        for r, c in [(0, c) for c in range(-17, 18)] + [(-1, 0), (1, 0)]:
            narrowed &= _shifted(before, r, c, outside=True)
    cheeks = np.zeros_like(skin)
    cheeks[:, 0 : 166 + 1] = True
    cheeks[:, 346:] = True
    whole = (narrowed & cheeks) | (grown & ~cheeks)
    shown = (whole & (classes != 10)) | np.isin(classes, (11, 12, 13))
    return np.where(shown, 255, 0).astype(np.uint8)


def _shifted(picture: np.ndarray, rows: int, columns: int, outside: bool) -> np.ndarray:
    """`out[y, x] = picture[y + rows, x + columns]`."""
    height, width = picture.shape
    padded = np.full((height + 80, width + 80), outside)
    padded[40 : 40 + height, 40 : 40 + width] = picture
    return padded[40 + rows : 40 + rows + height, 40 + columns : 40 + columns + width]


def mask_in_crop(region: np.ndarray, box: FaceBox) -> np.ndarray:
    """§3.6: a region `[512, 512]` of the crop → the mask `[2s, 2s]`, with the real-time path's blur."""
    x1, y1, x2, y2 = box
    (xs, ys, _, _), half = crop_box(box)
    side = 2 * half
    whole = Image.fromarray(region).resize((side, side))
    small = whole.crop((x1 - xs, y1 - ys, x2 - xs, y2 - ys))
    mask = Image.new("L", (side, side), 0)
    mask.paste(small, (x1 - xs, y1 - ys))
    return soften(np.array(mask))


def soften(mask: np.ndarray) -> np.ndarray:
    """§3.6: rows above the middle to 0, then the Gaussian."""
    mask = mask.copy()
    mask[: int(mask.shape[0] * 0.5)] = 0
    size = int(0.1 * mask.shape[0] // 2 * 2) + 1
    return cv2.GaussianBlur(mask, (size, size), 0)


def blend(frame: np.ndarray, face: np.ndarray, box: FaceBox, mask: np.ndarray) -> np.ndarray:
    """§4: the generated face, BGR 256×256, on the frame, with the crop's mask."""
    x1, y1, x2, y2 = box
    crop, _ = crop_box(box)
    body = Image.fromarray(frame[:, :, ::-1])
    resized = Image.fromarray(cv2.resize(face, (x2 - x1, y2 - y1))[:, :, ::-1])
    large = body.crop(crop)
    large.paste(resized, (x1 - crop[0], y1 - crop[1]))
    body.paste(large, crop[:2], Image.fromarray(mask))
    return np.array(body)[:, :, ::-1]


def frame_count(samples: int, fps: int) -> int:
    """§2.5: frames of so many samples at 16 kHz, in upstream's order of operations and with its rounding."""
    return math.floor((samples / 16000) * fps)


def ping_pong(frames: int) -> list[int]:
    """§3.1: the order of the idle frames, the end frames twice."""
    order = list(range(frames))
    return order + order[::-1]


def latent_of(frame: int, frames: int) -> int:
    """§4: the idle frame whose latent makes output frame `frame`."""
    order = ping_pong(frames)
    return order[frame % len(order)]

"""Heads that lean: the network sees them upright, and what it makes lies where the head is, to a part of a pixel."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from musetalk_agent.arrays import DamagedArrays
from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.compose.compositor import paste
from musetalk_agent.engines.musetalk.artefacts import MuseTalkArtefacts
from musetalk_agent.engines.musetalk.face_region import LOCK, face_boxes, locked
from musetalk_agent.engines.musetalk.turned import LEANS, turned_faces
from musetalk_agent.media_types import Pixels
from tests.musetalk_agent.engines.musetalk.faces import bundle_of, moved
from tests.musetalk_agent.engines.warp.faces import demo_points

SIZE = (560, 500)


def leaning(degrees: float, x: float = 0.0) -> tuple[Pixels, NDArray[np.float32]]:
    """The demo face turned about its middle, and its mesh."""
    picture, points = moved(60 + x, 40, 0.75, SIZE)
    matrix = cv2.getRotationMatrix2D((280, 250), -degrees, 1.0)
    picture = np.asarray(cv2.warpAffine(picture, matrix, SIZE, borderMode=cv2.BORDER_REPLICATE), np.uint8)
    return picture, np.asarray(points @ matrix[:, :2].T + matrix[:, 2], np.float32)


class Kept:
    """An encoder that keeps the crops."""

    def __init__(self) -> None:
        self.crops: list[Pixels] = []

    def __call__(self, crops: Pixels) -> NDArray[np.float16]:
        self.crops += list(crops)
        return np.zeros((len(crops), 8, 32, 32), np.float16)


def made(
    folder: Path, frames: list[tuple[Pixels, NDArray[np.float32]]]
) -> tuple[Bundle, MuseTalkArtefacts, list[Pixels]]:
    bundle, kept = bundle_of(folder, frames), Kept()
    return bundle, MuseTalkArtefacts.of(bundle, kept), kept.crops


def idle(bundle: Bundle, idle_index: int, artefacts: MuseTalkArtefacts) -> Pixels:
    x0, y0, x1, y1 = (int(v) for v in artefacts.shown[idle_index])
    window = bundle.box(idle_index)
    return np.asarray(bundle.faces[idle_index][y0 - window.y0 : y1 - window.y0, x0 - window.x0 : x1 - window.x0])


@pytest.mark.parametrize("degrees", [-25.0, -8.0, 12.0, 30.0])
def test_the_network_sees_the_same_face_however_it_leans(tmp_path: Path, degrees: float) -> None:
    _, _, (upright,) = made(tmp_path / "level", [leaning(8)])
    _, artefacts, (crop,) = made(tmp_path / "leaning", [leaning(degrees)])
    assert artefacts.placements is not None
    middle = (slice(60, 240), slice(50, 206))
    assert np.abs(crop[middle].astype(int) - upright[middle]).mean() < 3


@pytest.mark.parametrize("degrees", [-25.0, 7.5, 30.0])
def test_a_perfect_face_lies_exactly_where_it_came_from(tmp_path: Path, degrees: float) -> None:
    bundle, artefacts, (crop,) = made(tmp_path, [leaning(degrees)])
    patch = artefacts.patch(0, crop)
    below = idle(bundle, 0, artefacts)
    assert patch.mask is not None and patch.mask.max() == 255
    composed = paste(below, patch.pixels, patch.mask)
    assert np.abs(composed.astype(int) - below).mean() < 1.2  # the crop has 256 pixels for a face of about as many
    for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        other = paste(below, np.roll(patch.pixels, (dy, dx), (0, 1)), patch.mask)
        assert np.abs(other.astype(int) - below).mean() > 1.5 * np.abs(composed.astype(int) - below).mean()


def test_the_mask_leans_with_the_head(tmp_path: Path) -> None:
    bundle, artefacts, _ = made(tmp_path, [leaning(25)])
    mask, (x0, y0) = artefacts.mask(0), artefacts.shown[0, :2]
    points = bundle.landmarks[0]

    def at(index: int, out: float) -> int:
        x, y = points[13] + (points[index] - points[13]) * out - (x0, y0)
        inside = 0 <= round(y) < mask.shape[0] and 0 <= round(x) < mask.shape[1]
        return int(mask[round(y), round(x)]) if inside else 0

    assert min(at(61, 1.0), at(291, 1.0), at(17, 1.0)) > 240  # lips
    assert (
        at(152, 0.9) > 128 and max(at(1, 1.0), at(33, 1.0), at(263, 1.0), at(152, 1.4)) < 60
    )  # chin; nose, eyes, neck


def test_a_face_that_glides_does_not_tremble(tmp_path: Path) -> None:
    """By a third of a pixel a frame: the crop shows it at the same place, where boxes of whole pixels would shake it."""
    frames = [leaning(10, k / 3) for k in range(8)]
    _, _, crops = made(tmp_path, frames)
    shifts = [
        cv2.phaseCorrelate(*(c[80:240, 60:196, 1].astype(np.float64) for c in (crops[0], crop)))[0]
        for crop in crops[1:]
    ]
    assert np.abs(np.array(shifts)).max() < 0.15


def test_level_heads_keep_boxes_along_the_edges(tmp_path: Path) -> None:
    lean = np.degrees(LEANS)
    own = float(np.degrees(np.arctan2(*(demo_points()[263] - demo_points()[33])[::-1])))
    assert turned_faces(np.stack([leaning(-own + 0.8 * lean)[1]])) is None
    assert turned_faces(np.stack([leaning(-own)[1], leaning(-own + 1.2 * lean)[1]])) is not None
    assert made(tmp_path, [leaning(-own)])[1].placements is None


def test_placements_are_kept_and_damaged_ones_noticed(tmp_path: Path) -> None:
    _, artefacts, (crop,) = made(tmp_path / "bundle", [leaning(15)])
    folder = tmp_path / "artefacts"
    artefacts.save(folder)
    found = MuseTalkArtefacts.load(folder)
    assert np.array_equal(found.patch(0, crop).pixels, artefacts.patch(0, crop).pixels)
    np.save(folder / "placements.npy", np.zeros((2, 2, 3), np.float32))
    with pytest.raises(DamagedArrays):
        MuseTalkArtefacts.load(folder)


def test_a_head_that_leans_out_of_the_picture_is_drawn_as_far_as_it_is_seen(tmp_path: Path) -> None:
    picture, points = leaning(20)
    gone = np.float32(-230)
    shifted = np.asarray(cv2.warpAffine(picture, np.array([[1, 0, gone], [0, 1, 0]], np.float64), SIZE), np.uint8)
    bundle, artefacts, (crop,) = made(tmp_path, [(shifted, points + np.float32([gone, 0]))])
    assert artefacts.fits(bundle.width, bundle.height)
    patch = artefacts.patch(0, crop)
    assert patch.pixels.shape[:2] == (patch.box.height, patch.box.width) and patch.box.x0 == 0


def test_the_size_of_a_box_is_held_and_is_never_less_than_the_face() -> None:
    jaw = np.array([200, 203, 209, 201, 206, 200, 210], np.float32)
    held = locked(jaw)
    assert np.ptp(held) < 0.2 * np.ptp(jaw) and (held >= jaw).all() and (held <= LOCK * jaw + 1e-3).all()
    comes = np.linspace(100, 200, 50, dtype=np.float32)
    assert (locked(comes) >= comes).all() and (locked(comes) <= LOCK * comes + 1e-3).all()
    assert np.array_equal(locked(np.array([170], np.float32)), [170])


def test_boxes_of_a_talker_have_one_size() -> None:
    """Its chin drops by 4 % of the face's height and comes up again."""
    still = demo_points()
    clip = np.stack([still] * 12)
    chin = [152, 148, 377, 176, 400]
    clip[:, chin, 1] += 8 * (1 + np.sin(np.arange(12)))[:, None]
    boxes = face_boxes(clip, 1024, 1024)
    sizes = boxes[:, 2:] - boxes[:, :2]
    assert np.ptp(sizes, axis=0).max() <= 2  # the middle and the bottom are cut to whole pixels each

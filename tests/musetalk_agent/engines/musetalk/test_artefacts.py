"""Artefacts: what they hold, how they are kept, and the patches they give."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.compose.compositor import Compositor
from musetalk_agent.engines.musetalk.artefacts import MuseTalkArtefacts
from musetalk_agent.engines.musetalk.face_region import blend_mask, region_of_mesh
from musetalk_agent.media_types import Pixels
from tests.musetalk_agent.engines.musetalk.faces import bundle_of, frame_of, moved
from tests.reference import musetalk as reference

SIZE = (640, 360)


def clip(folder: Path) -> Bundle:
    """Ten frames: the face in the middle, at every edge, near and far."""
    places = [(100, -90, 0.9), (101, -90, 0.9), (-180, -60, 0.8), (360, -40, 0.8), (150, 30, 0.8), (120, -200, 1.1)]
    places += [(200, 40, 0.4), (160, -80, 0.85), (161, -81, 0.85), (162, -82, 0.85)]
    return bundle_of(folder, [moved(x, y, scale, SIZE) for x, y, scale in places])


class Encoder:
    """Remembers the crops; a crop's latent is its own number."""

    def __init__(self) -> None:
        self.crops: list[Pixels] = []

    def __call__(self, crops: Pixels) -> np.ndarray:
        assert crops.dtype == np.uint8 and crops.shape[1:] == (256, 256, 3) and len(crops) <= 8
        first = len(self.crops)
        self.crops.extend(crops)
        numbers = np.arange(first, len(self.crops), dtype=np.float16)
        return np.broadcast_to(numbers[:, None, None, None], (len(crops), 8, 32, 32)).astype(np.float16)


def classes_of(crops: Pixels) -> Pixels:
    """A parsed face as large as the crop makes it, moved by the crop's brightness so that each is another one."""
    out = np.zeros((len(crops), 512, 512), np.uint8)
    for k, crop in enumerate(crops):
        shift = int(crop.mean()) % 40
        cv2.ellipse(out[k], (256, 250 + shift), (150, 160), 0, 0, 360, 1, -1)
        cv2.ellipse(out[k], (256, 340), (50, 20), 0, 0, 360, 12, -1)
    return out


def boxes_of(artefacts: MuseTalkArtefacts) -> list[tuple[int, int, int, int]]:
    return [(int(a), int(b), int(c), int(d)) for a, b, c, d in artefacts.boxes]


def test_every_pose_is_encoded_from_upstreams_crop(tmp_path: Path) -> None:
    bundle, encoder, reported = clip(tmp_path), Encoder(), []
    artefacts = MuseTalkArtefacts.of(bundle, encoder, progress=lambda done, total: reported.append((done, total)))
    assert reported == [(8, 10), (10, 10)]
    assert artefacts.latents[:, 0, 0, 0].tolist() == list(range(10)) and artefacts.latents.dtype == np.float16
    for idle_index, box in enumerate(boxes_of(artefacts)):
        assert np.array_equal(
            encoder.crops[idle_index], reference.network_picture(frame_of(bundle, idle_index), box)
        ), idle_index


def test_what_is_parsed_is_upstreams_crop_black_outside_the_picture(tmp_path: Path) -> None:
    bundle, seen = clip(tmp_path), []

    def parse(crops: Pixels) -> Pixels:
        seen.extend(crops)
        return classes_of(crops)

    artefacts = MuseTalkArtefacts.of(bundle, Encoder(), parse)
    for idle_index, box in enumerate(boxes_of(artefacts)):
        theirs = reference.parsed_picture(frame_of(bundle, idle_index), box)
        assert np.array_equal(seen[idle_index][..., ::-1], theirs), idle_index
    assert min(picture[0].max() for picture in seen) == 0  # one of them begins above the picture


@pytest.mark.parametrize("parse", [None, classes_of])
def test_a_composed_frame_is_upstreams_to_the_bit(tmp_path: Path, parse: Callable[[Pixels], Pixels] | None) -> None:
    bundle = clip(tmp_path)
    artefacts = MuseTalkArtefacts.of(bundle, Encoder(), parse)
    compositor, rng = Compositor(bundle), np.random.default_rng(5)
    for idle_index, box in enumerate(boxes_of(artefacts)):
        face, frame = rng.integers(0, 256, (256, 256, 3), np.uint8), frame_of(bundle, idle_index)
        if parse:
            crop = cv2.cvtColor(reference.parsed_picture(frame, box), cv2.COLOR_RGB2BGR)
            mask = reference.mask_in_crop(reference.jaw_region(classes_of(crop[None])[0]), box)
        else:
            mask = _in_crop(blend_mask(region_of_mesh(bundle.landmarks[idle_index], box), box), box)
        patch = artefacts.patch(idle_index, face)
        window = bundle.box(idle_index)
        assert window.x0 <= patch.box.x0 and patch.box.x1 <= window.x1 and patch.box.width % 2 == 0
        assert window.y0 <= patch.box.y0 and patch.box.y1 <= window.y1 and patch.box.height % 2 == 0
        theirs = reference.blend(frame, face, box, mask)
        # What is outside the patch keeps its planes; inside, upstream's picture is converted.
        expected = bundle.frames[idle_index].copy()
        converted = cv2.cvtColor(np.ascontiguousarray(theirs), cv2.COLOR_BGR2YUV_I420)
        part = patch.box
        width, height = SIZE
        for plane, made, scale in zip(
            _planes(expected, width, height), _planes(converted, width, height), (1, 2, 2), strict=True
        ):
            rows, columns = slice(part.y0 // scale, part.y1 // scale), slice(part.x0 // scale, part.x1 // scale)
            plane[rows, columns] = made[rows, columns]
        assert np.array_equal(compositor.compose(idle_index, patch).i420, expected.reshape(-1)), idle_index
        changed = np.argwhere((theirs != frame).any(2))
        assert (changed >= (part.y0, part.x0)).all() and (changed < (part.y1, part.x1)).all()
        assert changed[:, 0].min() > box[1] and patch.box.height < 0.75 * (box[3] - box[1])


def test_the_blend_weight_scales_the_mask(tmp_path: Path) -> None:
    artefacts = MuseTalkArtefacts.of(clip(tmp_path), Encoder())
    face = np.full((256, 256, 3), 7, np.uint8)
    whole, half, none = (artefacts.patch(0, face, blend_weight).mask for blend_weight in (1.0, 0.5, 0.0))
    assert whole is not None and half is not None and none is not None
    assert whole.max() == 255 and half.max() == 128 and none.max() == 0
    assert np.abs(half.astype(float) - whole / 2).max() <= 0.5


def test_a_parse_without_a_face_gives_way_to_the_mesh(tmp_path: Path) -> None:
    bundle = clip(tmp_path)
    blind = MuseTalkArtefacts.of(bundle, Encoder(), lambda crops: np.zeros((len(crops), 512, 512), np.uint8))
    mesh = MuseTalkArtefacts.of(bundle, Encoder())
    assert np.array_equal(blind.masks, mesh.masks) and np.array_equal(blind.shown, mesh.shown)


def test_artefacts_are_read_back_by_memory_map(tmp_path: Path) -> None:
    made = MuseTalkArtefacts.of(clip(tmp_path), Encoder())
    folder = tmp_path / "engines" / "musetalk-1"
    made.save(folder)
    made.save(folder)  # a second process that made the same
    found = MuseTalkArtefacts.load(folder)
    assert isinstance(found.latents, np.memmap) and isinstance(found.masks, np.memmap)
    for name in ("latents", "boxes", "shown", "masks", "starts"):
        assert np.array_equal(getattr(found, name), getattr(made, name)), name
    assert sorted(p.name for p in folder.iterdir()) == ["boxes.npy", "latents.npy", "masks.npy"]
    assert [p.name for p in folder.parent.iterdir()] == ["musetalk-1"]
    assert found.latents.nbytes == 10 * 16 * 1024


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _pickled(path: Path) -> None:
    np.save(path, np.array([{}], object), allow_pickle=True)


def _half_of_it(path: Path) -> None:
    np.save(path, np.load(path)[: len(np.load(path)) // 2])


@pytest.mark.parametrize("name", ["latents.npy", "boxes.npy", "masks.npy"])
@pytest.mark.parametrize("damage", [_cut, _pickled, _half_of_it, Path.unlink, lambda path: path.write_bytes(b"")])
def test_damaged_artefacts_are_made_again(
    tmp_path: Path, name: str, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    bundle, folder, made = clip(tmp_path), tmp_path / "engines" / "musetalk-1", []

    def make() -> MuseTalkArtefacts:
        made.append(MuseTalkArtefacts.of(bundle, Encoder()))
        return made[-1]

    MuseTalkArtefacts.found_or_made(folder, bundle, make)
    assert (
        len(made) == 1
        and MuseTalkArtefacts.found_or_made(folder, bundle, make).boxes.shape == (10, 4)
        and len(made) == 1
    )
    damage(folder / name)
    with caplog.at_level(logging.WARNING):
        again = MuseTalkArtefacts.found_or_made(folder, bundle, make)
    assert len(made) == 2 and np.array_equal(again.masks, made[0].masks)


def test_artefacts_of_another_clip_are_made_again(tmp_path: Path) -> None:
    bundle, folder = clip(tmp_path), tmp_path / "engines" / "musetalk-1"
    other = bundle_of(tmp_path, [moved(100, -90, 0.9, SIZE)])
    MuseTalkArtefacts.of(other, Encoder()).save(folder)
    assert len(MuseTalkArtefacts.found_or_made(folder, bundle, lambda: MuseTalkArtefacts.of(bundle, Encoder()))) == 10


def test_a_failed_save_leaves_what_was_there(tmp_path: Path) -> None:
    made = MuseTalkArtefacts.of(clip(tmp_path), Encoder())
    folder = tmp_path / "engines" / "musetalk-1"
    made.save(folder)
    broken = MuseTalkArtefacts(made.latents, made.boxes, made.shown[:-1], made.masks, made.starts)
    with pytest.raises(ValueError):
        broken.save(folder)
    assert len(MuseTalkArtefacts.load(folder)) == 10
    assert [p.name for p in folder.parent.iterdir()] == ["musetalk-1"]


def _in_crop(mask: Pixels, box: tuple[int, int, int, int]) -> Pixels:
    (xs, ys, xe, ye), _ = reference.crop_box(box)
    whole = np.zeros((ye - ys, xe - xs), np.uint8)
    whole[box[1] - ys : box[3] - ys, box[0] - xs : box[2] - xs] = mask
    return whole


def _planes(i420: Pixels, width: int, height: int) -> list[Pixels]:
    flat = i420.reshape(-1)
    quarter = width * height // 4
    u, v = flat[width * height : width * height + quarter], flat[width * height + quarter :]
    return [flat[: width * height].reshape(height, width), u.reshape(height // 2, -1), v.reshape(height // 2, -1)]

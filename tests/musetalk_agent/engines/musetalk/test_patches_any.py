"""How a generated face becomes a patch, and how its artefacts lie on disk: against plain numpy, for any box."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musetalk_agent.arrays import DamagedArrays
from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.engines.musetalk.artefacts import MuseTalkArtefacts, _pixels, _shown, _starts
from musetalk_agent.engines.musetalk.face_region import FaceBox
from musetalk_agent.media_types import Box, Pixels
from tests.musetalk_agent.engines.musetalk.faces import bundle_of, frame_of, moved

WIDTH, HEIGHT = 96, 80
FACE = np.random.default_rng(5).integers(0, 256, (256, 256, 3), np.uint8)


def made(box: FaceBox, mask: Pixels) -> tuple[MuseTalkArtefacts, Box]:
    """Artefacts of one idle frame: a face box, and the part of its mask that is shown."""
    shown, part = _shown(mask, box, WIDTH, HEIGHT)
    corners = np.array([[shown.x0, shown.y0, shown.x1, shown.y1]], np.int32)
    latents = np.zeros((1, 8, 32, 32), np.float16)
    return MuseTalkArtefacts(latents, np.array([box], np.int32), corners, part.reshape(-1), _starts(corners)), shown


BOXES = st.builds(
    lambda x, y, w, h: (x, y, min(x + w, WIDTH), min(y + h, HEIGHT)),
    st.integers(0, WIDTH - 6),
    st.integers(0, HEIGHT - 6),
    st.integers(4, 60),
    st.integers(4, 60),
)


def mask_of(box: FaceBox, seed: int, share: float = 0.02) -> Pixels:
    """A mask over a face box of which a few pixels are shown."""
    source = np.random.default_rng(seed)
    shape = box[3] - box[1], box[2] - box[0]
    return np.where(source.random(shape) < share, source.integers(1, 256, shape), 0).astype(np.uint8)


@given(BOXES, st.integers(0, 99))
def test_what_is_shown_is_the_even_box_around_all_of_the_mask(box: FaceBox, seed: int) -> None:
    mask = mask_of(box, seed)
    shown, part = _shown(mask, box, WIDTH, HEIGHT)
    assert all(value % 2 == 0 for value in (shown.x0, shown.y0, shown.x1, shown.y1))
    assert 0 <= shown.x0 < shown.x1 <= WIDTH and 0 <= shown.y0 < shown.y1 <= HEIGHT
    whole = np.zeros((HEIGHT, WIDTH), np.uint8)
    whole[box[1] : box[3], box[0] : box[2]] = mask
    again = np.zeros_like(whole)
    again[shown.y0 : shown.y1, shown.x0 : shown.x1] = part
    assert np.array_equal(again, whole), "no pixel of the mask is lost, and none is added"
    if mask.any():
        rows, columns = np.nonzero(whole)
        assert shown.y0 in (rows.min() - 1, rows.min()) and shown.x0 in (columns.min() - 1, columns.min())
        assert shown.y1 in (rows.max() + 1, rows.max() + 2) and shown.x1 in (columns.max() + 1, columns.max() + 2)
    else:
        assert (shown.width, shown.height) == (2, 2)


@settings(max_examples=60)
@given(BOXES, st.integers(0, 99))
def test_a_patch_is_the_resized_face_where_its_mask_shows_it(box: FaceBox, seed: int) -> None:
    mask = mask_of(box, seed)
    artefacts, shown = made(box, mask)
    patch = artefacts.patch(0, FACE)
    assert patch.box == shown and patch.mask is not None
    assert patch.pixels.shape == (shown.height, shown.width, 3) and patch.mask.shape == patch.pixels.shape[:2]
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[box[1] : box[3], box[0] : box[2]] = cv2.resize(FACE, (box[2] - box[0], box[3] - box[1]))
    there = picture[shown.y0 : shown.y1, shown.x0 : shown.x1]
    assert np.array_equal(patch.pixels[patch.mask > 0], there[patch.mask > 0])


@given(st.floats(0, 1.5), st.integers(0, 9))
def test_the_blend_weight_scales_the_mask_to_half_a_level_and_never_beyond_it(blend_weight: float, seed: int) -> None:
    box = (10, 10, 50, 60)
    artefacts, _ = made(box, mask_of(box, seed, 0.5))
    whole, part = artefacts.mask(0), artefacts.patch(0, FACE, blend_weight).mask
    assert part is not None and (part <= whole).all()
    assert np.abs(part - whole.astype(float) * min(blend_weight, 1.0)).max() <= 0.5 + 1e-4
    assert np.array_equal(artefacts.mask(0), whole), "the mask that is shared stays as it is"


def test_blend_weight_nought_shows_nothing() -> None:
    box = (10, 10, 50, 60)
    artefacts, _ = made(box, mask_of(box, 1, 0.5))
    for blend_weight in (0.0, -1.0):
        mask = artefacts.patch(0, FACE, blend_weight).mask
        assert mask is not None and not mask.any()


SIZE = (160, 120)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle_of(tmp_path_factory.mktemp("bundle"), [moved(30, 20, 0.15, SIZE), moved(60, 30, 0.12, SIZE)])


@given(st.integers(-60, 150), st.integers(-60, 110), st.integers(1, 120), st.integers(1, 120), st.integers(0, 1))
def test_pixels_of_any_box_are_the_frame_s_and_black_outside_it(
    bundle: Bundle, x: int, y: int, width: int, height: int, idle_index: int
) -> None:
    around = 200
    padded = np.zeros((SIZE[1] + 2 * around, SIZE[0] + 2 * around, 3), np.uint8)
    padded[around:-around, around:-around] = frame_of(bundle, idle_index)
    seen = _pixels(bundle, idle_index, Box(x, y, x + width, y + height))
    exact = padded[y + around : y + height + around, x + around : x + width + around]
    assert seen.shape == exact.shape
    assert np.abs(seen.astype(int) - exact).max(initial=0) == 0


def stored(folder: Path, idle_indices: int = 3) -> MuseTalkArtefacts:
    """Artefacts of some idle frames, saved."""
    boxes = np.array([[10 + k, 10, 50 + k, 60] for k in range(idle_indices)], np.int32)
    shown = np.array([[12, 30, 48, 60 - 2 * k] for k in range(idle_indices)], np.int32)
    starts = _starts(shown)
    source = np.random.default_rng(0)
    latents = source.random((idle_indices, 8, 32, 32)).astype(np.float16)
    masks = source.integers(0, 256, int(starts[-1])).astype(np.uint8)
    artefacts = MuseTalkArtefacts(latents, boxes, shown, masks, starts)
    artefacts.save(folder)
    return artefacts


def test_what_was_saved_comes_back_mapped_and_read_only(tmp_path: Path) -> None:
    saved = stored(tmp_path / "a")
    loaded = MuseTalkArtefacts.load(tmp_path / "a")
    assert len(loaded) == 3 and isinstance(loaded.latents, np.memmap)
    for name in ("latents", "boxes", "shown", "masks", "starts"):
        assert np.array_equal(getattr(loaded, name), getattr(saved, name)), name
    for idle_index in range(3):
        assert np.array_equal(loaded.mask(idle_index), saved.mask(idle_index))
    assert loaded.mask(2).shape == (26, 36)
    with pytest.raises(ValueError, match="read-only"):
        loaded.latents[0] = 0


def test_saving_replaces_what_lay_there_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    stored(tmp_path / "a", 2)
    mapped = MuseTalkArtefacts.load(tmp_path / "a")
    before = np.array(mapped.latents)
    stored(tmp_path / "a", 3)
    assert len(MuseTalkArtefacts.load(tmp_path / "a")) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["boxes.npy", "latents.npy", "masks.npy"]
    assert np.array_equal(mapped.latents, before), "who has it mapped keeps it"


def test_nothing_there_is_distinguished_from_something_broken(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        MuseTalkArtefacts.load(tmp_path / "a")
    stored(tmp_path / "a")
    (tmp_path / "a" / "masks.npy").write_bytes(b"")
    with pytest.raises(DamagedArrays):
        MuseTalkArtefacts.load(tmp_path / "a")


@pytest.mark.parametrize("name", ["latents", "boxes", "masks"])
def test_a_header_that_numpy_cannot_parse_is_damage(tmp_path: Path, name: str) -> None:
    stored(tmp_path / "a")
    path = tmp_path / "a" / f"{name}.npy"
    path.write_bytes(path.read_bytes().replace(b"), }", b",   ", 1))
    with pytest.raises(DamagedArrays):
        MuseTalkArtefacts.load(tmp_path / "a")


CHANGES: dict[str, tuple[str, np.ndarray]] = {
    "latents of another precision": ("latents", np.zeros((3, 8, 32, 32), np.float32)),
    "latents of another shape": ("latents", np.zeros((3, 4, 32, 32), np.float16)),
    "a latent too few": ("latents", np.zeros((2, 8, 32, 32), np.float16)),
    "no latent": ("latents", np.zeros((0, 8, 32, 32), np.float16)),
    "boxes in 64 bits": ("boxes", np.tile([[10, 10, 50, 60], [12, 30, 48, 60]], (3, 1, 1)).astype(np.int64)),
    "an empty box": ("boxes", np.tile([[10, 10, 10, 60], [12, 30, 48, 60]], (3, 1, 1)).astype(np.int32)),
    "a box left of the picture": ("boxes", np.tile([[-2, 10, 50, 60], [12, 30, 48, 60]], (3, 1, 1)).astype(np.int32)),
    "an odd part": ("boxes", np.tile([[10, 10, 50, 60], [13, 30, 48, 60]], (3, 1, 1)).astype(np.int32)),
    "other parts than masks": ("boxes", np.tile([[10, 10, 50, 60], [12, 30, 48, 56]], (3, 1, 1)).astype(np.int32)),
    "a mask too long": ("masks", np.zeros(10_000, np.uint8)),
    "masks of another kind": ("masks", np.zeros(3 * 36 * 30, np.int8)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_fit_together_is_refused(tmp_path: Path, change: str) -> None:
    stored(tmp_path / "a")
    name, array = CHANGES[change]
    np.save(tmp_path / "a" / f"{name}.npy", array)
    with pytest.raises(DamagedArrays):
        MuseTalkArtefacts.load(tmp_path / "a")


@pytest.mark.parametrize(("size", "fits"), [((53, 60), True), ((51, 60), False), ((52, 59), False), ((640, 480), True)])
def test_boxes_fit_a_picture_that_holds_all_of_them(tmp_path: Path, size: tuple[int, int], fits: bool) -> None:
    assert stored(tmp_path / "a").fits(*size) is fits


def test_of_two_that_save_at_once_one_is_there_whole(tmp_path: Path) -> None:
    """The other process's folder appears between the two renames."""
    first, folder = stored(tmp_path / "first"), tmp_path / "a"
    shutil.copytree(tmp_path / "first", folder)
    first.save(folder)
    assert np.array_equal(MuseTalkArtefacts.load(folder).latents, first.latents)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "first"]

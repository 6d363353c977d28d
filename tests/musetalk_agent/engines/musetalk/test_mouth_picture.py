"""A session's patches of a painted network: colour, blending, detail, and what is carried from frame to frame."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.engines.musetalk.picture.blending import multiband, poisson
from musetalk_agent.engines.musetalk.picture.colour import ColourFit
from musetalk_agent.engines.musetalk.picture.mouth_picture import MouthPicture
from musetalk_agent.media_types import Patch, Pixels
from musetalk_agent.protocol.avatar_settings import AvatarSettings, Blend
from tests.bench.picture import PaintedClip, seen
from tests.fakes.painted_mouth import PERFECT, Faults, speech
from tests.musetalk_agent.engines.musetalk.faces import bundle_of, moved

FRAMES = 12
STILL = Faults(trembling=0, noise=0)
UNTINTED = Faults(trembling=0, noise=0, tint=PERFECT.tint)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    frames = [moved(40 + k, 20, 0.75, (560, 500)) for k in range(4)]
    return bundle_of(tmp_path_factory.mktemp("bundle"), frames)


@pytest.fixture(scope="module")
def tinted(bundle: Bundle) -> PaintedClip:
    return PaintedClip(bundle, speech(FRAMES), STILL)


@pytest.fixture(scope="module")
def untinted(bundle: Bundle) -> PaintedClip:
    return PaintedClip(bundle, speech(FRAMES), UNTINTED)


@pytest.mark.parametrize("blend", ["feather", "multiband", "poisson"])
def test_the_tint_goes_to_two_levels(tinted: PaintedClip, untinted: PaintedClip, blend: Blend) -> None:
    right = seen(untinted, None).edge
    assert np.nanmax(np.abs(seen(tinted, None).edge - right)) > 5
    assert np.nanmax(np.abs(seen(tinted, AvatarSettings(blend=blend)).edge - right)) < 2


def test_a_face_without_a_tint_is_left_alone(untinted: PaintedClip) -> None:
    for made, raw in zip(untinted.patches(AvatarSettings(smoothing="off"))[0], untinted.patches(None)[0], strict=True):
        assert made.box == raw.box and np.array_equal(made.mask, raw.mask)
        assert np.abs(made.pixels.astype(int) - raw.pixels).max() <= 2


def test_detail_comes_back_as_far_as_is_asked(tinted: PaintedClip) -> None:
    lost, half, whole = (seen(tinted, AvatarSettings(sharpen=amount)).sharpness for amount in (0.0, 0.5, 1.0))
    assert lost + 0.01 < half < whole - 0.05 < 1.1


def test_smoothing_is_the_sessions_own_and_idle_mouths_leave_no_trace(tinted: PaintedClip, bundle: Bundle) -> None:
    def made(with_idle: bool) -> list[Patch]:
        picture = MouthPicture(tinted.artefacts, bundle, AvatarSettings())
        out = []
        for idle_index, face in zip(tinted.indices, tinted.faces, strict=True):
            out.append(picture.patch(idle_index, face.copy(), 1.0, speaking=True))
            if with_idle:
                picture.patch(3 - idle_index, np.zeros_like(face), 1.0, speaking=False)
        return out

    for one, other in zip(made(with_idle=False), made(with_idle=True), strict=True):
        assert np.array_equal(one.pixels, other.pixels)


def test_after_a_jump_of_the_clip_nothing_is_carried_over(tinted: PaintedClip, bundle: Bundle) -> None:
    picture = MouthPicture(tinted.artefacts, bundle, AvatarSettings(smoothing="strong"))
    picture.patch(0, tinted.faces[0].copy(), 1.0, speaking=True)
    after = picture.patch(3, tinted.faces[3].copy(), 1.0, speaking=True)
    fresh = MouthPicture(tinted.artefacts, bundle, AvatarSettings(smoothing="strong"))
    assert np.array_equal(after.pixels, fresh.patch(3, tinted.faces[3].copy(), 1.0, speaking=True).pixels)


@pytest.mark.parametrize("blend", ["feather", "multiband", "poisson"])
def test_the_blend_weight_scales_what_is_shown(tinted: PaintedClip, bundle: Bundle, blend: Blend) -> None:
    def mask(blend_weight: float) -> Pixels:
        picture = MouthPicture(tinted.artefacts, bundle, AvatarSettings(blend=blend))
        patch = picture.patch(0, tinted.faces[0].copy(), blend_weight, speaking=True)
        assert patch.mask is not None
        return patch.mask

    assert mask(1.0).max() == 255 and mask(0.0).max() == 0
    assert np.abs(mask(0.5).astype(int) - mask(1.0) / 2).max() <= 1


def test_bands_leave_the_frame_alone_where_the_mask_shows_nothing() -> None:
    rng = np.random.default_rng(0)
    idle, patch = (rng.integers(0, 256, (64, 80, 3), np.uint8) for _ in range(2))
    mask = np.zeros((64, 80), np.uint8)
    cv2.ellipse(mask, (40, 32), (25, 18), 0, 0, 360, (255,), -1)
    mask = np.asarray(cv2.GaussianBlur(mask, (15, 15), 0), np.uint8)
    joined = multiband(patch, idle, mask)
    assert np.array_equal(joined[mask == 0], idle[mask == 0])
    assert np.array_equal(multiband(idle, idle, mask), idle)
    middle = (slice(28, 36), slice(34, 46))
    assert (
        np.abs(joined[middle].astype(int) - patch[middle]).mean()
        < np.abs(idle[middle].astype(int) - patch[middle]).mean() / 4
    )


@pytest.mark.parametrize("size", [(8, 8), (10, 34), (2, 2)])
def test_small_patches_are_blended_too(size: tuple[int, int]) -> None:
    idle, patch = np.full((*size, 3), 100, np.uint8), np.full((*size, 3), 120, np.uint8)
    mask = np.full(size, 60, np.uint8)
    assert multiband(patch, idle, mask).shape == poisson(patch, idle, mask).shape == patch.shape
    fitted = ColourFit().fitted(0, patch, idle, mask)
    assert fitted.shape == patch.shape


def test_a_membrane_follows_light_along_the_border_and_keeps_what_is_inside() -> None:
    y, x = np.mgrid[:96, :128]
    idle = np.repeat(np.clip(100 + 0.3 * x + 0.2 * y, 0, 255)[..., None], 3, 2).astype(np.uint8)
    patch = np.full_like(idle, 110)
    patch[44:52, 60:68] += 40  # a detail
    mask = np.zeros(idle.shape[:2], np.uint8)
    cv2.rectangle(mask, (24, 20), (104, 76), (255,), -1)
    mask = np.asarray(cv2.GaussianBlur(mask, (21, 21), 0), np.uint8)
    met = poisson(patch, idle, mask).astype(int)
    edge = (mask > 60) & (mask < 200)
    assert np.abs(met - idle)[edge].mean() < 1.5
    assert abs(int(met[48, 64, 0]) - int(met[48, 80, 0]) - 40) < 8


def test_jaws_that_have_dropped_are_no_tint() -> None:
    """A third of the edge shows something else altogether; the rest decides."""
    idle = np.full((120, 160, 3), 140, np.uint8)
    patch = np.full_like(idle, 146)
    mask = np.zeros((120, 160), np.uint8)
    cv2.ellipse(mask, (80, 60), (55, 40), 0, 0, 360, (255,), -1)
    mask = np.asarray(cv2.GaussianBlur(mask, (31, 31), 0), np.uint8)
    patch[95:] = 60
    fitted = ColourFit().fitted(0, patch, idle, mask)
    assert np.abs(fitted[:80].astype(int) - 140)[mask[:80] > 100].max() <= 3


def test_a_mask_without_an_edge_is_not_fitted() -> None:
    idle, patch = np.full((40, 40, 3), 100, np.uint8), np.full((40, 40, 3), 130, np.uint8)
    assert np.array_equal(ColourFit().fitted(0, patch, idle, np.zeros((40, 40), np.uint8)), patch)

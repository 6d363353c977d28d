"""Persons on other backgrounds: the blend is exact, a patch changes the person only, and what is behind does not move."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from musetalk_agent.avatars import framing
from musetalk_agent.avatars.cutout import Cutout, Matte, Scenery, enlarged, plain
from musetalk_agent.avatars.matte_files import alpha_planes, scaled_planes
from musetalk_agent.compose.compositor import Compositor
from musetalk_agent.compose.crossfade import Crossfade
from musetalk_agent.compose.layers import laid, on_black, with_alpha_below, without_alpha_below
from musetalk_agent.media_types import Box, Patch, VideoFrame
from tests.musetalk_agent.avatars import people

SIDE = 64
ALPHA = np.rint(people.matte(SIDE) * 255).astype(np.uint8)
FRONT = np.clip(np.rint(people.person(SIDE)), 0, 255).astype(np.uint8)
SEEN = framing.to_i420(people.mixed(people.person(SIDE), people.wall(SIDE), people.matte(SIDE)))
PERSON = scaled_planes(framing.to_i420(FRONT), ALPHA)
SMALL = framing.to_i420(np.full((8, 8, 3), (10, 200, 90), np.uint8))
MESH = np.stack(np.meshgrid(np.linspace(20, 44, 26), np.linspace(16, 48, 18)), -1).reshape(-1, 2).astype(np.float32)


def bundle(cutout: Cutout | None) -> Any:
    faces = framing.to_bgr(SEEN)[None]
    return SimpleNamespace(
        width=SIDE, height=SIDE, frames=SEEN[None], faces=faces, landmarks=MESH[None], cutout=cutout, relief=None,
        box=lambda _: Box(0, 0, SIDE, SIDE),
    )  # fmt: skip


def matte() -> Matte:
    return Matte(ALPHA[None], PERSON[None], SMALL[None])


def scenery() -> Scenery:
    return Scenery(framing.to_i420(np.clip(people.texture(SIDE, 5, (60, 180, 40)), 0, 255).astype(np.uint8)))


def test_the_blend_is_exact() -> None:
    behind = scenery()
    made = laid(Compositor(bundle(Cutout(matte(), behind))).idle(0))
    exact = PERSON.reshape(-1) + behind.planes.reshape(-1) * (alpha_planes(255 - ALPHA) / 255.0)
    assert np.abs(made.i420 - exact).max() <= 0.51 and made.alpha is made.behind is None
    luma = made.i420[: SIDE * SIDE].reshape(SIDE, SIDE)
    assert np.array_equal(luma[ALPHA == 0], behind.planes[:SIDE][ALPHA == 0]), "nothing of the old background is left"
    assert np.array_equal(luma[ALPHA == 255], framing.to_i420(FRONT)[:SIDE][ALPHA == 255])


def test_the_clip_as_it_is_has_no_layers() -> None:
    frame = Compositor(bundle(None)).idle(0)
    assert laid(frame) is frame and np.array_equal(frame.i420, SEEN.reshape(-1))


def test_its_own_background_blurred_and_one_of_a_colour() -> None:
    made = laid(Compositor(bundle(Cutout(matte()))).idle(0)).i420[: SIDE * SIDE].reshape(SIDE, SIDE)
    assert (made[ALPHA == 0] == SMALL[0, 0]).all()
    red = laid(Compositor(bundle(Cutout(matte(), plain((255, 0, 0), SIDE, SIDE)))).idle(0))
    bgr = framing.to_bgr(red.i420.reshape(-1, SIDE)).astype(int)
    assert np.abs(bgr[:10, :6] - (0, 0, 255)).max() <= 3


@pytest.mark.parametrize("masked", [False, True])
def test_a_patch_changes_the_person_and_nothing_else(masked: bool) -> None:
    box = Box(8, 20, 40, 40)
    window = framing.to_bgr(SEEN)[20:40, 8:40]
    pixels = np.clip(window.astype(int) + 30, 0, 255).astype(np.uint8)
    patch = Patch(box, pixels, np.full((20, 32), 255, np.uint8) if masked else None)
    cut = Compositor(bundle(Cutout(matte(), scenery())))
    before, after = (
        laid(frame).i420[: SIDE * SIDE].reshape(SIDE, SIDE).astype(int)
        for frame in (cut.idle(0), cut.compose(0, patch))
    )
    kept = Compositor(bundle(None))
    own = kept.compose(0, patch).i420[: SIDE * SIDE].reshape(SIDE, SIDE).astype(int) - SEEN[:SIDE].astype(int)
    assert np.abs((after - before) - own * (ALPHA / 255)).max() <= 1.5
    assert np.array_equal(after[ALPHA == 0], before[ALPHA == 0]) and np.array_equal(after[:20], before[:20])
    whole = (ALPHA == 255)[20:40, 8:40]
    patched = framing.to_i420(pixels)[:20].astype(int)
    assert np.array_equal(after[20:40, 8:40][whole], patched[whole]), (
        "where there is only the person it is the patch itself"
    )


def test_between_two_clips_the_background_stands_still() -> None:
    behind = scenery()
    one = Compositor(bundle(Cutout(matte(), behind))).idle(0)
    aside = replace(
        one,
        alpha=np.roll(one.alpha, 4, 1),
        i420=scaled_planes(framing.to_i420(FRONT), np.roll(ALPHA, 4, 1)).reshape(-1),
    )
    for share in (0.25, 0.5, 0.75):
        made = laid(Crossfade().between(one, aside, share, MESH, MESH + np.float32([4, 0])))
        clear = (one.alpha == 0) & (aside.alpha == 0)
        luma = made.i420[: SIDE * SIDE].reshape(SIDE, SIDE)
        far = clear & (np.arange(SIDE)[None, :] < 4)
        assert far.any() and np.array_equal(luma[far], behind.planes[:SIDE][far])
        assert np.abs(luma[clear].astype(int) - behind.planes[:SIDE][clear]).mean() < 2
    mixed = Crossfade().between(one, Compositor(bundle(None)).idle(0), 0.5, MESH, MESH)
    assert mixed.alpha is None, "one that has layers and one that has none are mixed as pictures"


def test_alpha_lies_below_the_picture() -> None:
    frame = Compositor(bundle(Cutout(matte(), transparent=True))).idle(0)
    made = laid(frame)
    assert (made.width, made.height, made.alpha) == (SIDE, 2 * SIDE, None)
    planes = made.i420.reshape(-1, SIDE)
    bgr = framing.to_bgr(planes).astype(int)
    wanted = people.mixed(FRONT, (0, 0, 0), ALPHA / 255)
    assert np.abs(bgr[:SIDE] - wanted).mean() < 3
    shown = np.rint(16 + ALPHA * (219 / 255))
    assert np.array_equal(planes[SIDE : 2 * SIDE], shown)
    assert np.abs(bgr[SIDE:] - ALPHA[..., None].astype(int)).max() <= 2
    assert np.array_equal(with_alpha_below(frame).i420, made.i420)


def test_planes_of_another_size() -> None:
    made = enlarged(SMALL, 32, 16)
    assert made.shape == (32 * 16 * 3 // 2,) and np.array_equal(made[:5], SMALL[0, :5])
    assert isinstance(laid(VideoFrame(SEEN.reshape(-1), SIDE, SIDE, 0)), VideoFrame)


def test_the_picture_above_its_alpha_is_found_again() -> None:
    frame = VideoFrame(PERSON.reshape(-1), SIDE, SIDE, 0, alpha=ALPHA)
    stacked = with_alpha_below(frame)
    found = without_alpha_below(stacked)
    assert (found.width, found.height) == (SIDE, SIDE) and found.i420.flags.c_contiguous
    black = np.empty_like(found.i420)
    luma = SIDE * SIDE
    on_black(frame, black[:luma], black[luma : luma * 5 // 4], black[luma * 5 // 4 :])
    assert np.array_equal(found.i420, black)

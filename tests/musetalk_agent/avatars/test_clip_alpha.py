"""Alpha that a clip brings is its matte, whatever the container; what is shown without another background lies on white as ever."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.avatars.library import AvatarLibrary
from musetalk_agent.compose.compositor import Compositor
from musetalk_agent.compose.layers import laid
from musetalk_agent.protocol.http import AvatarSource, Picture

from .cards import Film
from .clips import archive, encoded, face

SIDE = 160


def matte() -> np.ndarray:
    """A soft disc around the face, uint8 `[SIDE, SIDE]`."""
    hard = np.zeros((SIDE, SIDE), np.uint8)
    cv2.ellipse(hard, (80, 84), (58, 72), 0, 0, 360, 255, -1)
    return np.asarray(cv2.GaussianBlur(hard, (0, 0), 2.0), np.uint8)


ALPHA, FACE = matte(), face(SIDE)
BGRA = np.dstack([FACE, ALPHA])


def saved(kind: str, **more: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(BGRA[..., [2, 1, 0, 3]])).save(out, kind, **more)
    return out.getvalue()


def moving(kind: str) -> bytes:
    """Four frames; the last is darker, so that no encoder leaves them out."""
    frames = [np.dstack([FACE - (FACE // 16) * (k % 2), ALPHA])[..., [2, 1, 0, 3]] for k in range(4)]
    first, *rest = (Image.fromarray(np.ascontiguousarray(frame)) for frame in frames)
    out = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    first.save(out, kind, save_all=True, append_images=rest, duration=40, **options)
    return out.getvalue()


def film(container: str, codec: str, pix_fmt: str, **options: str) -> bytes:
    return Film(container, codec, pix_fmt, alpha=ALPHA, options=options).of([FACE] * 4)


CLIPS = {
    "PNG": (lambda: saved("PNG"), True, 0.0),
    "WebP": (lambda: saved("WEBP", lossless=True), True, 0.0),
    "animated PNG": (lambda: moving("PNG"), False, 0.0),
    "animated WebP": (lambda: moving("WEBP"), False, 0.0),
    "zip of PNGs": (lambda: archive([(f"{k}.png", encoded(BGRA)) for k in range(4)]), False, 0.0),
    "WebM, VP8": (
        lambda: film("webm", "libvpx", "yuva420p", **{"auto-alt-ref": "0", "crf": "4", "b": "4M"}),
        False,
        3.0,
    ),
    "WebM, VP9": (lambda: film("webm", "libvpx-vp9", "yuva420p", crf="4", b="4M"), False, 3.0),
    "ProRes 4444": (lambda: film("mov", "prores_ks", "yuva444p10le", alpha_bits="16"), False, 1.0),
    "QuickTime Animation": (lambda: film("mov", "qtrle", "argb"), False, 0.0),
}


async def shown(library: AvatarLibrary, data: bytes, background: str) -> Bundle:
    return await library.prepare(AvatarSource(avatar_id=await library.add(data)), Picture(), background=background)


@pytest.mark.parametrize("name", CLIPS)
async def test_every_container_keeps_its_alpha(library: AvatarLibrary, name: str) -> None:
    make, still, off = CLIPS[name]
    data = make()
    kept, green = await shown(library, data, "keep"), await shown(library, data, "#00ff00")
    white = cv2.cvtColor(kept.frames[0], cv2.COLOR_YUV2BGR_I420)
    assert kept.cutout is None and np.abs(white[:4].astype(int) - 255).max() <= 2
    assert green.cutout is not None
    alpha = green.cutout.matte.alpha[0].astype(int)
    assert np.abs(alpha - ALPHA).mean() <= off and len(green) == (5 if still else 4)
    made = laid(Compositor(green).idle(0)).i420.reshape(-1, SIDE)
    share = ALPHA[..., None] / 255
    wanted = FACE * share + np.array([0, 255, 0]) * (1 - share)
    assert np.abs(cv2.cvtColor(made, cv2.COLOR_YUV2BGR_I420) - wanted).mean() < 6
    blue = made[:SIDE][ALPHA == 0]
    assert np.ptp(blue[:200].astype(int)) <= 3, "one colour, with nothing of what was there"


async def test_alpha_is_scaled_and_cropped_as_the_frames_are(library: AvatarLibrary) -> None:
    data = archive([(f"{k}.png", encoded(BGRA)) for k in range(3)])
    source = AvatarSource(avatar_id=await library.add(data))
    bundle = await library.prepare(source, Picture(width=80, height=64), background="blur")
    assert bundle.cutout is not None
    alpha = bundle.cutout.matte.alpha[0]
    assert alpha.shape == (64, 80)
    small = cv2.resize(ALPHA, (80, 80), interpolation=cv2.INTER_AREA).astype(int)
    assert min(np.abs(alpha - small[top : top + 64]).mean() for top in range(17)) < 1.5


async def test_a_picture_with_rounded_corners_is_no_cut_out_person(library: AvatarLibrary) -> None:
    corners = np.full((SIDE, SIDE), 255, np.uint8)
    corners[:6, :6] = corners[:6, -6:] = 0
    data = archive([(f"{k}.png", encoded(np.dstack([FACE, corners]))) for k in range(2)])
    bundle = await shown(library, data, "#ff0000")
    assert not (bundle.path / "alpha.npy").exists() and bundle.cutout is not None
    opaque = archive([(f"{k}.png", encoded(np.dstack([FACE, np.full_like(corners, 255)]))) for k in range(2)])
    assert not ((await shown(library, opaque, "keep")).path / "alpha.npy").exists()

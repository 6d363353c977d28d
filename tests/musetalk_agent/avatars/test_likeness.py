"""A clip of an avatar shows the same face at the same framing, mirrored or not."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.avatars.identity import PlainDescriber
from musetalk_agent.avatars.library import AvatarLibrary
from musetalk_agent.avatars.likeness import check_clip
from musetalk_agent.errors import ClipMismatch
from musetalk_agent.media_types import Pixels
from musetalk_agent.protocol.http import AvatarSource, Picture

from .clips import frames_zip, moving

SIDE = 192


async def bundle(library: AvatarLibrary, frames: list[Pixels]) -> Bundle:
    source = AvatarSource(avatar_id=await library.add(frames_zip(frames)))
    return await library.prepare(source, Picture(width=SIDE, height=SIDE))


def small(frame: Pixels) -> Pixels:
    """The same, filmed from farther away."""
    part = cv2.resize(frame, (SIDE * 2 // 3, SIDE * 2 // 3), interpolation=cv2.INTER_AREA)
    pad = (SIDE - len(part)) // 2
    return np.asarray(cv2.copyMakeBorder(part, pad, pad, pad, pad, cv2.BORDER_REPLICATE), np.uint8)


async def test_the_same_face_fits_also_mirrored(library: AvatarLibrary) -> None:
    frames = moving(6, SIDE)
    avatar = await bundle(library, frames)
    for others in (moving(8, SIDE, step=1.5), [np.ascontiguousarray(frame[:, ::-1]) for frame in frames]):
        check_clip(avatar, await bundle(library, others), PlainDescriber())


async def test_another_distance_is_named(library: AvatarLibrary) -> None:
    frames = moving(6, SIDE)
    clip = await bundle(library, [small(frame) for frame in frames])
    with pytest.raises(ClipMismatch, match="px wide in this clip"):
        check_clip(await bundle(library, frames), clip, PlainDescriber())


async def test_another_face_is_named(library: AvatarLibrary) -> None:
    avatar = await bundle(library, moving(6, SIDE))
    other = replace(avatar, faces=255 - np.array(avatar.faces))
    with pytest.raises(ClipMismatch, match="another person") as refused:
        check_clip(avatar, other, PlainDescriber())
    assert refused.value.limit == PlainDescriber.same


async def test_another_place_is_named(library: AvatarLibrary) -> None:
    avatar = await bundle(library, moving(6, SIDE))
    with pytest.raises(ClipMismatch, match="of its widths away"):
        check_clip(avatar, replace(avatar, landmarks=avatar.landmarks + np.float32([90, 0])), PlainDescriber())

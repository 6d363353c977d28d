"""Which pictures of a zip are its clip, and clips of pictures from their bytes to the bundle."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from musetalk_agent.avatars.archive import FrameArchive
from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.avatars.decoder_pool import DecoderPools
from musetalk_agent.avatars.library import AvatarLibrary
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.avatars.picture_clips import ZipFrames, choose_frames, zip_frames
from musetalk_agent.errors import AvatarSizesDiffer, AvatarTooLarge, AvatarUndecodable
from musetalk_agent.media_types import Pixels
from musetalk_agent.protocol.http import AvatarSource, Picture
from musetalk_agent.weights import ModelStore

from . import made_pictures as made
from .clips import archive, encoded, face, moving

LARGE, SMALL = encoded(np.full((96, 128, 3), 90, np.uint8)), encoded(np.full((64, 80, 3), 90, np.uint8))


def chosen(tmp_path: Path, entries: Sequence[tuple[str, bytes]], limits: AvatarLimits | None = None) -> ZipFrames:
    limits = limits or AvatarLimits()
    path = tmp_path / "a.zip"
    path.write_bytes(archive(entries, zipfile.ZIP_STORED))
    opened = FrameArchive(path, limits)
    try:
        return choose_frames(opened, limits)
    finally:
        opened.close()


def frames(count: int, folder: str = "frames", data: bytes = LARGE) -> list[tuple[str, bytes]]:
    return [(f"{folder}/{k}.png" if folder else f"{k}.png", data) for k in range(count)]


def test_a_preview_beside_the_frames_is_left_out_and_reported(tmp_path: Path) -> None:
    found = chosen(tmp_path, [("preview.png", SMALL), *frames(12), ("__MACOSX/frames/._0.png", b"x")])
    assert found.names == [f"frames/{k}.png" for k in range(12)]
    assert [code for code, _ in found.warnings] == ["pictures_left_out"]
    sentence = found.warnings[0][1]
    assert "12 pictures of 128×96 in 'frames'" in sentence and "'preview.png'" in sentence


@pytest.mark.parametrize(
    ("entries", "names"),
    [
        pytest.param(
            [*frames(3, "a"), *frames(5, "b", SMALL)], [f"b/{k}.png" for k in range(5)], id="the folder with the most"
        ),
        pytest.param(
            [*frames(4, "thumbs", SMALL), *frames(4, "whole")],
            [f"whole/{k}.png" for k in range(4)],
            id="of two with as many the larger pictures",
        ),
        pytest.param([*frames(4, ""), ("cover.png", SMALL)], [f"{k}.png" for k in range(4)], id="one among the frames"),
        pytest.param(
            [("preview.png", SMALL), ("notes/broken.png", b"rubbish"), *frames(3)],
            [f"frames/{k}.png" for k in range(3)],
            id="a broken one elsewhere",
        ),
        pytest.param([("a/face.png", LARGE), ("b/face.png", SMALL)], ["a/face.png"], id="a still and its thumbnail"),
    ],
)
def test_the_folder_with_the_most_of_one_size_is_the_clip(
    tmp_path: Path, entries: list[tuple[str, bytes]], names: list[str]
) -> None:
    found = chosen(tmp_path, entries)
    assert (list(found.names), [code for code, _ in found.warnings]) == (names, ["pictures_left_out"])


def test_pictures_of_one_size_are_all_of_the_clip(tmp_path: Path) -> None:
    found = chosen(tmp_path, [*frames(2, "b"), *frames(2, "a"), ("0.png", LARGE), ("preview.gif", b"GIF89a")])
    assert list(found.names) == ["0.png", "a/0.png", "a/1.png", "b/0.png", "b/1.png"] and not found.warnings


@pytest.mark.parametrize(
    "entries",
    [[("0.png", LARGE), ("1.png", SMALL)], [*frames(3, ""), *[(f"{k}.png", SMALL) for k in range(3, 6)]]],
    ids=["one each", "half"],
)
def test_without_a_majority_the_sizes_differ(tmp_path: Path, entries: list[tuple[str, bytes]]) -> None:
    with pytest.raises(AvatarSizesDiffer, match=r"'[13].png' is 80×64, the first frame is 128×96") as caught:
        chosen(tmp_path, entries)
    assert (caught.value.value, caught.value.limit) == ("80x64", "128x96")


def test_too_many_pixels_in_all_are_refused_before_any_is_decoded(tmp_path: Path) -> None:
    with pytest.raises(AvatarTooLarge, match="5 frames have 61440 pixels"):
        chosen(tmp_path, frames(5), AvatarLimits(decoded_pixels=61_439))


def test_frames_of_every_kind_are_upright_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    kinds = [("f10.jpg", "JPEG", 6), ("f9.webp", "WEBP", 8), ("f2.png", "PNG", 3), ("f1.avif", "AVIF", 1)]
    path.write_bytes(archive([(name, made.oriented(kind, turn)) for name, kind, turn in kinds], zipfile.ZIP_STORED))
    opened = FrameArchive(path, AvatarLimits())
    with ThreadPoolExecutor(2) as decoders:
        pictures = list(
            zip_frames(opened, opened.names, AvatarLimits(), lambda size: (80, 60), lambda pixels: None, decoders)
        )
    opened.close()
    assert list(opened.names) == ["f1.avif", "f2.png", "f9.webp", "f10.jpg"]
    for picture in pictures:
        assert (picture.size, picture.pixels.shape) == ((160, 120), (60, 80, 3))
        for name, colour in made.quarters(picture.pixels).items():
            assert np.abs(np.subtract(colour, made.COLOURS[name])).max() <= 6


async def prepared(library: AvatarLibrary, data: bytes, picture: Picture | None = None) -> Bundle:
    return await library.prepare(AvatarSource(avatar_id=await library.add(data)), picture or Picture())


def nose(bundle: Bundle) -> list[int]:
    return [round(float(x)) for x in bundle.landmarks[:, 6, 0]]


def pillow(picture: Pixels) -> Image.Image:
    return Image.fromarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))


async def test_a_clip_beside_its_preview(library: AvatarLibrary) -> None:
    entries = [(f"frames/{k}.png", encoded(picture)) for k, picture in enumerate(moving(6, 192, 3.0))]
    bundle = await prepared(library, archive([("preview.png", encoded(face(96))), *entries]))
    assert (len(bundle), bundle.width, bundle.report.still) == (6, 192, False)
    assert "pictures_left_out" in [warning.code for warning in bundle.report.warnings]
    assert (np.diff(bundle.landmarks[:, 6, 0]) > 1).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
async def test_an_animated_picture_becomes_a_clip_with_its_timing(library: AvatarLibrary, kind: str) -> None:
    """Five pictures of 80 ms; the face goes to the right from each to the next."""
    first, *rest = [pillow(picture) for picture in moving(5, 192, 6.0)]
    bundle = await prepared(library, made.saved(first, kind, save_all=True, append_images=rest, duration=80))
    assert (len(bundle), bundle.report.still, bundle.width, bundle.height) == (10, False, 192, 192)
    frames = bundle.frames.reshape(10, -1).astype(int)
    assert [bool(np.array_equal(frames[k], frames[k + 1])) for k in range(9)] == [k % 2 == 0 for k in range(9)]
    places = nose(bundle)
    assert places[-1] - places[0] > 15


async def test_a_photo_of_a_phone_lies_in_the_file_and_is_shown_upright(library: AvatarLibrary) -> None:
    """Twelve million pixels, in no more memory than its scaled picture takes; the face is measured in the photo's pixels."""
    upright = cv2.resize(face(1024), (4032, 4032), interpolation=cv2.INTER_LINEAR)[:, 504:3528]
    lying = pillow(np.ascontiguousarray(np.rot90(upright)))
    data = made.saved(lying, "JPEG", quality=85, exif=made.exif(6))
    bundle = await prepared(library, data)
    assert (bundle.width, bundle.height) == (830, 1108) and bundle.report.still
    assert bundle.report.face_px == pytest.approx(4032 * 0.37, rel=0.05)
    eyes, chin = bundle.landmarks[0, [33, 263], 1].mean(), bundle.landmarks[0, 152, 1]
    assert chin - eyes > 200
    assert not bundle.report.warnings


async def test_a_large_still_takes_no_memory_of_its_size(
    tmp_path: Path, models: ModelStore, decoders: DecoderPools
) -> None:
    """Its pixels would take 64 MB at four bytes each; the kernel keeps the process to what the limits give."""
    large = cv2.resize(face(512), (4096, 4096), interpolation=cv2.INTER_LINEAR)
    limits = AvatarLimits(decoder_bytes=64 << 20, still_bytes=48 << 20)
    library = AvatarLibrary(tmp_path / "cache", models, limits=limits, decoders=decoders)
    try:
        bundle = await prepared(library, encoded(large, ".jpg"), Picture(fps=15))
        assert (bundle.width, bundle.height) == (960, 960)
        with pytest.raises(AvatarTooLarge, match="baseline JPEG"):
            await prepared(library, encoded(large, ".png"), Picture(fps=15))
    finally:
        library.close()


async def test_a_damaged_frame_of_the_clip_is_refused_by_its_name(library: AvatarLibrary) -> None:
    entries = [(f"{k}.png", encoded(picture)) for k, picture in enumerate(moving(4, 96))]
    entries[2] = ("2.png", b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(AvatarUndecodable, match=r"'2\.png'"):
        await prepared(library, archive(entries))


async def test_a_small_photo_is_shown_at_the_largest_size(library: AvatarLibrary) -> None:
    """What is made of it needs far more memory than what is decoded."""
    bundle = await prepared(library, encoded(face(512), ".jpg"), Picture(fps=15, width=1080, height=1920))
    assert (bundle.width, bundle.height, len(bundle)) == (1080, 1920, 5)

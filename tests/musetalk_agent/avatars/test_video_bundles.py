"""Videos through the decoder process, to the bundle that sessions show."""

from __future__ import annotations

from fractions import Fraction

import cv2
import numpy as np
import pytest

from musetalk_agent.avatars import framing
from musetalk_agent.avatars.bundle import Bundle
from musetalk_agent.avatars.library import AvatarLibrary
from musetalk_agent.errors import AvatarUndecodable
from musetalk_agent.media_types import Pixels
from musetalk_agent.protocol.http import AvatarSource, Picture

from .cards import BT709, BT2020, FULL, HLG, PQ, Film, packets
from .clips import moving, video

_X265 = {"x265-params": "log-level=none:crf=14"}


async def prepared(library: AvatarLibrary, data: bytes, picture: Picture | None = None) -> Bundle:
    return await library.prepare(AvatarSource(avatar_id=await library.add(data)), picture or Picture())


def codes(bundle: Bundle) -> list[str]:
    return [warning.code for warning in bundle.report.warnings]


def portrait(count: int, width: int, height: int) -> list[Pixels]:
    """The face in the upper part of a portrait picture."""
    pictures = []
    for face in moving(count, width):
        picture = np.full((height, width, 3), 90, np.uint8)
        picture[height // 8 : height // 8 + width] = face
        pictures.append(picture)
    return pictures


def forehead(bundle: Bundle, frame: int) -> np.ndarray:
    """Mean BGR between the brows and above them, of the picture that is shown."""
    x, y = bundle.landmarks[frame][151]  # the middle of the forehead
    half = max(2, round(float(np.ptp(bundle.landmarks[frame][:, 0])) / 24))
    picture = framing.to_bgr(np.asarray(bundle.frames[frame]))
    part = picture[int(y) - half : int(y) + half, int(x) - half : int(x) + half]
    return np.asarray(part.reshape(-1, 3).mean(0))


@pytest.mark.parametrize(
    ("wish", "size"), [((None, None), (720, 1280)), ((1080, 1920), (1080, 1920)), ((540, 960), (540, 960))]
)
async def test_a_phone_s_portrait_clip_is_shown_upright(
    library: AvatarLibrary, wish: tuple[int | None, int | None], size: tuple[int, int]
) -> None:
    coded = [np.ascontiguousarray(np.rot90(picture)) for picture in portrait(3, 1080, 1920)]
    film = Film("mov", "libx264", matrix=BT709, turn=270, options={"preset": "ultrafast"})
    bundle = await prepared(library, film.of(coded), Picture(width=wish[0], height=wish[1]))
    assert (bundle.width, bundle.height) == size and bundle.frames.shape == (3, size[1] * 3 // 2, size[0])
    middle = bundle.landmarks[0].mean(0) / size
    assert 0.4 < middle[0] < 0.6 and 0.3 < middle[1] < 0.5
    assert 340 < bundle.report.face_px < 440  # in the clip's own pixels, whatever is shown


@pytest.mark.parametrize(
    "film",
    [
        Film(matrix=BT709, range=FULL),
        Film(codec="libx265", pix_fmt="yuv420p10le", matrix=BT2020, primaries=BT2020, transfer=HLG, options=_X265),
        Film(codec="libx265", pix_fmt="yuv420p10le", matrix=BT2020, primaries=BT2020, transfer=PQ, options=_X265),
        Film("webm", "libvpx-vp9", "yuva420p", alpha=np.full((256, 256), 255, np.uint8)),
        Film("mov", "prores_ks", "yuva444p10le", alpha=np.full((256, 256), 255, np.uint8)),
        Film(pix_fmt="yuv444p", sar=Fraction(1, 2), options={"crf": "14"}),
        Film(turn=90),
    ],
    ids=["full range", "HLG", "PQ", "VP9 alpha", "ProRes alpha", "narrow pixels", "turned"],
)
async def test_the_forehead_has_its_colour(library: AvatarLibrary, film: Film) -> None:
    """Within six levels of the picture that the clip was made of."""
    pictures = moving(3, 256)
    coded = [np.ascontiguousarray(np.rot90(picture, -film.turn // 90)) for picture in pictures]
    if film.sar is not None:
        coded = [
            np.asarray(cv2.resize(picture, (256, 128), interpolation=cv2.INTER_AREA), np.uint8) for picture in coded
        ]
    bundle = await prepared(library, film.of(coded))
    original = await prepared(library, Film("mov", "png", "rgb24", tagged=False).of(pictures))
    assert (bundle.width, bundle.height) == (256, 256)
    assert np.abs(bundle.landmarks[1] - original.landmarks[1]).mean() < 3
    assert np.abs(forehead(bundle, 1) - forehead(original, 1)).max() <= 6


async def test_a_video_of_one_frame_is_a_still(library: AvatarLibrary) -> None:
    bundle = await prepared(library, video(moving(1, 128)))
    assert bundle.report.still and codes(bundle)[0] == "single_frame" and len(bundle) == 5
    assert bundle.relief is not None and not np.array_equal(bundle.frames[0], bundle.frames[4])


async def test_what_is_wrong_with_a_file_is_in_the_report(library: AvatarLibrary) -> None:
    data = video(moving(40, 128), container="webm", codec="libvpx")
    start, end = packets(data)[0][0], sum(packets(data)[-1])
    bundle = await prepared(library, data[: start + (end - start) * 8 // 10])
    assert codes(bundle)[0] == "video_cut_short" and 10 < len(bundle) < 40 and not bundle.report.still


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c", "a Windows Media video"),
        (b"FLV\x01\x05\0\0\0\x09", "a Flash video"),
        (b"OggS\0\x02", "an Ogg file"),
        (b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01", "an MXF video"),
        (b"ID3\x04\0\0", "a sound file"),
        (b"RIFF\0\0\0\0WAVEfmt ", "a sound file"),
    ],
)
async def test_containers_that_are_not_read_are_named(library: AvatarLibrary, data: bytes, name: str) -> None:
    with pytest.raises(AvatarUndecodable, match=rf"looks like {name}.*[Ee]xport .* MP4 \(H\.264\)") as refused:
        await library.add(data.ljust(600, b"\x01"))
    assert refused.value.value == name

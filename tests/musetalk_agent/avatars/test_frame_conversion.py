"""How a decoded frame is turned, cropped, stretched and laid on white: exact on small pictures."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from av.video.plane import VideoPlane
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from musetalk_agent.avatars import tone_mapping
from musetalk_agent.avatars.frame_conversion import (
    Aperture,
    FrameConverter,
    Orientation,
    _opaque,
    is_yuva,
    laid_on_white,
)
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.avatars.picture_decoder import _LYING, _UPRIGHT, decode_picture, orientation_of
from musetalk_agent.errors import AvatarUndecodable
from musetalk_agent.media_types import Pixels
from tests.musetalk_agent.avatars.made_pictures import STORED_AS, oriented, quarters, scene

TURNS = [Orientation(*flags) for flags in itertools.product([False, True], repeat=3)]
GRID = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


def through(first: Orientation, second: Orientation, pixels: Pixels) -> Pixels:
    return second.apply(first.apply(pixels))


def test_eight_turns_are_eight_different_pictures() -> None:
    assert len({turn.apply(GRID).tobytes() + bytes(turn.apply(GRID).shape) for turn in TURNS}) == 8


@pytest.mark.parametrize("pair", list(itertools.product(TURNS, TURNS)), ids=str)
def test_two_turns_one_after_the_other_are_one_of_the_eight(pair: tuple[Orientation, Orientation]) -> None:
    """The symmetries of a rectangle's picture are a group: nothing else can come of them."""
    twice = through(*pair, GRID)
    assert sum(turn.apply(GRID).shape == twice.shape and bool((turn.apply(GRID) == twice).all()) for turn in TURNS) == 1


@pytest.mark.parametrize("turn", TURNS, ids=str)
def test_each_turn_can_be_undone_and_its_size_with_it(turn: Orientation) -> None:
    back = [other for other in TURNS if np.array_equal(through(turn, other, GRID), GRID)]
    assert len(back) == 1
    height, width = turn.apply(GRID).shape[:2]
    assert turn.size((3, 2)) == (width, height) and turn.size(turn.size((3, 2))) == (3, 2)
    assert turn.apply(GRID).flags.c_contiguous


@pytest.mark.parametrize(
    ("turn", "numpy"),
    [
        (Orientation(), GRID),
        (Orientation(True, mirrors_x=True), np.rot90(GRID, -1)),
        (Orientation(False, True, True), np.rot90(GRID, 2)),
        (Orientation(True, mirrors_y=True), np.rot90(GRID, 1)),
        (Orientation(False, mirrors_x=True), np.fliplr(GRID)),
        (Orientation(False, mirrors_y=True), np.flipud(GRID)),
        (Orientation(True), GRID.transpose(1, 0, 2)),
    ],
    ids=["as it is", "clockwise", "half", "counter-clockwise", "left and right", "top and bottom", "transposed"],
)
def test_turns_are_numpy_s(turn: Orientation, numpy: Pixels) -> None:
    assert np.array_equal(turn.apply(GRID), numpy)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_exif_orientation_undoes_how_the_picture_was_stored(orientation: int) -> None:
    data = oriented("PNG", orientation)
    made = decode_picture(data, "a.png", AvatarLimits())
    assert made.size == (160, 120) and quarters(made.pixels) == quarters(np.ascontiguousarray(scene()[..., ::-1]))
    assert np.array_equal(made.pixels, scene()[..., ::-1]), "no pixel is resampled"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_that_lie_are_those_that_swap_width_and_height(orientation: int) -> None:
    stored = STORED_AS[orientation](GRID)
    assert (orientation in _LYING) == (stored.shape[:2] == (3, 2))
    assert (orientation in _UPRIGHT) == (orientation != 1)


@pytest.mark.parametrize("stated", [0, 9, 255, -1])
def test_an_orientation_that_there_is_not_is_none(stated: int) -> None:
    class Stating:
        def getexif(self) -> dict[int, int]:
            return {0x0112: stated}

    assert orientation_of(Stating()) == 1  # type: ignore[arg-type]  # as much of a picture as is asked


def frame_of(pixels: Pixels, pix_fmt: str = "bgr24") -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(pixels, format=pix_fmt)


RAMP = np.ascontiguousarray(np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 3, (48, 64, 3)).copy())
RAMP[..., 1] = np.arange(48, dtype=np.uint8)[:, None] * 5


def test_a_frame_of_the_wanted_size_is_passed_to_the_bit() -> None:
    assert np.array_equal(FrameConverter().picture(frame_of(RAMP), (64, 48)), RAMP)


@pytest.mark.parametrize("size", [(63, 48), (64, 47), (63, 47)])
def test_a_pixel_less_a_side_is_no_reason_to_resample(size: tuple[int, int]) -> None:
    assert np.array_equal(FrameConverter().picture(frame_of(RAMP), size), RAMP)


@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 44), st.integers(1, 28))
def test_an_aperture_is_cut_out_to_the_pixel(left: int, top: int, width: int, height: int) -> None:
    shown = FrameConverter(aperture=Aperture(left, top, width, height))
    frame = frame_of(RAMP)
    assert shown.size(frame) == (width, height)
    assert np.array_equal(shown.picture(frame, (width, height)), RAMP[top : top + height, left : left + width])


@pytest.mark.parametrize("aperture", [Aperture(1, 0, 64, 48), Aperture(0, 1, 64, 48), Aperture(60, 40, 5, 5)])
def test_an_aperture_that_reaches_out_of_the_frame_is_none(aperture: Aperture) -> None:
    assert FrameConverter(aperture=aperture).size(frame_of(RAMP)) == (64, 48)


@pytest.mark.parametrize(
    ("aspect", "size"),
    [
        (Fraction(1), (64, 48)),
        (Fraction(2), (128, 48)),
        (Fraction(1, 2), (64, 96)),
        (Fraction(64, 45), (91, 48)),
        (Fraction(10, 11), (64, 53)),
    ],
)
def test_pixels_that_are_not_square_make_a_side_longer_and_none_shorter(
    aspect: Fraction, size: tuple[int, int]
) -> None:
    assert FrameConverter(aspect).size(frame_of(RAMP)) == size
    assert FrameConverter(aspect).picture(frame_of(RAMP), size).shape == (size[1], size[0], 3)


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255), st.integers(0, 255))
def test_alpha_lays_a_colour_on_white(blue: int, green: int, red: int, alpha: int) -> None:
    """To a level: (c·a + 255·(255 - a)) / 255."""
    pixel = np.array([[[blue, green, red, alpha]]], np.uint8)
    exact = (np.array([blue, green, red]) * alpha + 255 * (255 - alpha)) / 255
    assert np.abs(_opaque(pixel)[0, 0] - exact).max() <= 1


def test_alpha_within_an_aperture() -> None:
    bgra = np.dstack([RAMP, np.full(RAMP.shape[:2], 255, np.uint8)])
    bgra[:, :32, 3] = 0
    made = FrameConverter(aperture=Aperture(16, 8, 32, 16)).picture(frame_of(bgra, "bgra"), (32, 16))
    assert (made[:, :16] == 255).all() and np.array_equal(made[:, 16:], RAMP[8:24, 32:48])


@pytest.mark.parametrize(("matrix", "name"), [(8, "YCgCo"), (14, "ICtCp"), (10, "constant luminance")])
def test_a_matrix_that_is_not_known_is_named(matrix: int, name: str) -> None:
    frame = frame_of(RAMP)
    frame.colorspace = matrix
    with pytest.raises(AvatarUndecodable, match=name):
        FrameConverter().picture(frame, (64, 48))


GREYS = np.repeat(np.linspace(0, 1, 33)[:, None], 3, 1)
KINDS = [
    (transfer, primaries)
    for transfer in (ColorTrc.BT709, ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)
    for primaries in (ColorPrimaries.BT2020, ColorPrimaries.SMPTE432, ColorPrimaries.SMPTE431)
]


@pytest.mark.parametrize(("transfer", "primaries"), KINDS)
def test_greys_stay_grey_grow_with_the_signal_and_stay_in_range(transfer: int, primaries: int) -> None:
    seen = tone_mapping.to_srgb(GREYS, transfer, primaries)
    assert ((seen >= 0) & (seen <= 1)).all() and np.isfinite(seen).all()
    assert np.ptp(seen, axis=1).max() < 0.004, "a grey has no colour"
    assert (np.diff(seen[:, 1]) >= 0).all()
    assert seen[0].max() < 0.001


@pytest.mark.parametrize("primaries", [ColorPrimaries.BT2020, ColorPrimaries.SMPTE432, ColorPrimaries.SMPTE431])
def test_of_sdr_every_grey_is_what_it_was(primaries: int) -> None:
    assert np.abs(tone_mapping.to_srgb(GREYS, ColorTrc.BT709, primaries) - GREYS).max() < 0.002


@pytest.mark.parametrize(
    ("transfer", "signal"), [(ColorTrc.SMPTE2084, 0.5807), (ColorTrc.ARIB_STD_B67, 0.75)], ids=["PQ", "HLG"]
)
def test_diffuse_white_of_hdr_is_nearly_white(transfer: int, signal: float) -> None:
    """203 cd/m² (BT.2408-7, table 1): PQ 58 %, HLG 75 %. It becomes 0.9 of the light of sRGB's white."""
    white = tone_mapping.to_srgb(np.full((1, 3), signal), transfer, ColorPrimaries.BT2020)
    assert white == pytest.approx(np.full((1, 3), 0.955), abs=0.012)


@given(st.lists(st.tuples(*[st.floats(0, 1)] * 3), min_size=1, max_size=20), st.sampled_from(KINDS))
def test_no_colour_leaves_the_range_or_becomes_no_number(
    colours: list[tuple[float, float, float]], kind: tuple[int, int]
) -> None:
    seen = tone_mapping.to_srgb(np.array(colours), *kind)
    assert np.isfinite(seen).all() and seen.min() >= 0 and seen.max() <= 1


@pytest.mark.parametrize(
    ("transfer", "primaries", "maps"),
    [
        (ColorTrc.BT709, ColorPrimaries.BT709, False),
        (ColorTrc.BT709, ColorPrimaries.BT2020, True),
        (ColorTrc.SMPTE2084, ColorPrimaries.BT709, True),
        (ColorTrc.ARIB_STD_B67, 2, True),
        (2, 2, False),
        (1, ColorPrimaries.SMPTE432, True),
    ],
)
def test_only_what_is_not_srgb_already_is_mapped(transfer: int, primaries: int, maps: bool) -> None:
    assert tone_mapping.needs_mapping(transfer, primaries) is maps


@pytest.mark.parametrize("transfer", [ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67])
def test_hdr_without_known_primaries_has_those_of_bt2020(transfer: int) -> None:
    signal = np.random.default_rng(1).random((50, 3))
    assert np.array_equal(
        tone_mapping.to_srgb(signal, transfer, 2), tone_mapping.to_srgb(signal, transfer, ColorPrimaries.BT2020)
    )


def test_the_table_of_a_clip_is_the_formula_to_a_level_of_eight_bits() -> None:
    """FFmpeg looks colours up between 64 steps of each; what it finds is what the formula says."""
    signal = np.random.default_rng(2).integers(0, 65536, (8, 16, 3)).astype(np.uint16)
    picture = av.VideoFrame.from_ndarray(signal, format="rgb48le")
    looked = tone_mapping.ToneMap(ColorTrc.BT709, ColorPrimaries.SMPTE432, 16, 8).apply(picture).to_ndarray()
    exact = tone_mapping.to_srgb(signal.reshape(-1, 3) / 65535, ColorTrc.BT709, ColorPrimaries.SMPTE432).reshape(
        8, 16, 3
    )
    away = np.abs(looked / 65535 - exact) * 255
    assert np.median(away) < 0.1 and away.max() < 4, "the most where a colour leaves the range"


FORMATS = ["yuva420p", "yuva422p", "yuva444p", "yuva420p10le", "yuva444p12le"]
Samples = NDArray[np.unsignedinteger[Any]]


def samples(plane: VideoPlane, bits: int) -> Samples:
    lines = np.frombuffer(memoryview(plane), np.uint8 if bits == 8 else np.uint16).reshape(plane.height, -1)
    return lines[:, : plane.width]


def depth(frame: VideoFrame) -> int:
    return int(frame.format.components[0].bits)


def made(name: str, width: int, height: int, color_range: ColorRange = ColorRange.MPEG) -> VideoFrame:
    """Noise with an opaque, a transparent and a half transparent part, whose borders lie across strips and samples."""
    frame = VideoFrame(width, height, name)
    frame.color_range = color_range
    numbers = np.random.default_rng(1)
    top = (1 << depth(frame)) - 1
    for plane in frame.planes:
        noise = numbers.integers(0, top + 1, (plane.height, plane.width))
        samples(plane, depth(frame))[...] = noise
    alpha = samples(frame.planes[3], depth(frame))
    alpha[: height // 3] = top
    alpha[:, : width // 5] = 0
    return frame


def exact(frame: VideoFrame) -> list[NDArray[np.float64]]:
    """The planes laid on white: v·a + w·(1 - a), with the mean alpha of the pixels that a sample is of."""
    top = (1 << depth(frame)) - 1
    white = top if frame.color_range == ColorRange.JPEG else 235 * (top + 1) // 256
    alpha = samples(frame.planes[3], depth(frame)).astype(np.float64) / top
    found = []
    for index, plane in enumerate(frame.planes[:3]):
        down, across = round(frame.height / plane.height), round(frame.width / plane.width)
        padding = (0, plane.height * down - frame.height), (0, plane.width * across - frame.width)
        padded = np.pad(alpha, padding, mode="edge")
        mean = padded.reshape(plane.height, down, plane.width, across).mean((1, 3))
        behind = white if index == 0 else (top + 1) // 2
        values = samples(plane, depth(frame)).astype(np.float64)
        found.append(values * mean + behind * (1 - mean))
    return found


@pytest.mark.parametrize("color_range", [ColorRange.MPEG, ColorRange.JPEG])
@pytest.mark.parametrize("size", [(96, 200), (75, 133)], ids=str)
@pytest.mark.parametrize("name", FORMATS)
def test_every_sample_lies_on_white_by_its_alpha(name: str, size: tuple[int, int], color_range: ColorRange) -> None:
    frame = made(name, *size, color_range)
    before = [samples(plane, depth(frame)).copy() for plane in frame.planes]
    white = laid_on_white(frame, size)
    assert white.format.name == name.replace("yuva", "yuv") and (white.width, white.height) == size
    assert white.color_range == color_range
    for plane, expected in zip(white.planes, exact(frame), strict=True):
        assert np.abs(samples(plane, depth(frame)) - expected).max() <= 1.5
    for plane, kept in zip(frame.planes, before, strict=True):
        assert np.array_equal(samples(plane, depth(frame)), kept), "a decoder may refer to the frame's planes"


@pytest.mark.parametrize("name", FORMATS)
def test_half_the_size_is_the_mean_of_four(name: str) -> None:
    frame = made(name, 128, 200)
    white = laid_on_white(frame, (64, 70))
    assert (white.width, white.height) == (64, 100)
    for plane, whole in zip(white.planes, exact(frame), strict=True):
        expected = whole.reshape(plane.height, 2, plane.width, 2).mean((1, 3))
        assert np.abs(samples(plane, depth(frame)) - expected).max() <= 2


@pytest.mark.parametrize("size", [(64, 101), (65, 100)], ids=str)
def test_no_side_becomes_smaller_than_it_is_wanted(size: tuple[int, int]) -> None:
    white = laid_on_white(made("yuva420p", 128, 200), size)
    assert (white.width, white.height) == (128, 200)


def test_an_aperture_is_of_the_whole_frame() -> None:
    """What is cut out is black on the left and transparent, over green, on the right, also where it is shown at half its size."""
    frame = VideoFrame(128, 128, "yuva420p")
    for plane, value in zip(frame.planes, (16, 128, 128, 255), strict=True):
        samples(plane, 8)[...] = value
    for plane, value in zip(frame.planes, (145, 54, 34, 0), strict=True):
        samples(plane, 8)[:, plane.width // 2 :] = value
    pixels = FrameConverter(aperture=Aperture(32, 32, 64, 64)).picture(frame, (32, 32))
    assert pixels.shape == (32, 32, 3)
    assert pixels[:, :15].max() <= 2 and pixels[:, 17:].min() >= 253


def test_other_frames_are_none_of_these() -> None:
    assert [
        name for name in ("yuv420p", "gbrap", "rgba", "yuva420p10be", "ya8") if is_yuva(VideoFrame(8, 8, name))
    ] == []

"""Pictures as cameras, phones and programs write them: shape, orientation and colours are those that a viewer shows."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from musetalk_agent.avatars import picture_decoder
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.avatars.picture_clips import animation_of
from musetalk_agent.avatars.picture_decoder import DecodedPicture, Size, decode_picture
from musetalk_agent.errors import AvatarTooLarge, AvatarUndecodable

from . import made_pictures as made
from .made_pictures import COLOURS, STORED_AS, saved, scene

LIMITS = AvatarLimits()
NEAR = 6
"""Levels that a colour may be off after coding."""
WHITE = (255, 255, 255)
HEIC = pytest.mark.skipif(find_spec("pillow_heif") is None, reason="the extra [heif] is not installed")


def heic(picture: Image.Image, **options: object) -> bytes:
    import pillow_heif as heif

    out = io.BytesIO()
    heif.from_pillow(picture).save(out, quality=95, **options)
    return out.getvalue()


def heic_oriented(orientation: int) -> bytes:
    """HEIC as a phone writes it: the box says how the pixels are turned, and EXIF says it again."""
    import pillow_heif as heif

    turned = np.ascontiguousarray(STORED_AS[orientation](scene()))
    file = heif.from_bytes("RGB", turned.shape[1::-1], turned.tobytes())
    out = io.BytesIO()
    file.save(out, quality=95, exif=made.exif(orientation))
    assert orientation == 1 or b"irot" in out.getvalue() or b"imir" in out.getvalue()
    return out.getvalue()


def is_scene(picture: DecodedPicture, size: Size = (160, 120), **instead: tuple[int, int, int]) -> None:
    assert picture.size == size
    assert (picture.pixels.shape, picture.pixels.dtype) == ((size[1], size[0], 3), np.uint8)
    near(made.quarters(picture.pixels), COLOURS | {name.replace("_", " "): colour for name, colour in instead.items()})


def near(seen: dict[str, tuple[int, int, int]], wanted: dict[str, tuple[int, int, int]]) -> None:
    off = {
        name: (seen[name], wanted[name])
        for name in wanted
        if np.abs(np.subtract(seen[name], wanted[name])).max() > NEAR
    }
    assert not off


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_an_exif_orientation_is_honoured(kind: str, orientation: int) -> None:
    is_scene(decode_picture(made.oriented(kind, orientation), "a", LIMITS))


@HEIC
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_heic_is_turned_once_though_it_says_so_twice(orientation: int) -> None:
    is_scene(decode_picture(heic_oriented(orientation), "a", LIMITS))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(made.oriented("PNG", 6, "RGBA"), id="RGBA PNG with EXIF"),
        pytest.param(made.png_with_late_exif(8), id="PNG with EXIF behind its pixels"),
        pytest.param(made.webp_with_prefixed_exif(6), id="WebP whose EXIF begins Exif00"),
        pytest.param(made.jpeg_with_xmp_orientation(6), id="JPEG with an orientation in XMP"),
        pytest.param(made.gain_mapped_jpeg(), id="JPEG with a gain map"),
        pytest.param(saved(Image.fromarray(scene()), "JPEG", quality=95, progressive=True), id="progressive JPEG"),
        pytest.param(saved(Image.fromarray(scene()).convert("CMYK"), "JPEG", quality=95), id="CMYK JPEG"),
        pytest.param(made.sixteen_bit_png(), id="PNG of 16 bits"),
        pytest.param(made.sixteen_bit_png(alpha=True), id="PNG of 16 bits with alpha"),
        pytest.param(saved(Image.fromarray(scene()).quantize(16), "PNG"), id="PNG with a palette"),
        pytest.param(saved(Image.fromarray(scene()), "WEBP", lossless=True), id="lossless WebP"),
        pytest.param(saved(Image.fromarray(scene()), "GIF"), id="GIF"),
        pytest.param(lambda: heic(Image.fromarray(scene()).convert("RGBA")), id="HEIC with alpha", marks=HEIC),
    ],
)
def test_a_picture_looks_as_viewers_show_it(data: bytes | Callable[[], bytes]) -> None:
    is_scene(decode_picture(data if isinstance(data, bytes) else data(), "a", LIMITS))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(saved(made.see_through(), "PNG"), id="PNG"),
        pytest.param(saved(made.see_through(), "WEBP", quality=95), id="WebP"),
        pytest.param(saved(made.see_through(), "AVIF", quality=95), id="AVIF"),
        pytest.param(lambda: heic(made.see_through()), id="HEIC", marks=HEIC),
        pytest.param(made.palette_png(), id="PNG with a palette"),
        pytest.param(made.keyed_png(), id="PNG with a transparent colour"),
        pytest.param(made.keyed_png(sixteen=True), id="PNG of 16 bits with a transparent colour"),
    ],
)
@pytest.mark.parametrize("size", [(160, 120), (40, 30)], ids=["whole", "scaled down"])
def test_what_is_transparent_is_white(data: bytes | Callable[[], bytes], size: Size) -> None:
    picture = decode_picture(data if isinstance(data, bytes) else data(), "a", LIMITS, target=lambda _: size)
    near(made.quarters(picture.pixels), COLOURS | {"bottom right": WHITE})
    edge = picture.pixels[size[1] * 7 // 10, size[0] // 2 - 3 : size[0] // 2 + 3].astype(int)
    assert (edge[:, 1] - edge[:, [0, 2]].max(1)).max() < 40  # the hidden green does not bleed into it


def test_grey_pictures() -> None:
    shade = np.where(np.arange(160) < 80, 60, 180).astype(np.uint8)[None].repeat(120, 0)
    deep = Image.fromarray((shade.astype(np.uint16) << 8) | 0x7F)
    alpha = Image.merge("LA", [Image.fromarray(shade), Image.new("L", (160, 120), 255)])
    alpha.paste((0, 0), (0, 100, 160, 120))
    for picture in (Image.fromarray(shade), deep, alpha):
        pixels = decode_picture(saved(picture, "PNG"), "a", LIMITS).pixels
        assert pixels[10, [10, 150]].tolist() == [[60] * 3, [180] * 3]
    assert pixels[110, 10].tolist() == [255] * 3
    bits = decode_picture(saved(Image.fromarray(shade > 100), "PNG"), "a", LIMITS).pixels
    assert bits[10, [10, 150]].tolist() == [[0] * 3, [255] * 3]


def in_srgb(rgb: tuple[int, int, int]) -> tuple[int, int, int]:
    """A colour of `DISPLAY_P3` by its definition (IEC 61966-2-1, both adapted to D50)."""
    p3 = np.array([[0.51512, 0.29198, 0.1571], [0.2412, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
    srgb = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.7141]])
    linear = np.clip(np.linalg.solve(srgb, p3 @ (np.array(rgb) / 255) ** 2.2), 0, 1)
    coded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = (round(float(value) * 255) for value in coded)
    return red, green, blue


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", pytest.param("HEIC", marks=HEIC)])
def test_wide_colours_become_srgb(kind: str) -> None:
    wide = Image.fromarray(scene())
    data = (
        heic(wide, icc_profile=made.DISPLAY_P3)
        if kind == "HEIC"
        else saved(wide, kind, icc_profile=made.DISPLAY_P3, **({} if kind == "PNG" else {"quality": 95}))
    )
    wanted = {name: in_srgb(colour) for name, colour in COLOURS.items()}
    assert max(np.abs(np.subtract(wanted[name], COLOURS[name])).max() for name in COLOURS) > 2 * NEAR
    near(made.quarters(decode_picture(data, "a", LIMITS).pixels), wanted)


def stated_by_numbers(kind: str, picture: Image.Image, primaries: int, transfer: int) -> bytes:
    """A picture whose colours are of these primaries and this transfer (H.273), by `cICP` or `nclx`."""
    if kind == "PNG":
        data = saved(picture, "PNG")
        return data[:33] + made.png_chunk(b"cICP", bytes([primaries, transfer, 0, 1])) + data[33:]
    data = heic(picture) if kind == "HEIC" else saved(picture, kind, quality=95)
    at = data.index(b"colrnclx") + 8
    return data[:at] + primaries.to_bytes(2, "big") + transfer.to_bytes(2, "big") + data[at + 4 :]


@pytest.mark.parametrize("kind", ["PNG", "AVIF", pytest.param("HEIC", marks=HEIC)])
def test_colours_that_are_recognised_by_numbers_become_srgb(kind: str) -> None:
    """Display P3; and diffuse white of PQ and HLG (203 cd/m², BT.2408-7, table 1), which becomes nearly white."""
    wide = decode_picture(stated_by_numbers(kind, Image.fromarray(scene()), 12, 13), "a", LIMITS)
    near(made.quarters(wide.pixels), {name: in_srgb(colour) for name, colour in COLOURS.items()})
    for transfer, white in ((16, 148), (18, 191)):
        grey = Image.new("RGB", (160, 120), (white,) * 3)
        shown = decode_picture(stated_by_numbers(kind, grey, 9, transfer), "a", LIMITS).pixels[60, 80]
        assert shown.tolist() == pytest.approx([243] * 3, abs=NEAR), transfer


def test_a_profile_that_is_rubbish_or_for_another_picture_says_nothing() -> None:
    is_scene(decode_picture(saved(Image.fromarray(scene()), "PNG", icc_profile=b"rubbish" * 40), "a", LIMITS))
    grey = Image.new("L", (160, 120), 90)
    assert (
        decode_picture(saved(grey, "PNG", icc_profile=made.DISPLAY_P3), "a", LIMITS).pixels[9, 9].tolist() == [90] * 3
    )


@pytest.mark.parametrize(
    ("kind", "width", "height"),
    [
        ("JPEG", 3600, 5000),
        ("PNG", 3600, 5000),
        ("WEBP", 3500, 4700),
        pytest.param("HEIC", 720, 1000, marks=HEIC),
        ("AVIF", 720, 1000),
    ],
)
def test_a_large_picture_is_scaled_down_as_it_is_decoded(kind: str, width: int, height: int) -> None:
    """More pixels than a frame of a video may have, where encoding is quick; what it costs is asked for first."""
    large, asked = Image.fromarray(scene(width, height)), []
    options = {"method": 0} if kind == "WEBP" else {"compress_level": 1} if kind == "PNG" else {}
    data = heic(large) if kind == "HEIC" else saved(large, kind, **options)
    picture = decode_picture(data, "a", LIMITS, target=lambda size: (90, 125), allow=asked.append)
    assert picture.size == (width, height) and picture.pixels.shape == (125, 90, 3)
    near(made.quarters(picture.pixels), COLOURS)
    assert max(asked) * LIMITS.decoder_bytes_per_pixel <= LIMITS.still_bytes + LIMITS.decoder_bytes_per_pixel
    if kind == "JPEG":
        assert max(asked) * LIMITS.decoder_bytes_per_pixel < 4 * width * height // 60


@pytest.mark.parametrize(
    ("made_by", "words"),
    [
        pytest.param(
            lambda: saved(Image.new("RGB", (9000, 8000)), "PNG", compress_level=1),
            "save it as a baseline JPEG",
            id="PNG",
        ),
        pytest.param(
            lambda: saved(Image.new("RGB", (9000, 8000)), "JPEG", progressive=True, subsampling=0),
            "baseline JPEG",
            id="JPEG",
        ),
        pytest.param(lambda: saved(Image.new("L", (5000, 4500)), "GIF"), "GIF picture of 5000×4500", id="GIF"),
    ],
)
def test_what_would_take_too_much_memory_is_refused_with_what_to_do(made_by: Callable[[], bytes], words: str) -> None:
    data = made_by()
    with pytest.raises(AvatarTooLarge, match=words) as caught:
        decode_picture(data, "a", LIMITS, target=lambda size: (96, 96), allow=lambda pixels: pytest.fail("asked for"))
    assert isinstance(caught.value.limit, int) and isinstance(caught.value.value, int)
    assert caught.value.limit < caught.value.value


def test_without_the_library_a_heic_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_decoder, "pillow_heif", None)
    with pytest.raises(AvatarUndecodable, match=r"\[heif\].*save it as a JPEG") as caught:
        decode_picture(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "IMG_1.HEIC", LIMITS)
    assert caught.value.value == "a HEIC picture"


def shades(count: int) -> list[Image.Image]:
    """Pictures of one grey each, from dark to light."""
    return [Image.new("RGB", (80, 64), (20 + 30 * k,) * 3) for k in range(count)]


def animated(kind: str, durations: list[int], **options: object) -> bytes:
    first, *rest = shades(len(durations))
    lossless = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "AVIF" else {}
    return saved(first, kind, save_all=True, append_images=rest, duration=durations, loop=0, **lossless, **options)


def shown(data: bytes, fps: int = 25) -> list[int]:
    """Which of the shades each frame is."""
    animation = animation_of(data, "a", LIMITS, lambda pixels: None)
    assert animation is not None and animation.size == (80, 64)
    frames = list(animation.frames(fps, lambda size: size))
    assert all(frame.shape == (64, 80, 3) for frame in frames)
    return [round((float(frame[30, 40].mean()) - 20) / 30) for frame in frames]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
def test_an_animated_picture_keeps_its_timing(kind: str) -> None:
    data = animated(kind, [80, 40, 120, 200])
    assert shown(data) == [0, 0, 1, 2, 2, 2, 3, 3, 3, 3, 3]
    assert shown(data, 50) == [0] * 4 + [1] * 2 + [2] * 6 + [3] * 10
    assert decode_picture(data, "a", LIMITS).pixels[30, 40].tolist() == pytest.approx([20] * 3, abs=3)


def test_frames_as_fast_as_possible_last_a_tenth_of_a_second() -> None:
    assert shown(animated("GIF", [0, 10]), 20) == [0, 0, 1, 1]


def test_the_picture_for_those_who_know_no_animations_is_not_of_it() -> None:
    first, *rest = shades(3)
    data = saved(first, "PNG", save_all=True, append_images=rest, duration=[80, 40], default_image=True)
    assert shown(data) == [1, 1, 2]


def test_frames_that_cover_a_part_and_see_through_ones() -> None:
    """The second frame changes a corner only; the first is half transparent."""
    first = Image.new("RGBA", (80, 64), (200, 0, 0, 255))
    first.paste((0, 255, 0, 0), (0, 0, 40, 64))
    second = first.copy()
    second.paste((0, 0, 200, 255), (60, 40, 80, 64))
    for kind in ("GIF", "PNG", "WEBP"):
        data = saved(first, kind, save_all=True, append_images=[second], duration=40, disposal=1, lossless=True)
        animation = animation_of(data, "a", LIMITS, lambda pixels: None)
        assert animation is not None
        one, two = animation.frames(25, lambda size: size)
        assert [one[30, 10].tolist(), one[60, 70].tolist()] == [[255] * 3, [0, 0, 200]], kind
        assert [two[30, 10].tolist(), two[60, 70].tolist(), two[5, 70].tolist()] == [
            [255] * 3,
            [200, 0, 0],
            [0, 0, 200],
        ], kind


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_one_frame_is_no_animation(kind: str) -> None:
    assert animation_of(saved(shades(1)[0], kind), "a", LIMITS, lambda pixels: None) is None


def test_an_animation_that_is_too_long_is_refused() -> None:
    animation = animation_of(animated("GIF", [40_000, 21_000]), "a", LIMITS, lambda pixels: None)
    assert animation is not None
    with pytest.raises(AvatarTooLarge, match="more than 60 s"):
        list(animation.frames(25, lambda size: size))
    assert Fraction(1, 25) * 1500 == 60


def test_an_animation_cut_short_is_refused() -> None:
    data = animated("WEBP", [40] * 6)
    with pytest.raises(AvatarUndecodable):
        shown(data[: len(data) * 2 // 3])

"""Decodes images by Pillow, and HEIC by pillow-heif: scaled down first, then upright, in sRGB and opaque.

Only the decoded pixels have the image's full size: they are scaled down in strips, and every other step works on the small
image. Runs in the decoder process only; Pillow's classes are opened by the kind that was sniffed, so no other is tried.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from PIL import (
    AvifImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageCms,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

from musetalk_agent.avatars import tone_mapping
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.avatars.media_probe import (
    MediaKind,
    check_pixels,
    check_structure,
    picture_kind,
    picture_size,
    still_cost,
)
from musetalk_agent.errors import AvatarUndecodable
from musetalk_agent.media_types import Pixels

pillow_heif: Any
try:
    import pillow_heif
except ImportError:  # the extra [heif] is not installed
    pillow_heif = None

Size = tuple[int, int]
TargetSize = Callable[[Size], Size]
"""From an image's upright size (width, height) to the size that is wanted of it, which is no larger."""

DAMAGE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    RuntimeError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow raises over damaged files. The bytes lie in memory, so an OSError is no failure of a disk."""
_CLASSES: dict[MediaKind, Callable[[io.BytesIO], Image.Image]] = {
    MediaKind.PNG: PngImagePlugin.PngImageFile,
    MediaKind.JPEG: JpegImagePlugin.JpegImageFile,
    MediaKind.WEBP: WebPImagePlugin.WebPImageFile,
    MediaKind.GIF: GifImagePlugin.GifImageFile,
    MediaKind.AVIF: AvifImagePlugin.AvifImageFile,
}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings an image of an EXIF orientation upright (EXIF 2.32, 4.6.4)."""
_LYING = frozenset({5, 6, 7, 8})
_OPAQUE = 255
_BACKGROUND = (255, 255, 255)
"""Transparent images are composited on white, as a browser shows them."""
_STRIP_ROWS = 256
_BOXES_BYTES = 1 << 20
"""The box that states the colours is searched for in this many bytes: boxes come before the coded pixels."""
_KEPT_BOXES = 2
"""Pixels are averaged in boxes down to twice the wanted size, and resampled from there: as sharp as resampling alone, many times
as fast (`reducing_gap` of Pillow)."""
_PLAIN = frozenset({"L", "LA", "RGB", "RGBA", "CMYK"})
_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
_SRGB = ImageCms.createProfile("sRGB")
_THREADS = 2
AvifImagePlugin.DEFAULT_MAX_THREADS = _THREADS


@dataclass(frozen=True, slots=True)
class DecodedPicture:
    """An image as it is worked on.

    Args:
        pixels: uint8 BGR `[h, w, 3]`, upright, sRGB, on white, scaled down; with its alpha as a fourth channel where that was asked
            for and is not opaque all over.
        size: upright width and height of the image that was sent.
    """

    pixels: Pixels
    size: Size


def decode_picture(
    data: bytes,
    name: str,
    limits: AvatarLimits,
    *,
    target: TargetSize = lambda size: size,
    allow: Callable[[int], object] = lambda pixels: None,
    at_once: int = 1,
    keep_alpha: bool = False,
) -> DecodedPicture:
    """Decodes an image; of an animated one the first frame.

    Args:
        data: the file's bytes.
        name: what to call it in an error message.
        limits: what it may cost.
        target: the size that is wanted.
        allow: called with what decoding costs, as pixels of `decoder_bytes_per_pixel`, before anything of that size is allocated.
        at_once: how many images are decoded at the same time.
        keep_alpha: whether the image's alpha is returned, too.

    Raises:
        AvatarUndecodable: it is no image, damaged, or under the least size.
        AvatarTooLarge: it would cost more than the limits allow.
        MemoryError: it needs more than it was given.
    """
    kind = picture_kind(data, name)
    # a GIF's frame may be larger than its header says
    size = None if kind is MediaKind.GIF else picture_size(data, name)

    def grant(size: Size, upright: Size) -> int:
        check_pixels(*size, name, limits, limits.still_pixels)
        check_structure(data, name, size[0] * size[1], limits)
        least = target(upright)
        least = least if upright == size else least[::-1]
        cost = still_cost(data, kind, size, least, name, limits.still_bytes // at_once)
        allow(math.ceil(at_once * cost.bytes / limits.decoder_bytes_per_pixel))
        return cost.draft

    try:
        if kind is MediaKind.HEIC:
            return _decode_heic(data, name, target, grant, keep_alpha)
        draft = 1
        if size is not None and kind is not MediaKind.JPEG:
            grant(size, size)
        image = open_picture(data, kind)
        orientation = 1 if size is None else orientation_of(image)
        size = size or image.size
        upright = size[::-1] if orientation in _LYING else size
        if kind in (MediaKind.JPEG, MediaKind.AVIF, MediaKind.GIF):
            draft = grant(size, upright)
        if draft > 1:
            image.draft(None, (size[0] // draft, size[1] // draft))
        image.load()
        orientation = orientation_of(image)
        upright = size[::-1] if orientation in _LYING else size
        pixels = to_pixels(image, target(upright), orientation, signalling(data, kind), keep_alpha=keep_alpha)
        return DecodedPicture(pixels, upright)
    except DAMAGE_ERRORS as error:
        raise decode_error(name, error) from error


def opened_size(data: bytes, name: str) -> Size:
    """Width and height of an AVIF or HEIC image, as its library reads them without decoding it.

    Raises:
        AvatarUndecodable: damaged, or there is no library for it.
    """
    kind = picture_kind(data, name)
    try:
        size: Size = _open_heic(data, name).size if kind is MediaKind.HEIC else open_picture(data, kind).size
    except DAMAGE_ERRORS as error:
        raise decode_error(name, error) from error
    return size


def open_picture(data: bytes, kind: MediaKind) -> Image.Image:
    """Opens an image of a kind that Pillow reads. Raises one of `DAMAGE_ERRORS`."""
    return _CLASSES[kind](io.BytesIO(data))


def decode_error(name: str, error: Exception) -> Exception:
    """The error to raise for one of `DAMAGE_ERRORS`: a refusal, or MemoryError."""
    text = str(error).lower()
    if "memory" in text and "limit" not in text:  # libheif says "memory" of the limits that it sets itself, too
        return MemoryError(str(error))
    return AvatarUndecodable(f"{name!r} cannot be decoded: its pixels are damaged or cut short.")


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation, 1 … 8; 1 where none is stated. Reads a PNG to its end, as that is where its EXIF may be."""
    try:
        stated = image.getexif().get(ExifTags.Base.Orientation, 1)
    except DAMAGE_ERRORS:  # the image itself may be whole
        return 1
    return stated if stated in _UPRIGHT else 1


def signalling(data: bytes, kind: MediaKind) -> tuple[int, int] | None:
    """Primaries and transfer that AVIF (`colr`), HEIC or PNG (`cICP`) states, as H.273 numbers them; None for none."""
    if kind is MediaKind.PNG:
        at = data.find(b"cICP", 0, max(0, data.find(b"IDAT")))
        return (data[at + 4], data[at + 5]) if at > 0 else None
    if kind in (MediaKind.AVIF, MediaKind.HEIC):
        at = data.find(b"colrnclx", 0, _BOXES_BYTES)
        return cast("tuple[int, int]", struct.unpack_from(">HH", data, at + 8)) if at > 0 else None
    return None


def to_pixels(
    image: Image.Image,
    target: Size,
    orientation: int = 1,
    signal: tuple[int, int] | None = None,
    *,
    keep_alpha: bool = False,
) -> Pixels:
    """A loaded image at `target`, its upright size: uint8 BGR `[h, w, 3]`, in sRGB, composited on white. `signal` is what
    `signalling` says. `keep_alpha` adds the alpha as a fourth channel where it is not opaque all over."""

    def strip(top: int, bottom: int) -> Image.Image:
        return image if (top, bottom) == (0, image.height) else image.crop((0, top, image.width, bottom))

    small = _shrunk(image.size, strip, target[::-1] if orientation in _LYING else target)
    alpha = _alpha(small) if keep_alpha else None
    small = _opaque(small, image.info.get("icc_profile"), signal)
    if orientation in _UPRIGHT:
        small = small.transpose(_UPRIGHT[orientation])
        alpha = alpha.transpose(_UPRIGHT[orientation]) if alpha is not None else None
    return _bgr(small, alpha)


def _alpha(image: Image.Image) -> Image.Image | None:
    """The alpha of an image in a plain mode; None where it is opaque."""
    if image.mode not in ("LA", "RGBA"):
        return None
    alpha = image.getchannel("A")
    return alpha if alpha.getextrema()[0] != _OPAQUE else None


def _bgr(image: Image.Image, alpha: Image.Image | None = None) -> Pixels:
    colours = np.asarray(image)[:, :, ::-1]
    if alpha is not None:
        return np.dstack([colours, np.asarray(alpha)])
    return cast("Pixels", np.ascontiguousarray(colours))


def _shrunk(size: Size, strip: Callable[[int, int], Image.Image], target: Size) -> Image.Image:
    """An image of `size` at `target`, in one of the plain modes. `strip` gives its rows from the first to before the second."""
    width, height = size
    factor = max(1, min(width // target[0], height // target[1]) // _KEPT_BOXES)
    if factor == 1:
        whole = _plain(strip(0, height))
        return whole if size == target else whole.resize(target, Image.Resampling.BICUBIC)
    rows = factor * max(1, _STRIP_ROWS // factor)
    reduced: Image.Image | None = None
    for top in range(0, height, rows):
        part = _plain(strip(top, min(height, top + rows))).reduce(factor)
        if reduced is None:
            reduced = Image.new(part.mode, (part.width, -(-height // factor)))
        reduced.paste(part, (0, top // factor))
    assert reduced is not None
    return reduced.resize(target, Image.Resampling.BICUBIC, (0, 0, width / factor, height / factor))


def _plain(image: Image.Image) -> Image.Image:
    """The image in a mode of eight bits whose pixels can be averaged: grey or colour, with alpha or without."""
    if image.mode.startswith("I;16") or image.mode == "I":
        deep = np.asarray(image).astype(np.uint32)
        return Image.fromarray(np.minimum(deep >> 8, 255).astype(np.uint8))
    if image.mode in ("P", "PA"):
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    key = image.info.get("transparency")
    if key is not None and image.mode in ("1", "L", "RGB"):
        if isinstance(key, tuple) and max(key) > 255:  # of an image of sixteen bits, which Pillow reads as eight
            image.info["transparency"] = tuple(value >> 8 for value in key)
        return image.convert("RGBA")
    if image.mode in _PLAIN:
        return image
    return image.convert("L" if image.mode == "1" else "RGBA" if image.mode == "RGBa" else "RGB")


def _opaque(image: Image.Image, profile: object, signal: tuple[int, int] | None) -> Image.Image:
    """RGB of an image in a plain mode, in sRGB, composited on white."""
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    colours = image.convert(image.mode.rstrip("A"))
    stated = signal is not None and colours.mode == "RGB" and tone_mapping.needs_mapping(signal[1], signal[0])
    by_numbers = stated and (profile is None or (signal is not None and signal[1] in tone_mapping.HDR))
    colours = _by_numbers(colours, signal) if signal is not None and by_numbers else _in_srgb(colours, profile)
    if alpha is None:
        return colours
    opaque = Image.new("RGB", image.size, _BACKGROUND)
    opaque.paste(colours, mask=alpha)
    return opaque


def _by_numbers(image: Image.Image, signal: tuple[int, int]) -> Image.Image:
    """sRGB of an image whose primaries and transfer are stated by number, HDR's among them."""
    pixels = np.asarray(image)
    primaries, transfer = signal
    rows = [tone_mapping.to_srgb(row / 255.0, transfer, primaries) for row in pixels]
    return Image.fromarray(np.rint(np.stack(rows) * 255).astype(np.uint8))


def _in_srgb(image: Image.Image, profile: object) -> Image.Image:
    """RGB of an image whose ICC profile is honoured where it fits the image."""
    if isinstance(profile, bytes):
        try:
            stated = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if stated.profile.xcolor_space.strip() == _SPACES.get(image.mode):
                intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
                flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
                shown = ImageCms.profileToProfile(image, stated, _SRGB, intent, "RGB", flags=flags)
                if shown is not None:
                    return shown
        except (ImageCms.PyCMSError, *DAMAGE_ERRORS):
            pass  # a profile that cannot be read says nothing
    return image.convert("RGB")


def _open_heic(data: bytes, name: str) -> Any:
    if pillow_heif is None:
        raise AvatarUndecodable(
            f"{name!r} is a HEIC picture, which this agent cannot read (the extra [heif] is not installed); save it as a JPEG.",
            value=MediaKind.HEIC.value,
        )
    pillow_heif.options.DECODE_THREADS = _THREADS
    file = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=True)
    return file[file.primary_index]


def _decode_heic(
    data: bytes, name: str, target: TargetSize, grant: Callable[[Size, Size], int], keep_alpha: bool
) -> DecodedPicture:
    """libheif turns and mirrors by itself; an EXIF orientation beside that is not to be honoured (ISO/IEC 23008-12)."""
    picture = _open_heic(data, name)
    size = picture.size
    grant(size, size)
    pixels = np.asarray(picture)
    small = _shrunk(size, lambda top, bottom: Image.fromarray(pixels[top:bottom]), target(size))
    opaque = _opaque(small, picture.info.get("icc_profile"), signalling(data, MediaKind.HEIC))
    return DecodedPicture(_bgr(opaque, _alpha(small) if keep_alpha else None), size)

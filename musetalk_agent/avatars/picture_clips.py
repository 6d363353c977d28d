"""Clips made of images: the frames of a zip, decoded a few ahead, and those of an animated image (GIF, WebP, APNG, AVIF),
with their own timing, at the session's rate.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from fractions import Fraction
from pathlib import PurePosixPath

from PIL import Image

from musetalk_agent.avatars.archive import FrameArchive
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.avatars.media_probe import MediaKind, animation_cost, check_structure, picture_kind, picture_size
from musetalk_agent.avatars.picture_decoder import (
    DAMAGE_ERRORS,
    DecodedPicture,
    Size,
    TargetSize,
    decode_error,
    decode_picture,
    open_picture,
    opened_size,
    to_pixels,
)
from musetalk_agent.errors import AvatarEmpty, AvatarSizesDiffer, AvatarTooLarge, AvatarUndecodable
from musetalk_agent.media_types import Pixels

_AHEAD = 4
_AT_ONCE = 2
"""Threads of the decoder process that decode images (`decoder_main`)."""
_HEAD_BYTES = 64 << 10
_LISTED = 3


@dataclass(frozen=True)
class ZipFrames:
    """The entries of a zip that are frames.

    Args:
        names: in the order of the clip.
        warnings: codes and sentences about the entries that are left out.
    """

    names: Sequence[str]
    warnings: Sequence[tuple[str, str]] = ()


def choose_frames(archive: FrameArchive, limits: AvatarLimits) -> ZipFrames:
    """The frames of a zip: all images where they are of one size, else those of the folder with the most of one size.

    Raises:
        AvatarSizesDiffer: no size has the most images of that folder.
        AvatarTooLarge: they have too many pixels in all.
    """
    sizes = {name: _size(archive, name) for name in archive.names}
    stated = [size for size in sizes.values() if size is not None]
    chosen = ZipFrames(archive.names) if len(set(stated)) <= 1 else _largest_group(sizes)
    pixels = sum(width * height for width, height in (sizes[name] or (0, 0) for name in chosen.names))
    if pixels > limits.decoded_pixels:
        raise AvatarTooLarge(
            f"The {len(chosen.names)} frames have {pixels} pixels in all; at most {limits.decoded_pixels} are allowed. Send fewer "
            "or smaller ones.",
            limit=limits.decoded_pixels,
            value=pixels,
        )
    return chosen


def zip_frames(
    archive: FrameArchive,
    names: Sequence[str],
    limits: AvatarLimits,
    target: TargetSize,
    allow: Callable[[int], object],
    decoders: Executor,
) -> Generator[DecodedPicture]:
    """The entries `names` as frames at the size that is wanted; `decoders` decode a few of them ahead.

    Raises:
        AvatarSizesDiffer: one is of another upright size than the first.
        AvatarError: one cannot be decoded, as `decode_picture` says.
    """

    def load(name: str) -> DecodedPicture:
        return decode_picture(
            archive.read(name), name, limits, target=target, allow=allow, at_once=_AT_ONCE, keep_alpha=True
        )

    waiting: deque[Future[DecodedPicture]] = deque()
    first: Size | None = None
    try:
        for k, name in enumerate(names):
            while len(waiting) < min(_AHEAD, len(names) - k):
                waiting.append(decoders.submit(load, names[k + len(waiting)]))
            picture = waiting.popleft().result()
            first = first or picture.size
            if picture.size != first:
                raise _differ(name, picture.size, first)
            yield picture
    finally:
        for future in waiting:
            future.cancel()


def _size(archive: FrameArchive, name: str) -> Size | None:
    """What an entry's header says, before turning; None where it cannot be read."""
    try:
        try:
            size = picture_size(archive.read(name, _HEAD_BYTES), name)
        except AvatarUndecodable:  # the header may lie further behind
            size = picture_size(archive.read(name), name)
        return size or opened_size(archive.read(name), name)
    except AvatarUndecodable:
        return None


def _largest_group(sizes: dict[str, Size | None]) -> ZipFrames:
    groups = Counter((_folder(name), size) for name, size in sizes.items() if size is not None)
    (folder, size), count = max(groups.items(), key=lambda group: (group[1], group[0][1][0] * group[0][1][1]))
    beside = [name for name in sizes if _folder(name) == folder]
    # a damaged one among the frames is refused when its turn comes
    names = [name for name in beside if sizes[name] in (size, None)]
    if 2 * count <= len(beside):
        first = sizes[beside[0]] or size
        other = next(name for name in beside if sizes[name] not in (first, None))
        raise _differ(other, sizes[other] or size, first)
    left = [name for name in sizes if name not in set(names)]
    listed = ", ".join(repr(name[:80]) for name in left[:_LISTED]) + (" …" if len(left) > _LISTED else "")
    where = f" in {folder[:80]!r}" if folder else ""
    sentence = f"The clip is the {len(names)} pictures of {size[0]}×{size[1]}{where}; not of it are {listed} ({len(left)} in all)."
    return ZipFrames(names, [("pictures_left_out", sentence)])


def _folder(name: str) -> str:
    folder = str(PurePosixPath(name.replace("\\", "/")).parent)
    return "" if folder == "." else folder


def _differ(name: str, size: Size, first: Size) -> AvatarSizesDiffer:
    return AvatarSizesDiffer(
        f"{name!r} is {size[0]}×{size[1]}, the first frame is {first[0]}×{first[1]}; all must be of one size.",
        value=f"{size[0]}x{size[1]}",
        limit=f"{first[0]}x{first[1]}",
    )


_ANIMATED = frozenset({MediaKind.GIF, MediaKind.WEBP, MediaKind.PNG, MediaKind.AVIF})
_LEAST_MS, _INSTEAD_MS = 10, 100
"""Frames that say they last 10 ms or less are shown for 100 ms, as browsers do: such files mean "as fast as possible" of old."""


class Animation:
    """An animated image, opened. `size` is its width and height; animations have no EXIF orientation that players honour."""

    def __init__(self, image: Image.Image, name: str, limits: AvatarLimits, *, keep_alpha: bool = False) -> None:
        self._keep_alpha = keep_alpha
        self._image = image
        self._name = name
        self._limits = limits
        self.size = image.size

    def frames(self, fps: int, target: TargetSize) -> Iterator[Pixels]:
        """Frames at `fps`: for time `k/fps` the newest one at or before it, at the size that is wanted: uint8 BGR `[h, w, 3]`, or
        `[h, w, 4]` with alpha.
        A frame that serves several times is the same array each time.

        Raises:
            AvatarUndecodable: damaged.
            AvatarTooLarge: too many pixels or seconds.
        """
        made, end = 0, Fraction(0)
        for pixels, duration in self._own(target(self.size)):
            end += duration
            if end > Fraction(self._limits.video_seconds):
                raise AvatarTooLarge(
                    f"{self._name!r} lasts more than {self._limits.video_seconds:g} s, the most that is allowed; make it shorter.",
                    limit=self._limits.video_seconds,
                )
            while Fraction(made, fps) < end:
                yield pixels
                made += 1

    def _own(self, target: tuple[int, int]) -> Iterator[tuple[Pixels, Fraction]]:
        """The file's own frames and how long each is shown, in seconds."""
        image, pixels = self._image, 0
        first = int(getattr(image, "default_image", False))  # of an APNG: for those who do not know animations
        at = first
        while True:
            pixels += self.size[0] * self.size[1]
            if pixels > self._limits.decoded_pixels:
                raise AvatarTooLarge(
                    f"{self._name!r} has more than {self._limits.decoded_pixels} pixels in all its frames; make it smaller.",
                    limit=self._limits.decoded_pixels,
                )
            try:
                image.seek(at)
                if image.size != self.size:
                    raise ValueError("a frame is larger than the picture")
                image.load()
                shown = to_pixels(image, target, keep_alpha=self._keep_alpha)
            except EOFError as error:
                if at == first:
                    raise AvatarEmpty(f"{self._name!r} has no frame in it.") from error
                return
            except DAMAGE_ERRORS as error:
                raise decode_error(self._name, error) from error
            stated = image.info.get("duration", 0)
            yield shown, Fraction(stated if stated > _LEAST_MS else _INSTEAD_MS) / 1000
            at += 1


def animation_of(
    data: bytes, name: str, limits: AvatarLimits, allow: Callable[[int], object], *, keep_alpha: bool = False
) -> Animation | None:
    """The animation that an image is; None for a still one. With `keep_alpha` its frames have their alpha as a fourth channel.

    Raises:
        AvatarUndecodable: damaged, or under the least size.
        AvatarTooLarge: too many pixels.
    """
    kind = picture_kind(data, name)
    if kind not in _ANIMATED or not _says_so(data, kind):
        return None
    size = picture_size(data, name)

    def grant(size: tuple[int, int]) -> None:
        check_structure(data, name, size[0] * size[1], limits)
        allow(math.ceil(animation_cost(kind, size, name, limits).bytes / limits.decoder_bytes_per_pixel))

    try:
        if size is not None and kind is not MediaKind.GIF:  # whose frames may be larger than its header says
            grant(size)
        image = open_picture(data, kind)
        if not getattr(image, "is_animated", False):
            return None
        grant(image.size)
        return Animation(image, name, limits, keep_alpha=keep_alpha)
    except DAMAGE_ERRORS as error:
        raise decode_error(name, error) from error


def _says_so(data: bytes, kind: MediaKind) -> bool:
    """Whether the header lets an animation be expected, so that a large still image is not opened for it."""
    if kind is MediaKind.PNG:
        return data.find(b"acTL", 0, data.find(b"IDAT")) > 0
    if kind is MediaKind.WEBP:
        return data[12:16] == b"VP8X" and bool(data[20] & 2)
    return kind is MediaKind.GIF or data[8:12] == b"avis"

"""Animated pictures (GIF, WebP, APNG, AVIF): their frames with their own timing, at the session's rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction

from PIL import Image

from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.avatars.picture_decoder import DAMAGED, Target, finished, open_picture, undecodable
from musetalk_agent.avatars.pictures import animation_cost, check_structure, picture_kind, picture_size
from musetalk_agent.avatars.sniff import Kind
from musetalk_agent.errors import AvatarEmpty, AvatarTooLarge
from musetalk_agent.media_types import Pixels

_ANIMATED = frozenset({Kind.GIF, Kind.WEBP, Kind.PNG, Kind.AVIF})
_LEAST_MS, _INSTEAD_MS = 10, 100
"""Frames that say they last 10 ms or less are shown for 100 ms, as browsers do: such files mean "as fast as possible" of old."""


class Animation:
    """An animated picture, opened. `size` is its width and height; animations have no EXIF orientation that players honour."""

    def __init__(self, image: Image.Image, name: str, limits: AvatarLimits) -> None:
        self._image = image
        self._name = name
        self._limits = limits
        self.size = image.size

    def frames(self, fps: int, target: Target) -> Iterator[Pixels]:
        """Frames at `fps`: for time `k/fps` the newest one at or before it, uint8 BGR `[h, w, 3]`, at the size that is wanted.
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
                shown = finished(image, target)
            except EOFError as error:
                if at == first:
                    raise AvatarEmpty(f"{self._name!r} has no frame in it.") from error
                return
            except DAMAGED as error:
                raise undecodable(self._name, error) from error
            stated = image.info.get("duration", 0)
            yield shown, Fraction(stated if stated > _LEAST_MS else _INSTEAD_MS) / 1000
            at += 1


def animation_of(data: bytes, name: str, limits: AvatarLimits, allow: Callable[[int], object]) -> Animation | None:
    """The animation that a picture is; None for a still one.

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
        if size is not None and kind is not Kind.GIF:  # whose frames may be larger than its header says
            grant(size)
        image = open_picture(data, kind)
        if not getattr(image, "is_animated", False):
            return None
        grant(image.size)
        return Animation(image, name, limits)
    except DAMAGED as error:
        raise undecodable(name, error) from error


def _says_so(data: bytes, kind: Kind) -> bool:
    """Whether the header lets an animation be expected, so that a large still picture is not opened for it."""
    if kind is Kind.PNG:
        return data.find(b"acTL", 0, data.find(b"IDAT")) > 0
    if kind is Kind.WEBP:
        return data[12:16] == b"VP8X" and bool(data[20] & 2)
    return kind is Kind.GIF or data[8:12] == b"avis"

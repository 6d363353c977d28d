"""The clip in a zip: which of its pictures are the frames, and the frames, decoded a few ahead."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import PurePosixPath

from musetalk_agent.avatars.archive import FrameArchive
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.avatars.picture_decoder import DecodedPicture, Size, Target, decode_picture, opened_size
from musetalk_agent.avatars.pictures import picture_size
from musetalk_agent.errors import AvatarSizesDiffer, AvatarTooLarge, AvatarUndecodable

_AHEAD = 4
_AT_ONCE = 2
"""Threads of the decoder process that decode pictures (`decoder_main`)."""
_HEAD_BYTES = 64 << 10
_LISTED = 3


@dataclass(frozen=True)
class ZipFrames:
    """What is shown of a zip.

    Args:
        names: entries, in the order of the clip.
        warnings: codes and sentences about what is not.
    """

    names: Sequence[str]
    warnings: Sequence[tuple[str, str]] = ()


def choose_frames(archive: FrameArchive, limits: AvatarLimits) -> ZipFrames:
    """The frames of a zip: all pictures where they are of one size, else those of the folder with the most of one size.

    Raises:
        AvatarSizesDiffer: no size has the most pictures of that folder.
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
    target: Target,
    allow: Callable[[int], object],
    decoders: Executor,
) -> Generator[DecodedPicture]:
    """The entries `names` as frames at the size that is wanted; `decoders` decode a few of them ahead.

    Raises:
        AvatarSizesDiffer: one is of another upright size than the first.
        AvatarError: one cannot be decoded, as `decode_picture` says.
    """

    def load(name: str) -> DecodedPicture:
        return decode_picture(archive.read(name), name, limits, target=target, allow=allow, at_once=_AT_ONCE)

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

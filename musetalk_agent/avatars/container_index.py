"""Reads from video containers what FFmpeg does not report: the size of an MP4's index, and the cropping of MP4 and Matroska.

The index of an MP4 or MOV is added up before FFmpeg builds it in memory: a box of a few bytes may promise billions of samples:
FFmpeg's mov demuxer (libavformat/mov.c) allocates some 50 bytes for each of them, for each edit again, and for each run of a
fragment. The sums are cheap to take; the rest is left to the demuxer. Box layouts are those of ISO/IEC 14496-12, Matroska's
elements those of RFC 9559. FFmpeg reads the cropping of both and leaves it to its caller, to whom PyAV does not pass it on.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from musetalk_agent.avatars.frame_conversion import Aperture
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.errors import AvatarTooLarge, AvatarUndecodable

_CONTAINERS = frozenset(b"moov trak mdia minf stbl edts moof traf dinf ilst mvex schi sinf tref udta wave".split())
"""What FFmpeg looks for boxes in, of any kind, wherever it stands (`mov_read_default`); `meta` beside these."""
_DEPTH_MAX = 12
"""FFmpeg refuses boxes that lie deeper."""
_TABLES = re.compile(rb"stsz|stz2|stts|ctts|stsc|stco|co64|elst|trun|trak")
_HANDLER = re.compile(rb"(?s:....)*?hdlr")
_SCAN_BYTES = 1 << 16
_ENTRIES_MAX = 16
"""Sample entries of a track that are read; cameras write one."""
_VISUAL_ENTRY_BYTES = 78
"""Of a sample entry before the boxes in it."""
_BOXES_MAX = 100_000
_PCM_SAMPLES_PER_ENTRY = 1024
"""FFmpeg indexes PCM by pieces of so many samples."""
_PCM_RATE_MAX = 192_000


@dataclass(slots=True)
class _TrackCounts:
    """Counts of one track: samples, edits, timing entries by `stts` and `ctts`, and what identifies PCM."""

    sound: bool = False
    samples: int = 0
    edits: int = 0
    timed: int = 0
    shifted: int = 0
    one_duration: bool = False
    one_size: bool = False
    runs: NDArray[np.int64] | None = None
    chunks: int = 0

    @property
    def entries(self) -> int:
        """Entries of the index that FFmpeg builds for it, at most."""
        most = max(self.samples, self.timed, self.shifted)
        if self.sound and self.one_duration and self.one_size:
            most = max(most, self._in_chunks()) // _PCM_SAMPLES_PER_ENTRY + self.chunks
        return most * max(1, self.edits)

    def _in_chunks(self) -> int:
        """Samples by the table of runs: each row holds for the chunks from its own to the next row's."""
        if self.runs is None or not len(self.runs):
            return 0
        ends = np.minimum(np.append(self.runs[1:, 0], self.chunks + 1), self.chunks + 1)
        chunks = np.maximum(ends - self.runs[:, 0], 0)
        return int((chunks.astype(object) * self.runs[:, 1]).sum())


def check_index(path: Path, limits: AvatarLimits) -> None:
    """Refuses a file whose index would take far more memory than a clip's.

    Raises:
        AvatarTooLarge: too many tracks, or too many samples in all tracks, edits and fragments.
        AvatarUndecodable: there is no index, or it is packed, which QuickTime once did, or a table lies in a sample entry, where
            FFmpeg would read it, too.
    """
    tracks: list[_TrackCounts] = []
    fragments = 0
    indexed = False
    with path.open("rb") as file:
        for kind, start, size in _boxes(file, 0, path.stat().st_size):
            indexed |= kind in (b"moov", b"moof")
            if kind == b"cmov":
                raise AvatarUndecodable("The video's index is packed (an old QuickTime file); export it again as MP4.")
            if kind == b"trak":
                tracks.append(_TrackCounts())
                if len(tracks) > limits.video_tracks:
                    raise AvatarTooLarge(
                        f"The video has more than {limits.video_tracks} tracks; export it with one of pictures.",
                        limit=limits.video_tracks,
                    )
            elif kind == b"stsd" and _found(file, _TABLES.search, start, start + size) is not None:
                raise AvatarUndecodable(
                    "The video's index is damaged: a table lies in another. Export it again as MP4."
                )
            elif kind == b"trun":
                fragments += _number(file, start, size, 4)
            elif tracks:
                _count(file, kind, start, size, tracks[-1], limits)
            if fragments > limits.video_samples:
                break
    if not indexed:
        raise AvatarUndecodable(
            "The video ends before its index, which comes last in many MP4 files: its recording or its upload broke off. Send it "
            "again, whole."
        )
    samples = fragments + sum(track.entries for track in tracks)
    pcm = int(limits.video_seconds * _PCM_RATE_MAX)
    samples = max(samples, *(track.samples for track in tracks if track.samples > pcm), 0)
    if samples > limits.video_samples:
        raise AvatarTooLarge(
            f"The video's index promises {samples} samples; at most "
            f"{limits.video_samples} are allowed. Export it again, one minute long at most.",
            limit=limits.video_samples,
            value=samples,
        )


def mp4_apertures(path: Path) -> dict[int, Aperture]:
    """The clean aperture of each video track that has one, by the track's number (ISO/IEC 14496-12, 12.1.4).

    FFmpeg reads it and leaves the cropping to its caller, to whom PyAV does not pass it on.
    """
    found: dict[int, Aperture] = {}
    track = 0
    with path.open("rb") as file:
        for kind, start, size in _boxes(file, 0, path.stat().st_size):
            if kind == b"tkhd":
                track = _number(file, start, size, 20 if _number(file, start, size, 0) >> 24 else 12)
            elif kind == b"stsd":
                for _, entry, length in islice(_boxes(file, start + 8, start + size), _ENTRIES_MAX):
                    for inner, at, bytes_in in _boxes(file, entry + _VISUAL_ENTRY_BYTES, entry + length):
                        aperture = _aperture(file, entry, at) if (inner, bytes_in) == (b"clap", 32) else None
                        if aperture is not None:
                            found[track] = aperture
    return found


def _aperture(file: BinaryIO, entry: int, clap: int) -> Aperture | None:
    """The part of the image of a sample entry that a `clap` box names; None where it is not in the image."""
    file.seek(entry + 24)
    coded = struct.unpack(">HH", file.read(4))
    file.seek(clap)
    width, width_by, height, height_by, right, right_by, down, down_by = struct.unpack(">IIIIiIiI", file.read(32))
    if 0 in (width_by, height_by, right_by, down_by):
        return None
    size = width // width_by, height // height_by
    corner = [
        math.floor((whole - part) / 2 + offset)
        for whole, part, offset in zip(coded, size, (right / right_by, down / down_by), strict=True)
    ]
    fits = all(at >= 0 and part > 0 and at + part <= whole for at, part, whole in zip(corner, size, coded, strict=True))
    return Aperture(corner[0], corner[1], size[0], size[1]) if fits else None


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and size of the contents of every box, containers before what lies in them; ends where one is damaged."""
    ends = [end]
    at = start
    for _ in range(_BOXES_MAX):
        while ends and at + 8 > ends[-1]:
            at = max(at, ends.pop())
        if not ends:
            return
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            return
        size, kind = struct.unpack_from(">I4s", head)
        begins = at + 8
        if size == 1 and len(head) == 16:
            (size,) = struct.unpack_from(">Q", head, 8)
            begins += 8
        stops = ends[-1] if size == 0 else min(at + size, ends[-1])
        if stops < begins:
            at = ends.pop()  # FFmpeg leaves the container, too
            continue
        yield kind, begins, stops - begins
        inner: int | None = begins if kind in _CONTAINERS else None
        if kind == b"meta":  # with a version before its boxes, or without: FFmpeg looks for the first one that counts
            handler = _found(file, _HANDLER.match, begins, stops)
            inner = None if handler is None else handler - 4
        if inner is not None and inner >= begins and len(ends) < _DEPTH_MAX:
            ends.append(stops)
            at = inner
        else:
            at = stops
    raise AvatarTooLarge(f"The video has more than {_BOXES_MAX} boxes; export it again as MP4.", limit=_BOXES_MAX)


def _found(file: BinaryIO, look: Callable[[bytes], re.Match[bytes] | None], start: int, end: int) -> int | None:
    """Where the name of four bytes stands that `look` finds first between `start` and `end`; None where it finds none."""
    for at in range(start, end, _SCAN_BYTES):
        file.seek(at)
        seen = look(file.read(min(_SCAN_BYTES + 3, end - at)))
        if seen is not None:
            return at + seen.end() - 4
    return None


def _count(file: BinaryIO, kind: bytes, start: int, size: int, track: _TrackCounts, limits: AvatarLimits) -> None:
    if kind == b"hdlr":
        handler = _number(file, start, size, 8).to_bytes(4, "big")
        if handler in (b"soun", b"vide"):  # QuickTime has others in the same track
            track.sound = handler == b"soun"
    elif kind == b"stsz":
        each, count = _number(file, start, size, 4), _number(file, start, size, 8)
        track.samples, track.one_size = track.samples + count, each != 0
    elif kind == b"stz2":
        track.samples += _number(file, start, size, 8)
    elif kind == b"stts":
        rows = _table(file, start, size, 2, limits)
        track.timed += int(rows[:, 0].sum())
        track.one_duration = len(rows) == 1 and rows[0, 1] == 1
    elif kind == b"ctts":
        track.shifted += int(_table(file, start, size, 2, limits)[:, 0].sum())
    elif kind == b"stsc":
        track.runs = _table(file, start, size, 3, limits)
    elif kind in (b"stco", b"co64"):
        track.chunks += _number(file, start, size, 4)
    elif kind == b"elst":
        track.edits += _number(file, start, size, 4)


def _table(file: BinaryIO, start: int, size: int, columns: int, limits: AvatarLimits) -> NDArray[np.int64]:
    """A table `[rows, columns]`: as many rows as it says, and as there are bytes for."""
    rows = min(_number(file, start, size, 4), max(0, size - 8) // (4 * columns))
    if rows > limits.video_samples:
        raise AvatarTooLarge(
            f"The video's index has a table of {rows} rows; at most {limits.video_samples} are allowed.",
            limit=limits.video_samples,
            value=rows,
        )
    file.seek(start + 8)
    data = file.read(rows * columns * 4)
    return np.frombuffer(data[: len(data) // (4 * columns) * 4 * columns], ">u4").reshape(-1, columns).astype(np.int64)


def _number(file: BinaryIO, start: int, size: int, offset: int) -> int:
    """The 32-bit number at `offset` of a box; 0 where the box is too short."""
    if size < offset + 4:
        return 0
    file.seek(start + offset)
    return int.from_bytes(file.read(4), "big")


_SEGMENT, _TRACKS, _TRACK, _VIDEO, _CLUSTER = 0x18538067, 0x1654AE6B, 0xAE, 0xE0, 0x1F43B675
_PARENTS = frozenset({_SEGMENT, _TRACKS, _TRACK, _VIDEO})
_WIDTH, _HEIGHT, _BOTTOM, _TOP, _LEFT, _RIGHT = 0xB0, 0xBA, 0x54AA, 0x54BB, 0x54CC, 0x54DD
_NUMBERS = frozenset({_WIDTH, _HEIGHT, _BOTTOM, _TOP, _LEFT, _RIGHT})
_ELEMENTS_MAX = 10_000


def matroska_aperture(path: Path) -> Aperture | None:
    """The part of the images that is shown; None for all of it, or where the file has not exactly one video track."""
    found: list[dict[int, int]] = []
    with path.open("rb") as file:
        for name, start, size in _elements(file, path.stat().st_size):
            if name == _VIDEO:
                found.append({})
            elif name in _NUMBERS and found and size <= 8:
                file.seek(start)
                found[-1][name] = int.from_bytes(file.read(size), "big")
    if len(found) != 1:
        return None
    left, top, right, bottom, width, height = (
        found[0].get(name, 0) for name in (_LEFT, _TOP, _RIGHT, _BOTTOM, _WIDTH, _HEIGHT)
    )
    shown = Aperture(left, top, width - left - right, height - top - bottom)
    return shown if any((left, top, right, bottom)) and min(shown.width, shown.height) > 0 else None


def _elements(file: BinaryIO, end: int) -> Iterator[tuple[int, int, int]]:
    """Name, start and size of the contents of the elements before the first cluster; parents before what lies in them."""
    at = 0
    for _ in range(_ELEMENTS_MAX):
        file.seek(at)
        head = file.read(12)
        name, used = _variable(head, keeps_marker=True)
        size, more = _variable(head[used:], keeps_marker=False)
        if not used or not more or name == _CLUSTER:
            return
        at += used + more
        yield name, at, size
        if name not in _PARENTS:
            at += size
        if at >= end:
            return


def _variable(data: bytes, *, keeps_marker: bool) -> tuple[int, int]:
    """A number of variable length (RFC 8794, section 4) and its bytes; 0 bytes where there is none."""
    length = 9 - data[0].bit_length() if data and data[0] else 0
    if not length or len(data) < length:
        return 0, 0
    value = int.from_bytes(data[:length], "big")
    return (value if keeps_marker else value & (1 << 7 * length) - 1), length

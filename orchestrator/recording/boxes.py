"""The boxes of fragmented MP4 (ISO/IEC 14496-12), as far as joining needs them: read, and a few numbers written over."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_HEAD = 8
_U32, _U64 = struct.Struct(">I"), struct.Struct(">Q")
_CONTAINERS = frozenset({b"moov", b"trak", b"mdia", b"moof", b"traf"})
_DURATION, _SIZES, _DATA_OFFSET, _FIRST_FLAGS = 0x100, 0x200, 0x1, 0x4


class BadFilm(ValueError):
    """These bytes are not what an agent's encoder writes."""


@dataclass(frozen=True, slots=True)
class Mp4Box:
    """A box: its type, and where its content begins and ends."""

    kind: bytes
    begin: int
    end: int


def boxes(data: bytes | bytearray, begin: int = 0, end: int | None = None) -> Iterator[Mp4Box]:
    """The boxes of `data[begin:end]`, those inside of containers after the container. Raises BadFilm."""
    end = len(data) if end is None else end
    while begin < end:
        if end - begin < _HEAD:
            raise BadFilm(f"{end - begin} bytes are no box")
        size = _U32.unpack_from(data, begin)[0]
        box = Mp4Box(bytes(data[begin + 4 : begin + _HEAD]), begin + _HEAD, begin + size)
        if size < _HEAD or box.end > end:
            raise BadFilm(f"a box {box.kind!r} of {size} bytes")
        yield box
        if box.kind in _CONTAINERS:
            yield from boxes(data, box.begin, box.end)
        begin = box.end


@dataclass(frozen=True, slots=True)
class Tracks:
    """Of a film's two tracks: their ids, and ticks a second."""

    video: int
    audio: int
    video_scale: int
    audio_scale: int


def read_header(header: bytes) -> Tracks:
    """The tracks of a header (`ftyp` and `moov`). Raises BadFilm when they are not one of H.264 and one of AAC."""
    found: dict[bytes, tuple[int, int]] = {}
    track = scale = 0
    try:
        for box in boxes(header):
            if box.kind == b"tkhd":
                version = header[box.begin]
                track = _U32.unpack_from(header, box.begin + (20 if version else 12))[0]
            elif box.kind == b"mdhd":
                version = header[box.begin]
                scale = _U32.unpack_from(header, box.begin + (20 if version else 12))[0]
            elif box.kind == b"hdlr":
                found[bytes(header[box.begin + 8 : box.begin + 12])] = track, scale
        (video, video_scale), (audio, audio_scale) = found[b"vide"], found[b"soun"]
    except (struct.error, KeyError, IndexError) as error:
        raise BadFilm(f"a header without the tracks of a film ({error!r})") from error
    return Tracks(video, audio, video_scale, audio_scale)


@dataclass(frozen=True, slots=True)
class Run:
    """One track's samples in a fragment: where their time stands in its bytes, that time, and how long they last (ticks)."""

    track: int
    offset: int
    at: int
    lasts: int


def read_fragment(fragment: bytes | bytearray) -> tuple[int, list[Run]]:
    """Where a fragment's sequence number stands, and the runs of its tracks. Raises BadFilm."""
    sequence, runs = -1, []
    track = default = offset = at = 0
    try:
        for box in boxes(fragment):
            if box.kind == b"mfhd":
                sequence = box.begin + 4
            elif box.kind == b"tfhd":
                track, default = _track_header(fragment, box.begin)
            elif box.kind == b"tfdt":
                if fragment[box.begin] != 1:
                    raise BadFilm("a time of 32 bits")
                offset, at = box.begin + 4, _U64.unpack_from(fragment, box.begin + 4)[0]
            elif box.kind == b"trun":
                runs.append(Run(track, offset, at, _lasts(fragment, box.begin, default)))
    except struct.error as error:
        raise BadFilm(f"a fragment that ends too early ({error})") from error
    if sequence < 0 or not runs:
        raise BadFilm("a fragment without samples")
    return sequence, runs


def _track_header(data: bytes | bytearray, begin: int) -> tuple[int, int]:
    """A track's id, and how long its samples last by default."""
    flags = _U32.unpack_from(data, begin)[0] & 0xFFFFFF
    at = begin + 8 + (8 if flags & 0x1 else 0) + (4 if flags & 0x2 else 0)
    return _U32.unpack_from(data, begin + 4)[0], _U32.unpack_from(data, at)[0] if flags & 0x8 else 0


def _lasts(data: bytes | bytearray, begin: int, default: int) -> int:
    """How long the samples of a `trun` last together."""
    flags, count = _U32.unpack_from(data, begin)[0] & 0xFFFFFF, _U32.unpack_from(data, begin + 4)[0]
    if not flags & _DURATION:
        return int(count) * default
    first = begin + 8 + (4 if flags & _DATA_OFFSET else 0) + (4 if flags & _FIRST_FLAGS else 0)
    step = 4 * (flags & 0xF00).bit_count()
    if count * step > len(data) - first:
        raise BadFilm(f"{count} samples in {len(data)} bytes")
    return sum(int(_U32.unpack_from(data, first + index * step)[0]) for index in range(count))


def write_u32(data: bytearray, offset: int, value: int) -> None:
    """Writes a number over what stands there."""
    _U32.pack_into(data, offset, value & 0xFFFFFFFF)


def write_u64(data: bytearray, offset: int, value: int) -> None:
    """Writes a number over what stands there."""
    _U64.pack_into(data, offset, value)


def make_box(kind: bytes, *parts: bytes) -> bytes:
    """A box with that content."""
    content = b"".join(parts)
    return _U32.pack(_HEAD + len(content)) + kind + content


def make_fragment(sequence: int, track: int, at: int, samples: Sequence[bytes], lasts: int) -> bytes:
    """A fragment of samples of one track that begin at `at` and last `lasts` ticks each."""
    u32 = _U32.pack
    header = make_box(b"mfhd", u32(0), u32(sequence))
    run_head = make_box(b"tfhd", u32(0x020008), u32(track), u32(lasts))
    time = make_box(b"tfdt", u32(1 << 24), _U64.pack(at))
    before = _HEAD + len(header) + _HEAD + len(run_head) + len(time) + _HEAD + 12 + 4 * len(samples)
    sizes = b"".join(u32(len(sample)) for sample in samples)
    run = make_box(b"trun", u32(_DATA_OFFSET | _SIZES), u32(len(samples)), u32(before + _HEAD), sizes)
    moof = make_box(b"moof", header, make_box(b"traf", run_head, time, run))
    return moof + make_box(b"mdat", *samples)

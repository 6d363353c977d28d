"""MP4 files of a few hundred bytes whose index promises far more than they hold."""

from __future__ import annotations

import struct

_MATRIX = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
_AVCC = bytes.fromhex("01640015ffe1001b67640015acd94141fb016a020202800000030080000019078b16cb01000668ebe3cb22c0")


def box(kind: bytes, *body: bytes) -> bytes:
    """A box of ISO/IEC 14496-12."""
    data = b"".join(body)
    return struct.pack(">I4s", 8 + len(data), kind) + data


def full(kind: bytes, *body: bytes, flags: int = 0) -> bytes:
    """A box with version 0 and flags."""
    return box(kind, struct.pack(">I", flags), *body)


def track(
    samples: int = 1,
    *,
    timed: int | None = None,
    shifted: int = 0,
    edits: int = 0,
    sound: bool = False,
    in_chunk: int | None = None,
) -> bytes:
    """A `trak` of 320×240 H.264, or of PCM, that promises `samples` samples of a byte each.

    `timed` and `shifted` are the sums of its tables of durations and offsets, `in_chunk` the samples of its one chunk.
    """
    handler = b"soun" if sound else b"vide"
    header = full(
        b"tkhd",
        struct.pack(">IIIII", 0, 0, 1, 0, 1000),
        bytes(16),
        _MATRIX,
        struct.pack(">II", 320 << 16, 240 << 16),
        flags=3,
    )
    if sound:
        entry = box(b"sowt", bytes(6), struct.pack(">HII", 1, 0, 0), struct.pack(">HHHHI", 1, 16, 0, 0, 48_000 << 16))
    else:
        head = bytes(6) + struct.pack(">H", 1) + bytes(16) + struct.pack(">HHII", 320, 240, 0x480000, 0x480000)
        entry = box(
            b"avc1", head, bytes(4), struct.pack(">H", 1), bytes(32), struct.pack(">Hh", 24, -1), box(b"avcC", _AVCC)
        )
    table = [
        full(b"stsd", struct.pack(">I", 1), entry),
        full(b"stts", struct.pack(">III", 1, samples if timed is None else timed, 1)),
        full(b"stsc", struct.pack(">IIII", 1, 1, samples if in_chunk is None else in_chunk, 1)),
        full(b"stsz", struct.pack(">II", 1, samples)),
        full(b"stco", struct.pack(">II", 1, 40)),
    ]
    if shifted:
        table.append(full(b"ctts", struct.pack(">III", 1, shifted, 1)))
    media = box(
        b"mdia",
        full(b"mdhd", struct.pack(">IIIIHH", 0, 0, 1000, 1000, 0x55C4, 0)),
        full(b"hdlr", struct.pack(">I4s", 0, handler), bytes(13)),
        box(
            b"minf",
            full(b"smhd", bytes(4)) if sound else full(b"vmhd", bytes(8), flags=1),
            box(b"dinf", full(b"dref", struct.pack(">I", 1), full(b"url ", flags=1))),
            box(b"stbl", *table),
        ),
    )
    if not edits:
        return box(b"trak", header, media)
    rows = struct.pack(">IIHH", 1000, 0, 1, 0) * edits
    return box(b"trak", header, box(b"edts", full(b"elst", struct.pack(">I", edits), rows)), media)


def movie(*tracks: bytes, behind: bytes = b"") -> bytes:
    """An MP4 of these tracks; `behind` follows the index."""
    header = full(
        b"mvhd",
        struct.pack(">IIIIIHH", 0, 0, 1000, 1000, 0x10000, 0x100, 0),
        bytes(8),
        _MATRIX,
        bytes(24),
        struct.pack(">I", len(tracks) + 1),
    )
    start = box(b"ftyp", b"isom", struct.pack(">I", 512), b"isomavc1") + box(b"mdat", bytes(64))
    return start + box(b"moov", header, *tracks) + behind


def fragment(samples: int) -> bytes:
    """A `moof` whose run of samples takes no byte for each."""
    run = full(b"trun", struct.pack(">I", samples))
    header = full(b"tfhd", struct.pack(">III", 1, 1, 1), flags=0x18)
    return box(b"moof", full(b"mfhd", struct.pack(">I", 1)), box(b"traf", header, run))

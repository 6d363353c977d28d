"""The cropping of a Matroska or WebM file, which FFmpeg reads and leaves to its caller, to whom PyAV does not pass it on.

Elements are those of RFC 9559.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from musetalk_agent.avatars.upright import Aperture

_SEGMENT, _TRACKS, _TRACK, _VIDEO, _CLUSTER = 0x18538067, 0x1654AE6B, 0xAE, 0xE0, 0x1F43B675
_PARENTS = frozenset({_SEGMENT, _TRACKS, _TRACK, _VIDEO})
_WIDTH, _HEIGHT, _BOTTOM, _TOP, _LEFT, _RIGHT = 0xB0, 0xBA, 0x54AA, 0x54BB, 0x54CC, 0x54DD
_NUMBERS = frozenset({_WIDTH, _HEIGHT, _BOTTOM, _TOP, _LEFT, _RIGHT})
_ELEMENTS_MAX = 10_000


def cropping(path: Path) -> Aperture | None:
    """The part of the pictures that is shown; None for all of it, or where the file has not exactly one picture track."""
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

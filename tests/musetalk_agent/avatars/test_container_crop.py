"""The cropping of Matroska and WebM, from elements made here (RFC 9559, RFC 8794)."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.avatars.container_index import matroska_aperture
from musetalk_agent.avatars.frame_conversion import Aperture

SEGMENT, TRACKS, TRACK, VIDEO, CLUSTER = 0x18538067, 0x1654AE6B, 0xAE, 0xE0, 0x1F43B675
WIDTH, HEIGHT, BOTTOM, TOP, LEFT, RIGHT = 0xB0, 0xBA, 0x54AA, 0x54BB, 0x54CC, 0x54DD
VOID, UNKNOWN_SIZE = 0xEC, b"\x01\xff\xff\xff\xff\xff\xff\xff"


def number(value: int, length: int) -> bytes:
    """A size in `length` bytes, the marker in front."""
    return (value | 1 << 7 * length).to_bytes(length, "big")


def element(name: int, body: bytes, size_bytes: int = 2, size: bytes | None = None) -> bytes:
    """An element; its size takes `size_bytes`, or is `size` as it stands."""
    return name.to_bytes((name.bit_length() + 7) // 8, "big") + (size or number(len(body), size_bytes)) + body


def value(name: int, of: int, length: int = 2) -> bytes:
    """An element that is an unsigned number."""
    return element(name, of.to_bytes(length, "big"))


def picture_track(*cropped: bytes, size: tuple[int, int] = (640, 360)) -> bytes:
    """A track of pictures of `size`, with elements that crop it."""
    inner = value(WIDTH, size[0]) + value(HEIGHT, size[1]) + b"".join(cropped)
    return element(TRACK, element(0xD7, b"\x01") + element(VIDEO, inner))


def film(*tracks: bytes, behind: bytes = b"", size: bytes | None = None) -> bytes:
    """A file of these tracks; the segment's size may be unknown, as in a live recording."""
    head = element(0x1A45DFA3, element(0x4282, b"webm"))
    return head + element(SEGMENT, element(TRACKS, b"".join(tracks)) + behind, 8, size)


def read(folder: Path, data: bytes) -> Aperture | None:
    path = folder / "a.webm"
    path.write_bytes(data)
    return matroska_aperture(path)


SIDES = value(LEFT, 16), value(TOP, 8), value(RIGHT, 24), value(BOTTOM, 12)
SHOWN = Aperture(16, 8, 600, 340)


def test_all_four_sides_are_cut(tmp_path: Path) -> None:
    assert read(tmp_path, film(picture_track(*SIDES))) == SHOWN


@pytest.mark.parametrize("side", range(4))
def test_each_side_alone_is_cut_where_it_is(tmp_path: Path, side: int) -> None:
    expected = [
        Aperture(16, 0, 624, 360),
        Aperture(0, 8, 640, 352),
        Aperture(0, 0, 616, 360),
        Aperture(0, 0, 640, 348),
    ]
    assert read(tmp_path, film(picture_track(SIDES[side]))) == expected[side]


@pytest.mark.parametrize("length", [1, 2, 4, 8])
def test_numbers_may_take_any_length(tmp_path: Path, length: int) -> None:
    assert read(tmp_path, film(picture_track(value(LEFT, 16, length)))) == Aperture(16, 0, 624, 360)


def test_the_segment_of_a_live_recording_has_no_size(tmp_path: Path) -> None:
    assert read(tmp_path, film(picture_track(*SIDES), size=UNKNOWN_SIZE)) == SHOWN


def test_what_stands_between_is_passed_over(tmp_path: Path) -> None:
    sound = element(TRACK, element(0xE1, value(0xB5, 48_000, 4)))
    assert read(tmp_path, film(element(VOID, bytes(500)), sound, picture_track(*SIDES))) == SHOWN


def test_what_comes_after_the_first_cluster_is_not_read(tmp_path: Path) -> None:
    late = element(TRACKS, picture_track(value(LEFT, 99)))
    assert read(tmp_path, film(picture_track(*SIDES), behind=element(CLUSTER, b"") + late)) == SHOWN


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(film(picture_track()), id="nothing is cut"),
        pytest.param(film(picture_track(*[value(name, 0) for name in (LEFT, TOP, RIGHT, BOTTOM)])), id="cut by 0"),
        pytest.param(film(picture_track(*SIDES), picture_track()), id="two picture tracks"),
        pytest.param(film(), id="no track"),
        pytest.param(film(picture_track(value(LEFT, 400), value(RIGHT, 240))), id="nothing is left"),
        pytest.param(film(picture_track(value(TOP, 360))), id="no row is left"),
        pytest.param(film(picture_track(value(LEFT, 16, 9))), id="a number of nine bytes"),
        pytest.param(b"", id="an empty file"),
    ],
)
def test_where_nothing_can_be_cut_all_is_shown(tmp_path: Path, data: bytes) -> None:
    assert read(tmp_path, data) is None


WHOLE = film(picture_track(*SIDES), behind=element(CLUSTER, bytes(64)))


@given(cut=st.integers(0, len(WHOLE)))
def test_a_file_that_is_cut_short_has_the_cropping_or_none(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    found = read(tmp_path_factory.getbasetemp(), WHOLE[:cut])
    assert found is None or (found.width > 0 and found.height > 0)


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_damaged_elements_never_raise(tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]) -> None:
    data = bytearray(WHOLE)
    for place, byte in changes:
        data[place] = byte
    found = read(tmp_path_factory.getbasetemp(), bytes(data))
    assert found is None or min(found.width, found.height) > 0


def test_elements_that_never_come_to_an_end_are_given_up(tmp_path: Path) -> None:
    """A million empty elements before the track: none of them is refused, and the track is not reached."""
    assert read(tmp_path, film(element(VOID, b"", 1) * 20_000, picture_track(*SIDES))) is None

"""Boxes of MP4, whatever the bytes are: read as they were made, or refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.recording.boxes import (
    BadFilm,
    Mp4Box,
    boxes,
    make_box,
    make_fragment,
    read_fragment,
    read_header,
    write_u32,
    write_u64,
)
from tests.fakes.film_parts import part

PLAIN = st.sampled_from([b"mdat", b"free", b"tfdt", b"ftyp"])


@given(st.lists(st.tuples(PLAIN, st.binary(max_size=40)), max_size=6))
def test_boxes_are_found_in_order_with_their_content(made: list[tuple[bytes, bytes]]) -> None:
    data = b"".join(make_box(kind, content) for kind, content in made)
    assert [(box.kind, data[box.begin : box.end]) for box in boxes(data)] == made


def test_what_is_inside_of_a_container_comes_after_it() -> None:
    data = make_box(b"moof", make_box(b"traf", make_box(b"tfdt", b"time")), make_box(b"mfhd")) + make_box(b"mdat", b"x")
    assert [box.kind for box in boxes(data)] == [b"moof", b"traf", b"tfdt", b"mfhd", b"mdat"]
    assert list(boxes(data, 8, 8)) == []


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"1234567", "7 bytes are no box"),
        (b"\0\0\0\x07mdat", "of 7 bytes"),
        (b"\0\0\0\x20mdat", "of 32 bytes"),
        (make_box(b"moof", b"\0\0\0\x20traf"), "of 32 bytes"),
        (make_box(b"traf", b"1234"), "4 bytes are no box"),
    ],
)
def test_a_box_that_is_not_whole_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(BadFilm, match=why):
        list(boxes(data))


@given(st.binary(max_size=200))
def test_noise_is_refused_and_never_breaks_anything_else(data: bytes) -> None:
    for read in (lambda: list(boxes(data)), lambda: read_header(data), lambda: read_fragment(data)):
        try:
            read()
        except BadFilm as refused:
            assert str(refused)


@given(st.data())
def test_real_pieces_with_a_few_wrong_bytes_are_read_or_refused(data: st.DataObject) -> None:
    made = part()
    for piece, read in ((made.header, read_header), (made.fragments[3], read_fragment)):
        wrong = bytearray(piece)
        for _ in range(data.draw(st.integers(1, 4))):
            wrong[data.draw(st.integers(0, min(len(wrong), 400) - 1))] = data.draw(st.integers(0, 255))
        try:
            read(bytes(wrong[: data.draw(st.integers(0, len(wrong)))]))
        except BadFilm as refused:
            assert str(refused)


def test_a_header_of_one_track_is_no_film() -> None:
    header = part().header
    tracks = read_header(header)
    assert tracks.video != tracks.audio and tracks.audio_scale == 48_000
    with pytest.raises(BadFilm, match="without the tracks of a film"):
        read_header(header.replace(b"soun", b"text"))


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 9),
    st.integers(0, 2**63),
    st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=8),
    st.integers(1, 5000),
)
def test_a_fragment_is_read_as_it_was_made(
    sequence: int, track: int, at: int, samples: list[bytes], lasts: int
) -> None:
    data = make_fragment(sequence, track, at, samples, lasts)
    place, [run] = read_fragment(data)
    assert data[place : place + 4] == sequence.to_bytes(4, "big")
    assert (run.track, run.at, run.lasts) == (track, at, lasts * len(samples))
    assert data[run.offset : run.offset + 8] == at.to_bytes(8, "big")
    mdat = list(boxes(data))[-1]
    assert mdat.kind == b"mdat" and data[mdat.begin : mdat.end] == b"".join(samples)


def test_a_fragment_without_samples_or_with_more_than_it_holds_is_refused() -> None:
    with pytest.raises(BadFilm, match="without samples"):
        read_fragment(make_box(b"moof", make_box(b"mfhd", bytes(8))))
    with pytest.raises(BadFilm, match="without samples"):
        read_fragment(b"")
    count = (1 << 20).to_bytes(4, "big")
    run = make_box(b"trun", (0x100).to_bytes(4, "big"), count, bytes(8))
    with pytest.raises(BadFilm, match="1048576 samples in"):
        read_fragment(make_box(b"moof", make_box(b"mfhd", bytes(8)), make_box(b"traf", run)))
    with pytest.raises(BadFilm, match="a time of 32 bits"):
        read_fragment(make_box(b"moof", make_box(b"traf", make_box(b"tfdt", bytes(8)))))


@given(st.integers(0, 2**40))
def test_numbers_are_written_over_what_stands_there_and_nothing_else(value: int) -> None:
    data = bytearray(b"\xaa" * 20)
    write_u32(data, 2, value)
    write_u64(data, 8, value)
    assert data[2:6] == (value % 2**32).to_bytes(4, "big") and data[8:16] == value.to_bytes(8, "big")
    assert data[:2] == data[6:8] == b"\xaa\xaa" and data[16:] == b"\xaa" * 4


def test_a_box_is_its_kind_and_place() -> None:
    assert list(boxes(make_box(b"free", b"abc"))) == [Mp4Box(b"free", 8, 11)]

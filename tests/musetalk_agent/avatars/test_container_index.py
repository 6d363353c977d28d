"""The index of an MP4: which boxes are found, and what they promise, against trees made here and files that FFmpeg made."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.avatars.container_index import _boxes, check_index, mp4_apertures
from musetalk_agent.avatars.frame_conversion import Aperture
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.errors import AvatarError, AvatarTooLarge, AvatarUndecodable
from tests.musetalk_agent.avatars.clips import moving, video
from tests.musetalk_agent.avatars.hostile.mp4_boxes import box, fragment, full, movie, track

LIMITS = AvatarLimits()
FEW = replace(LIMITS, video_samples=1000)


@dataclass(frozen=True)
class Tree:
    """A box as it is written: its size in 32 bits, in 64, or left open to the end of what it lies in."""

    kind: bytes
    body: bytes = b""
    inner: list[Tree] = field(default_factory=list)
    size: str = "short"

    def written(self) -> bytes:
        body = self.body + b"".join(one.written() for one in self.inner)
        if self.size == "long":
            return struct.pack(">I4sQ", 1, self.kind, 16 + len(body)) + body
        return struct.pack(">I4s", 0 if self.size == "open" else 8 + len(body), self.kind) + body

    def listed(self) -> list[tuple[bytes, int]]:
        """Kinds and sizes of contents, each before what lies in it."""
        body = self.body + b"".join(one.written() for one in self.inner)
        return [(self.kind, len(body)), *(pair for one in self.inner for pair in one.listed())]


SIZES = st.sampled_from(["short", "long"])
LEAVES = st.builds(Tree, st.sampled_from([b"free", b"stsd", b"mdat", b"tkhd"]), st.binary(max_size=20), size=SIZES)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.builds(
        Tree, st.sampled_from([b"moov", b"trak", b"stbl"]), st.just(b""), st.lists(inner, max_size=4), SIZES
    ),
    max_leaves=12,
)


@given(st.lists(TREES, max_size=4), st.booleans())
def test_every_box_is_found_once_before_what_lies_in_it(trees: list[Tree], last_is_open: bool) -> None:
    if trees and last_is_open:
        trees[-1] = replace(trees[-1], size="open")
    data = b"".join(tree.written() for tree in trees)
    found = [(kind, size) for kind, _, size in _boxes(io.BytesIO(data), 0, len(data))]
    assert found == [pair for tree in trees for pair in tree.listed()]


@given(
    st.lists(TREES, min_size=1, max_size=3), st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=6)
)
def test_damaged_boxes_lie_in_the_file_and_come_to_an_end(trees: list[Tree], changes: list[tuple[float, int]]) -> None:
    data = bytearray(b"".join(tree.written() for tree in trees))
    for place, value in changes:
        data[int(place * len(data))] = value
    before = -1
    for _, start, size in _boxes(io.BytesIO(bytes(data)), 0, len(data)):
        assert before < start and size >= 0 and start + size <= len(data)
        before = start


def within(outer: Sequence[bytes], inner: bytes) -> bytes:
    """A box in others, the first of `outer` around all."""
    for kind in reversed(outer):
        inner = box(kind, inner)
    return inner


def test_boxes_within_boxes_end_at_a_depth() -> None:
    data = within([b"moov"] * 40, b"")
    assert len(list(_boxes(io.BytesIO(data), 0, len(data)))) == 12


def indexed(data: bytes) -> int:
    """As many samples as FFmpeg lists of a file's first track; 0 where it finds none."""
    try:
        with av.open(io.BytesIO(data)) as container:
            return max((len(stream.index_entries) for stream in container.streams), default=0)
    except av.error.InvalidDataError:
        return 0


PARTS = track(1001)[8:]
HEADER = PARTS[: int.from_bytes(PARTS[:4], "big")]
HIDING = [
    b"dinf",
    b"edts",
    b"ilst",
    b"meta",
    b"moof",
    b"mvex",
    b"schi",
    b"sinf",
    b"tref",
    b"udta",
    b"wave",
    b"gmhd",
    b"mfra",
]


@pytest.mark.parametrize("kind", HIDING)
@pytest.mark.parametrize("times", [1, 3, 6])
def test_no_box_hides_from_the_count_what_ffmpeg_finds_in_it(tmp_path: Path, kind: bytes, times: int) -> None:
    """The tables of a track within other boxes: where FFmpeg lists 1001 samples, so many are counted."""
    data = movie(box(b"trak", HEADER, within([kind] * times, PARTS[len(HEADER) :])))
    counted = checked(tmp_path, data)
    assert counted == 1001 if indexed(data) else counted in (None, 1001)


@pytest.mark.parametrize("before", [0, 1, 4, 65_533, 65_536])
def test_a_meta_box_is_read_from_its_handler_on_wherever_that_stands(tmp_path: Path, before: int) -> None:
    """FFmpeg looks at every fourth byte of it; another place of these letters is none."""
    rest = bytes(before // 4 * 4) + b"\0hdlr\0\0\0" * (before % 4) + full(b"hdlr", bytes(20)) + PARTS[len(HEADER) :]
    data = movie(box(b"trak", HEADER, box(b"meta", rest)))
    assert indexed(data) == 1001
    assert checked(tmp_path, data) == 1001


@pytest.mark.parametrize("depth", range(1, 8))
def test_no_depth_hides_a_track(tmp_path: Path, depth: int) -> None:
    data = movie(within([b"moov"] * depth, track(1001)))
    assert checked(tmp_path, data) == 1001 or not indexed(data)


def test_a_table_in_a_sample_entry_is_refused(tmp_path: Path) -> None:
    """FFmpeg reads the boxes behind a sample entry as it reads any others."""
    table = full(b"stsz", struct.pack(">II", 1, 2**31))
    entry = box(b"avc1", bytes(78), table)
    data = movie(box(b"trak", full(b"stsd", struct.pack(">I", 1), entry)))
    with pytest.raises(AvatarUndecodable, match="a table lies in another"):
        checked(tmp_path, data)


@pytest.mark.parametrize("version", [b"", bytes(4)], ids=["as QuickTime has it", "as MP4 has it"])
def test_what_an_honest_file_says_of_itself_is_not_counted(tmp_path: Path, version: bytes) -> None:
    handler = full(b"hdlr", bytes(4), b"mdir", bytes(13))
    name = box(b"\xa9nam", box(b"data", struct.pack(">II", 1, 0), b"stsz and trak" * 9))
    reported = box(b"udta", box(b"meta", version, handler, box(b"ilst", name)), bytes(4))
    assert checked(tmp_path, movie(track(1000), reported)) is None


def test_more_boxes_than_any_camera_writes_are_refused() -> None:
    data = box(b"free") * 100_001
    with pytest.raises(AvatarTooLarge, match="100000 boxes") as caught:
        list(_boxes(io.BytesIO(data), 0, len(data)))
    assert caught.value.limit == 100_000


def checked(folder: Path, data: bytes, limits: AvatarLimits = FEW) -> int | None:
    """None where the index passes, else the number of samples that it is refused for."""
    path = folder / "a.mp4"
    path.write_bytes(data)
    try:
        check_index(path, limits)
    except AvatarTooLarge as error:
        assert error.limit == limits.video_samples and str(error.value) in error.detail
        assert isinstance(error.value, int)
        return error.value
    return None


@pytest.mark.parametrize(
    ("data", "promised"),
    [
        pytest.param(movie(track(1000)), None, id="at the limit"),
        pytest.param(movie(track(1001)), 1001, id="one more"),
        pytest.param(movie(track(600), track(401)), 1001, id="two tracks together"),
        pytest.param(movie(track(1, timed=1001)), 1001, id="durations"),
        pytest.param(movie(track(1, shifted=1001)), 1001, id="offsets"),
        pytest.param(movie(track(10, timed=500, shifted=1200)), 1200, id="the most of the three"),
        pytest.param(movie(track(500, edits=1)), None, id="one edit"),
        pytest.param(movie(track(500, edits=3)), 1500, id="each edit once more"),
        pytest.param(movie(track(400), behind=fragment(601)), 1001, id="fragments"),
        pytest.param(movie(track(1, timed=2**32 - 1)), 2**32 - 1, id="four milliards"),
        pytest.param(movie(track(2**32 - 1, edits=9)), 9 * (2**32 - 1), id="more than 32 bits hold"),
    ],
)
def test_what_an_index_promises_is_added_up(tmp_path: Path, data: bytes, promised: int | None) -> None:
    assert checked(tmp_path, data) == promised


@pytest.mark.parametrize(("seconds", "samples"), [(10, None), (60, None)], ids=["ten seconds", "a minute"])
def test_pcm_counts_by_the_piece_though_it_has_a_sample_for_each_tick(
    tmp_path: Path, seconds: int, samples: int | None
) -> None:
    sound = track(48_000 * seconds, sound=True)
    assert checked(tmp_path, movie(track(100), sound), replace(LIMITS, video_samples=4000)) == samples


def test_pcm_of_more_than_the_longest_clip_is_refused(tmp_path: Path) -> None:
    samples = 192_000 * 60 + 1
    assert checked(tmp_path, movie(track(samples, sound=True)), LIMITS) == samples


def test_a_chunk_that_claims_more_than_its_track_is_counted(tmp_path: Path) -> None:
    data = movie(track(1, sound=True, in_chunk=2**31))
    assert checked(tmp_path, data) == 2**31 // 1024 + 1


def test_a_table_of_more_rows_than_allowed_is_refused_before_it_is_read(tmp_path: Path) -> None:
    table = full(b"stts", struct.pack(">I", 1001), struct.pack(">II", 1, 1) * 1001)
    with pytest.raises(AvatarTooLarge, match="table of 1001 rows"):
        (tmp_path / "a.mp4").write_bytes(movie(box(b"trak", table)))
        check_index(tmp_path / "a.mp4", FEW)


def test_a_table_that_promises_more_rows_than_it_has_counts_those_it_has(tmp_path: Path) -> None:
    table = full(b"stts", struct.pack(">I", 2**32 - 1), struct.pack(">II", 300, 1) * 4)
    assert checked(tmp_path, movie(box(b"trak", table))) == 1200


def test_too_many_tracks_are_named_by_their_limit(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(movie(*[track()] * 33))
    with pytest.raises(AvatarTooLarge, match="more than 32 tracks") as caught:
        check_index(tmp_path / "a.mp4", LIMITS)
    assert caught.value.limit == 32
    assert checked(tmp_path, movie(*[track()] * 32)) is None


@pytest.mark.parametrize(
    ("data", "reported"),
    [
        pytest.param(box(b"ftyp", b"isom", bytes(4)) + box(b"mdat", bytes(99)), "ends before its index", id="none"),
        pytest.param(b"", "ends before its index", id="an empty file"),
        pytest.param(movie(box(b"cmov", bytes(20))), "index is packed", id="packed"),
    ],
)
def test_without_an_index_that_can_be_read_it_is_said_why(tmp_path: Path, data: bytes, reported: str) -> None:
    with pytest.raises(AvatarUndecodable, match=reported):
        checked(tmp_path, data)


def _fragmented(pictures: int) -> bytes:
    out = io.BytesIO()
    options = {"movflags": "frag_keyframe+empty_moov"}
    with av.open(out, "w", format="mp4", options=options) as file:
        stream = file.add_stream("libx264", rate=25, options={"g": "4"})
        stream.width, stream.height, stream.pix_fmt = 96, 96, "yuv420p"
        for picture in moving(pictures, 96):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        file.mux(stream.encode(None))
    return out.getvalue()


HONEST: dict[str, Callable[[], bytes]] = {
    "h264, frames out of order": lambda: video(moving(13, 96)),
    "a variable rate": lambda: video(moving(6, 96), times_ms=[0, 40, 50, 300, 310, 1000]),
    "mpeg-4 in quicktime": lambda: video(moving(7, 96), container="mov", codec="mpeg4"),
    "fragments": lambda: _fragmented(11),
}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_file_counts_as_many_samples_as_ffmpeg_reads(tmp_path: Path, name: str) -> None:
    """Exactly: it passes at that limit, and not at one less."""
    data = HONEST[name]()
    with av.open(io.BytesIO(data)) as container:
        read = sum(packet.size > 0 for packet in container.demux(video=0))
        listed = max(read, len(container.streams.video[0].index_entries))
    assert read >= 6
    assert checked(tmp_path, data, replace(LIMITS, video_samples=listed)) is None
    assert checked(tmp_path, data, replace(LIMITS, video_samples=read - 1)) is not None


WHOLE = movie(track(7, shifted=7, edits=1), track(480, sound=True))


@given(st.lists(st.tuples(st.integers(32, len(WHOLE) - 1), st.integers(0, 255)), max_size=8), st.integers(0, 400))
def test_damaged_indexes_pass_or_are_refused_with_a_code(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], lost: int
) -> None:
    data = bytearray(WHOLE)
    for place, value in changes:
        data[place] = value
    path = tmp_path_factory.getbasetemp() / "damaged.mp4"
    path.write_bytes(data[: len(data) - lost])
    try:
        check_index(path, FEW)
        mp4_apertures(path)
    except AvatarError as error:
        assert error.code in ("avatar_too_large", "avatar_undecodable")


def clap(
    width: int, height: int, right: tuple[int, int] = (0, 1), down: tuple[int, int] = (0, 1), by: int = 1
) -> bytes:
    """A clean aperture box; offsets are from the middle."""
    return box(b"clap", struct.pack(">IIIIiIiI", width * by, by, height * by, by, *right, *down))


def with_aperture(aperture: bytes, number: int = 1, version: int = 0) -> bytes:
    """A movie with a track of 320×240 whose sample entry has an aperture."""
    times = 16 if version else 8
    header = box(b"tkhd", struct.pack(">I", version << 24), bytes(times), struct.pack(">I", number), bytes(60))
    entry = box(b"avc1", bytes(24), struct.pack(">HH", 320, 240), bytes(50), aperture)
    table = full(b"stsd", struct.pack(">I", 1), entry)
    return movie(box(b"trak", header, box(b"mdia", box(b"minf", box(b"stbl", table)))))


@pytest.mark.parametrize(
    ("aperture", "shown"),
    [
        (clap(320, 240), Aperture(0, 0, 320, 240)),
        (clap(300, 200), Aperture(10, 20, 300, 200)),
        (clap(300, 200, by=1001), Aperture(10, 20, 300, 200)),
        (clap(300, 200, right=(10, 1), down=(-20, 1)), Aperture(20, 0, 300, 200)),
        (clap(301, 199, right=(-1, 2), down=(1, 2)), Aperture(9, 21, 301, 199)),
        (clap(300, 200, right=(11, 1)), None),
        (clap(300, 200, down=(-21, 1)), None),
        (clap(321, 240), None),
        (clap(0, 240), None),
        (clap(300, 200, by=0), None),
        (clap(300, 200, right=(0, 0)), None),
        (clap(300, 200)[:-1] + b"", None),
    ],
)
def test_a_clean_aperture_is_where_the_standard_puts_it_and_in_the_picture(
    tmp_path: Path, aperture: bytes, shown: Aperture | None
) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(with_aperture(aperture))
    assert mp4_apertures(path) == ({} if shown is None else {1: shown})


@pytest.mark.parametrize("version", [0, 1])
def test_an_aperture_belongs_to_the_track_of_that_number(tmp_path: Path, version: int) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(with_aperture(clap(300, 200), number=7, version=version))
    assert mp4_apertures(path) == {7: Aperture(10, 20, 300, 200)}

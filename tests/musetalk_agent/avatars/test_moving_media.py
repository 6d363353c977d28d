"""Clips as people have them, made and read back: shape, order, speed, colours and orientation, or a refusal by name."""

from __future__ import annotations

import gc
import io
import re
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.avatars.media_probe import SNIFF_BYTES, VIDEOS, MediaKind, sniff
from musetalk_agent.avatars.video import open_clip
from musetalk_agent.errors import AvatarTooLarge, AvatarUndecodable
from musetalk_agent.media_types import Pixels

from .cards import BT601, BT709, BT2020, FULL, HLG, PQ, Film, card, cards, clap, packets, read, with_clap, woven

LIMITS = AvatarLimits()
LEVELS = 6
"""Of 256: by so much a colour may be off."""
COUNT = 5
HEVC_10 = Film(codec="libx265", pix_fmt="yuv420p10le", options={"x265-params": "log-level=none:crf=16"})
OPAQUE = np.full((120, 160), 255, np.uint8)


def hdr(transfer: int, **more: object) -> Film:
    return Film(**(vars(HEVC_10) | {"matrix": BT2020, "primaries": BT2020, "transfer": transfer} | more))


class Taken:
    """A clip as it is taken: the size it is shown at, its frames, and the codes of its warnings."""

    def __init__(self, folder: Path, data: bytes, fps: int = 25, size: tuple[int, int] | None = None) -> None:
        path = folder / "clip"
        path.write_bytes(data)
        kind = sniff(data[:SNIFF_BYTES])
        assert kind in VIDEOS
        with open_clip(path, kind, fps, LIMITS) as clip:
            self.size = clip.size
            self.frames: list[Pixels] = list(clip.frames(size or clip.size))
            self.warnings = dict(clip.warnings)
        self.readings = [read(frame) for frame in self.frames]

    @property
    def numbers(self) -> list[int]:
        return [reading.number for reading in self.readings]

    def check(self, size: tuple[int, int] = (160, 120), numbers: range | list[int] = range(COUNT)) -> None:
        """Asserts shape, order, colours and orientation."""
        assert self.size == size and {frame.shape for frame in self.frames} == {(size[1], size[0], 3)}
        assert self.numbers == list(numbers)
        assert max(reading.colour_error() for reading in self.readings) <= LEVELS
        assert max(reading.corner_error() for reading in self.readings) <= LEVELS
        assert not self.warnings


AS_THEY_ARE: dict[str, Film] = {
    "H.264": Film(),
    "H.264 without colour tags": Film(tagged=False),
    "H.264 in MOV": Film("mov"),
    "H.264 in AVI, whose frames have no times of their own": Film("avi", tagged=False),
    "H.264 in a transport stream": Film("mpegts"),
    "H.264 4:4:4": Film(pix_fmt="yuv444p"),
    "H.264 4:2:2 10 bit": Film(pix_fmt="yuv422p10le"),
    "H.265": Film(**(vars(HEVC_10) | {"pix_fmt": "yuv420p"})),
    "H.265 10 bit": HEVC_10,
    "VP8": Film("webm", "libvpx", tagged=False),
    "VP9": Film("webm", "libvpx-vp9"),
    "AV1": Film(codec="libsvtav1", options={"preset": "12", "crf": "20", "svtav1-params": "lp=1"}),
    "AV1 10 bit": Film(codec="libsvtav1", pix_fmt="yuv420p10le", options={"preset": "12", "crf": "20"}),
    "MPEG-1": Film("mpeg", "mpeg1video"),
    "MPEG-2": Film("mpeg", "mpeg2video"),
    "MPEG-4 in AVI": Film("avi", "mpeg4", tagged=False, options={"qscale": "2"}),
    "DivX 3 in AVI": Film("avi", "msmpeg4", tagged=False, options={"qscale": "2"}),
    "MJPEG in AVI": Film("avi", "mjpeg", "yuvj420p", range=FULL),
    "uncompressed AVI": Film("avi", "rawvideo", "bgr24", tagged=False),
    "ProRes": Film("mov", "prores_ks", "yuv422p10le"),
    "BT.709": Film(matrix=BT709),
    "BT.709, full range": Film(matrix=BT709, range=FULL),
    "BT.601, full range": Film(matrix=BT601, range=FULL),
    "BT.2020, SDR": hdr(14),
    "PQ": hdr(PQ),
    "HLG": hdr(HLG),
    "PQ, 4:4:4": hdr(PQ, pix_fmt="yuv444p10le"),
    "VP8 with alpha": Film("webm", "libvpx", "yuva420p", tagged=False, alpha=OPAQUE, options={"auto-alt-ref": "0"}),
    "VP9 with alpha": Film("webm", "libvpx-vp9", "yuva420p", alpha=OPAQUE),
    "VP9 with alpha, BT.709 in full range": Film(
        "webm", "libvpx-vp9", "yuva420p", alpha=OPAQUE, matrix=BT709, range=FULL
    ),
    "VP9 with alpha, BT.2020 without HDR": Film(
        "webm", "libvpx-vp9", "yuva420p", alpha=OPAQUE, matrix=BT2020, primaries=BT2020, transfer=14
    ),
    "ProRes 4444 with alpha, HLG": Film(
        "mov", "prores_ks", "yuva444p10le", alpha=OPAQUE, matrix=BT2020, primaries=BT2020, transfer=HLG
    ),
    "ProRes 4444 with alpha, PQ": Film(
        "mov", "prores_ks", "yuva444p10le", alpha=OPAQUE, matrix=BT2020, primaries=BT2020, transfer=PQ
    ),
    "ProRes 4444 with alpha": Film("mov", "prores_ks", "yuva444p10le", alpha=OPAQUE),
    "QuickTime Animation with alpha": Film("mov", "qtrle", "argb", tagged=False, alpha=OPAQUE),
    "PNG in MOV with alpha": Film("mov", "png", "rgba", tagged=False, alpha=OPAQUE),
}


@pytest.mark.parametrize("film", AS_THEY_ARE.values(), ids=AS_THEY_ARE)
def test_taken_as_they_are(tmp_path: Path, film: Film) -> None:
    Taken(tmp_path, film.of(cards(COUNT))).check()


MIRRORED = [(False, False), (True, False), (False, True), (True, True)]


def lying(picture: Pixels, quarters: int, hflip: bool, vflip: bool) -> Pixels:
    """How a picture is coded that a player turns counter-clockwise by so many quarters, and then mirrors."""
    flipped = picture[:: -1 if vflip else 1, :: -1 if hflip else 1]
    return np.ascontiguousarray(np.rot90(flipped, -quarters))


@pytest.mark.parametrize("container", ["mp4", "matroska"])
@pytest.mark.parametrize(("hflip", "vflip"), MIRRORED)
@pytest.mark.parametrize("quarters", range(4))
def test_turned_and_mirrored(tmp_path: Path, quarters: int, hflip: bool, vflip: bool, container: str) -> None:
    """What is coded lies as a camera held sideways, or looking at its owner, leaves it to the player."""
    film = Film(container, turn=90 * quarters, hflip=hflip, vflip=vflip)
    Taken(tmp_path, film.of([lying(picture, quarters, hflip, vflip) for picture in cards(COUNT)])).check()


@pytest.mark.parametrize("film", ["VP8 with alpha", "VP9 with alpha, BT.2020 without HDR", "ProRes 4444 with alpha"])
@pytest.mark.parametrize(("hflip", "vflip"), MIRRORED)
@pytest.mark.parametrize("quarters", range(4))
def test_turned_and_mirrored_with_alpha(tmp_path: Path, quarters: int, hflip: bool, vflip: bool, film: str) -> None:
    """The alpha is turned with its picture: what is transparent is a strip beside the card's blue corner."""
    alpha = OPAQUE.copy()
    alpha[96:112, 48:72] = 0
    made = Film(
        **vars(AS_THEY_ARE[film])
        | {"turn": 90 * quarters, "hflip": hflip, "vflip": vflip}
        | {"alpha": lying(alpha, quarters, hflip, vflip)}
    )
    taken = Taken(tmp_path, made.of([lying(picture, quarters, hflip, vflip) for picture in cards(COUNT)]))
    taken.check()
    for frame in taken.frames:
        assert (np.abs(frame[98:110, 50:70].astype(int) - 255) <= LEVELS).all()
        assert (frame[98:110, 80:115] < 200).all() and (frame[36:44] < 200).all()


def test_alpha_is_turned_also_where_the_first_picture_is_damaged(tmp_path: Path) -> None:
    film = Film(**vars(AS_THEY_ARE["VP9 with alpha"]) | {"turn": 90, "options": {"g": "5", "lag-in-frames": "0"}})
    data = bytearray(film.of([lying(picture, 1, False, False) for picture in cards(10)]))
    at = data.index(b"\x49\x83\x42")  # by which a picture that stands alone begins (VP9 bitstream, 6.2.1)
    data[at : at + 3] = bytes(3)
    taken = Taken(tmp_path, bytes(data))
    assert taken.numbers == list(range(5, 10)) and taken.size == (160, 120)
    assert set(taken.warnings) == {"video_damaged"}
    assert max(reading.corner_error() for reading in taken.readings) <= LEVELS


@pytest.mark.parametrize("film", [Film(), Film("avi", "mpeg4", tagged=False), Film("mov", "prores_ks", "yuv422p10le")])
@pytest.mark.parametrize("aspect", [Fraction(2, 5), Fraction(1, 2), Fraction(16, 15), Fraction(64, 45)])
def test_pixels_that_are_not_square(tmp_path: Path, film: Film, aspect: Fraction) -> None:
    """A player makes a side longer, and none shorter."""
    made = Film(**(vars(film) | {"sar": aspect}))
    Taken(tmp_path, made.of(cards(COUNT))).check(
        (round(160 * aspect), 120) if aspect > 1 else (160, round(120 / aspect))
    )


def test_pixels_that_are_not_square_in_webm(tmp_path: Path) -> None:
    """Matroska says at which size the pictures are shown."""
    shown = b"\x54\xb0\x82\x01\x40" + b"\x54\xba\x81\x78"  # DisplayWidth 320, DisplayHeight 120
    Taken(tmp_path, instead_of_colour(Film("webm", "libvpx-vp9").of(cards(COUNT)), shown)).check((320, 120))


def instead_of_colour(webm: bytes, elements: bytes) -> bytes:
    """The file with other elements of its video track in place of those that name its colours."""
    colour = webm.index(b"\x55\xb0")
    size = webm[colour + 2] & 0x7F
    void = b"\xec" + bytes([0x80 | (size + 3 - len(elements) - 2)])
    return webm[:colour] + (elements + void).ljust(size + 3, b"\0") + webm[colour + 3 + size :]


def test_the_cropping_of_webm_is_all_that_is_shown(tmp_path: Path) -> None:
    framed = [np.pad(picture, ((16, 8), (6, 12), (0, 0))) for picture in cards(COUNT)]
    crop = b"".join(bytes([0x54, name, 0x81, value]) for name, value in ((0xBB, 16), (0xAA, 8), (0xCC, 6), (0xDD, 12)))
    Taken(tmp_path, instead_of_colour(Film("webm", "libvpx-vp9", matrix=BT709).of(framed), crop)).check()


def test_pixels_that_are_not_square_of_a_picture_that_lies(tmp_path: Path) -> None:
    coded = [np.ascontiguousarray(np.rot90(picture, -1)) for picture in cards(COUNT, 160, 240)]
    Taken(tmp_path, Film(turn=90, sar=Fraction(2)).of(coded)).check((160, 480))


def test_dv_of_pal_is_interlaced_and_not_square(tmp_path: Path) -> None:
    Taken(tmp_path, Film("avi", "dvvideo", tagged=False).of(cards(COUNT, 720, 576))).check((768, 576))


@pytest.mark.parametrize(
    "film",
    [
        Film(options={"x264-params": "tff=1"}),
        Film("mpegts", options={"x264-params": "tff=1"}),
        Film("mov", "prores_ks", "yuv422p10le", prepare=lambda stream: _interlaced(stream)),
    ],
    ids=["MP4", "camcorder", "ProRes"],
)
def test_interlaced(tmp_path: Path, film: Film) -> None:
    """Each frame holds two moments, line by line; one is shown."""
    taken = Taken(tmp_path, film.of(woven(moving_bars())))
    assert len(taken.frames) == 6 and not taken.warnings
    for frame in taken.frames[1:]:
        lines = frame[32:88, :, 1].astype(int)
        assert np.abs(lines[1:-1] * 2 - lines[:-2] - lines[2:]).max() < 60


def moving_bars() -> list[Pixels]:
    """A bright bar that moves by 8 pixels from one field to the next."""
    pictures = []
    for k in range(12):
        picture = np.full((120, 160, 3), 60, np.uint8)
        picture[:, 16 + 8 * k : 40 + 8 * k] = 200
        pictures.append(picture)
    return pictures


def _interlaced(stream: VideoStream) -> None:
    stream.codec_context.flags |= 1 << 18 | 1 << 29  # AV_CODEC_FLAG_INTERLACED_DCT, _ME


@pytest.mark.parametrize("rate", [Fraction(12), Fraction(24000, 1001), Fraction(30), Fraction(60), Fraction(120)])
def test_rates(tmp_path: Path, rate: Fraction) -> None:
    """A second lasts a second at any rate: the frame shown at `k/25` is the newest one by then."""
    taken = Taken(tmp_path, Film(fps=rate).of(cards(30)))
    expected = [min(29, int(Fraction(k, 25) * rate)) for k in range(len(taken.frames))]
    assert taken.numbers == expected and abs(len(taken.frames) - 25 * 30 / rate) <= 1


def test_a_variable_rate(tmp_path: Path) -> None:
    taken = Taken(tmp_path, Film(times_ms=[0, 10, 100, 130, 400], tagged=False).of(cards(5)))
    assert taken.numbers[:11] == [0, 1, 1, 2, 3, 3, 3, 3, 3, 3, 4]


@pytest.mark.parametrize("size", [(161, 121), (97, 65), (130, 98)])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    Taken(tmp_path, Film("webm", "libvpx-vp9").of(cards(COUNT, *size))).check(size)


def test_a_clean_aperture_is_all_that_is_shown(tmp_path: Path) -> None:
    framed = []
    for picture in cards(COUNT):
        frame = np.full((160, 224, 3), 0, np.uint8)
        frame[16:136, 40:200] = picture  # its middle is 8 right of the frame's and 4 above it
        framed.append(frame)
    Taken(tmp_path, with_clap(Film().of(framed), clap(160, 120, 8, -4))).check()


def test_an_aperture_that_lies_elsewhere_is_no_aperture(tmp_path: Path) -> None:
    Taken(tmp_path, with_clap(Film().of(cards(COUNT)), clap(160, 120, 800, 0))).check()


def test_an_edit_list_begins_and_ends_the_clip(tmp_path: Path) -> None:
    """A clip that was trimmed on the phone holds what was cut away, too."""
    data = bytearray(Film(options={"bf": "0", "g": "30"}).of(cards(20)))
    at = data.index(b"elst") + 4
    (duration, start) = struct.unpack_from(">Ii", data, at + 8)
    assert (duration, start) == (800, 0)
    struct.pack_into(">Ii", data, at + 8, 400, 5 * 512)  # 10 frames from the sixth on
    Taken(tmp_path, bytes(data)).check(numbers=range(5, 15))


@pytest.mark.parametrize("size", [(80, 60), (120, 90), (320, 240)])
@pytest.mark.parametrize("film", ["H.264", "HLG", "VP9 with alpha"])
def test_scaled_while_they_are_decoded(tmp_path: Path, film: str, size: tuple[int, int]) -> None:
    taken = Taken(tmp_path, AS_THEY_ARE[film].of(cards(COUNT)), size=size)
    assert taken.size == (160, 120) and {frame.shape for frame in taken.frames} == {(size[1], size[0], 3)}
    assert max(reading.colour_error() for reading in taken.readings) <= LEVELS
    assert max(reading.corner_error() for reading in taken.readings) <= LEVELS


@pytest.mark.parametrize(
    "film", ["VP8 with alpha", "VP9 with alpha", "ProRes 4444 with alpha", "PNG in MOV with alpha"]
)
def test_what_lies_under_the_alpha_is_not_shown(tmp_path: Path, film: str) -> None:
    """The background is white, as behind pictures, and half of it where the alpha is half."""
    alpha = np.zeros((120, 160), np.uint8)
    alpha[20:100, 20:140] = 255
    alpha[20:100, 100:140] = 128
    green = card(0)
    green[alpha == 0] = (0, 255, 0)
    green[20:100, 100:140] = (40, 40, 40)
    made = Film(**(vars(AS_THEY_ARE[film]) | {"alpha": alpha}))
    for frame in Taken(tmp_path, made.of([green] * 3)).frames:
        assert (np.abs(frame[2:12, 2:-2].astype(int) - 255) <= LEVELS).all()
        assert np.abs(frame[40:80, 110:130].astype(float).mean((0, 1)) - 147).max() <= LEVELS
        assert read(frame).colour_error() <= LEVELS


@pytest.mark.parametrize(
    ("film", "form"),
    [
        ("H.264 4:4:4", "yuv444p"),
        ("H.264 4:2:2 10 bit", "yuv422p10le"),
        ("H.265 10 bit", "yuv420p10le"),
        ("AV1 10 bit", "yuv420p10le"),
        ("VP8 with alpha", "with alpha"),
        ("VP9 with alpha", "with alpha"),
    ],
)
def test_a_frame_that_takes_more_memory_than_usual_may_have_fewer_pixels(tmp_path: Path, film: str, form: str) -> None:
    path = tmp_path / "clip"
    path.write_bytes(AS_THEY_ARE[film].of(cards(2)))
    kind = sniff(path.read_bytes()[:SNIFF_BYTES])
    with open_clip(path, kind, 25, AvatarLimits(rich_pixels=160 * 120)) as clip:
        assert clip.size == (160, 120)
    allowed: list[int] = []
    with pytest.raises(AvatarTooLarge, match=f"160×120 .*{form}.*8 bits") as refused:
        with open_clip(path, kind, 25, AvatarLimits(rich_pixels=160 * 120 - 1), allowed.append):
            raise AssertionError("it is refused")
    assert (refused.value.limit, refused.value.value) == (160 * 120 - 1, 160 * 120)
    assert not allowed, "no memory is granted for it"


USUAL = ["H.264", "H.265", "VP8", "VP9", "AV1", "MPEG-2", "MPEG-4 in AVI"]
ALONE = ["MJPEG in AVI", "ProRes 4444 with alpha", "QuickTime Animation with alpha", "PNG in MOV with alpha"]


@pytest.mark.parametrize("film", [*USUAL, *ALONE])
def test_usual_frames_and_those_that_stand_alone_may_be_larger(tmp_path: Path, film: str) -> None:
    path = tmp_path / "clip"
    path.write_bytes(AS_THEY_ARE[film].of(cards(2)))
    with open_clip(path, sniff(path.read_bytes()[:SNIFF_BYTES]), 25, AvatarLimits(rich_pixels=1)) as clip:
        assert clip.size == (160, 120)


def test_odd_sides_are_no_finer_chroma(tmp_path: Path) -> None:
    path = tmp_path / "clip"
    path.write_bytes(Film("webm", "libvpx-vp9").of(cards(2, 161, 121)))
    with open_clip(path, MediaKind.WEBM, 25, AvatarLimits(rich_pixels=1)) as clip:
        assert clip.size == (161, 121)


def with_more_tracks(folder: Path) -> bytes:
    """An MP4 with the cover of an album before the film, and 70 s of sound beside it."""
    path = folder / "tracks.mp4"
    with av.open(str(path), "w") as file:
        cover = file.add_stream("mjpeg", rate=25)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        film = file.add_stream("libx264", rate=25)
        film.width, film.height, film.pix_fmt = 160, 120, "yuv420p"
        sound = file.add_stream("aac", rate=8_000, layout="mono")
        art = VideoFrame.from_ndarray(np.full((64, 64, 3), 200, np.uint8), format="bgr24")
        art.pts = 0
        file.mux([*cover.encode(art), *cover.encode(None)])
        for k, picture in enumerate(cards(COUNT)):
            frame = VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts, frame.time_base = k, Fraction(1, 25)
            file.mux(film.encode(frame))
        file.mux(film.encode(None))
        for k in range(70 * 8_000 // 1024):
            piece = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            piece.sample_rate, piece.pts = 8_000, k * 1024
            file.mux(sound.encode(piece))
        file.mux(sound.encode(None))
    return path.read_bytes()


def test_other_tracks_are_passed_over(tmp_path: Path) -> None:
    """Neither is the cover the film, nor does the length of the sound count."""
    Taken(tmp_path, with_more_tracks(tmp_path)).check()


def test_a_clip_that_changes_its_size_keeps_its_shape(tmp_path: Path) -> None:
    """Browsers record a call at the sizes that the network allows."""
    data = joined(cards(3, 320, 240), cards(6, 160, 120)[3:])
    taken = Taken(tmp_path, data)
    assert taken.size == (320, 240) and {frame.shape for frame in taken.frames} == {(240, 320, 3)}
    assert taken.numbers == list(range(6))


def test_a_clip_that_changes_its_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AvatarUndecodable, match=r"from 160×120 to 80×100 on the way") as refused:
        Taken(tmp_path, joined(cards(3, 160, 120), cards(3, 80, 100)))
    assert refused.value.value == "80x100"


def joined(first: list[Pixels], second: list[Pixels]) -> bytes:
    """Two MJPEG clips of different sizes as one AVI, which keeps the first one's header."""
    films = [Film("avi", "mjpeg", "yuvj420p", range=FULL).of(part) for part in (first, second)]
    chunks = [part[part.index(b"movi") + 4 : part.index(b"idx1")] for part in films]
    head = bytearray(films[0][: films[0].index(b"movi") + 4])
    struct.pack_into("<I", head, len(head) - 8, 4 + len(chunks[0]) + len(chunks[1]))
    whole = bytes(head) + chunks[0] + chunks[1]
    return whole[:4] + struct.pack("<I", len(whole) - 8) + whole[8:]


def index_first(data: bytes, folder: Path) -> bytes:
    """The same MP4 with its index before its pictures, as files for the web have it."""
    path = folder / "index-first.mp4"
    with av.open(io.BytesIO(data)) as source, av.open(str(path), "w", options={"movflags": "faststart"}) as target:
        stream = source.streams.video[0]
        copied = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.size:
                packet.stream = copied
                target.mux(packet)
    return path.read_bytes()


TWO_GROUPS = {"g": "10", "bf": "2", "sc_threshold": "0"}


@pytest.mark.parametrize(
    ("container", "share"),
    [("mp4", 0.6), ("mp4", 0.9), ("webm", 0.6), ("avi", 0.6), ("avi", 0.9), ("mpegts", 0.6), ("mpegts", 0.9)],
)
def test_a_file_that_is_cut_gives_its_frames_and_a_warning(tmp_path: Path, container: str, share: float) -> None:
    film = Film(container, "libvpx" if container == "webm" else "libx264", tagged=False, options=TWO_GROUPS)
    pictures = [np.ascontiguousarray(picture) for picture in cards(20, 320, 240)]
    data = film.of(pictures)
    if container == "mp4":
        data = index_first(data, tmp_path)
    start, end = packets(data)[0][0], sum(packets(data)[-1])
    taken = Taken(tmp_path, data[: start + round((end - start) * share)])
    assert (
        6 < len(taken.frames) < 20
        and taken.numbers == sorted(set(taken.numbers))
        and taken.numbers[:6] == list(range(6))
    )
    assert max(reading.corner_error() for reading in taken.readings) <= LEVELS
    if container == "mpegts":  # whose header promises nothing
        assert set(taken.warnings) <= {"video_cut_short", "video_damaged"}
    else:
        assert re.match(
            r"The video breaks off after 0\.\d s.*; send it again, whole", taken.warnings["video_cut_short"]
        )


def test_a_file_that_is_cut_before_its_index_is_refused(tmp_path: Path) -> None:
    data = Film().of(cards(20))
    with pytest.raises(AvatarUndecodable, match=r"ends before its index.*Send it again, whole"):
        Taken(tmp_path, data[: len(data) * 6 // 10])


@pytest.mark.parametrize(
    "film",
    [
        Film(options=TWO_GROUPS),
        Film("avi", tagged=False, options=TWO_GROUPS),
        Film(codec="libx265", options={"x265-params": "log-level=none:keyint=10:min-keyint=10:scenecut=0"}),
        Film("mov", "prores_ks", "yuv422p10le"),
    ],
    ids=["H.264", "AVI", "H.265", "ProRes"],
)
def test_frames_that_are_damaged_are_left_out(tmp_path: Path, film: Film) -> None:
    """What depends on the lost picture goes with it; whole frames come in their order, without a pause where it was."""
    data = bytearray(film.of(cards(20)))
    at, size = packets(bytes(data))[3]
    data[at : at + size] = bytes(size)
    taken = Taken(tmp_path, bytes(data))
    whole = taken.numbers
    assert whole == sorted(set(whole)) and {0, *range(11, 20)} <= set(whole) and len(whole) < 20
    assert max(reading.corner_error() for reading in taken.readings) <= LEVELS
    assert re.fullmatch(
        r"\d+ of \d+ frames of the video are damaged and were left out; export it again\.",
        taken.warnings["video_damaged"],
    )


def test_a_picture_that_is_damaged_within_is_not_shown(tmp_path: Path) -> None:
    """FFmpeg conceals what it cannot decode of a picture, and gives the rest."""
    film = Film(options=TWO_GROUPS | {"bf": "0", "crf": "12"})
    pictures = [_grained(picture, k) for k, picture in enumerate(cards(20))]
    data = bytearray(film.of(pictures))
    at, size = packets(bytes(data))[3]
    data[at + size // 3 : at + size // 2] = np.random.default_rng(5).bytes(size // 2 - size // 3)
    taken = Taken(tmp_path, bytes(data))
    assert taken.numbers == [0, 1, 2, *range(10, 20)] and set(taken.warnings) == {"video_damaged"}
    for number, frame in zip(taken.numbers, taken.frames, strict=True):
        assert np.abs(frame.astype(int) - pictures[number]).mean() < 4


def _grained(picture: Pixels, seed: int) -> Pixels:
    """The picture with grain of its own, which takes bits."""
    grain = np.random.default_rng(seed).integers(-12, 13, (*picture.shape[:2], 1))
    return np.clip(picture.astype(int) + grain, 0, 255).astype(np.uint8)


def test_a_video_of_damaged_frames_is_refused(tmp_path: Path) -> None:
    data = bytearray(Film().of(cards(20)))
    at, size = packets(bytes(data))[0]
    data[at : at + size] = bytes(size)
    with pytest.raises(AvatarUndecodable, match=r"None of the \d+ frames .* export it again"):
        Taken(tmp_path, bytes(data))


@pytest.mark.parametrize("turn", [0, 90])
def test_frames_are_freed_as_they_are_used(tmp_path: Path, turn: int) -> None:
    """A frame that refers to itself stays until the next collection of garbage: of 4K in 10 bits, dozens of them are a gigabyte."""
    path = tmp_path / "clip"
    path.write_bytes(Film(turn=turn).of(cards(40)))
    gc.collect()
    gc.disable()
    try:
        with open_clip(path, MediaKind.MP4, 25, LIMITS) as clip:
            count = sum(1 for _ in clip.frames((80, 60)))
            alive = sum(type(thing) is av.VideoFrame for thing in gc.get_objects())  # isinstance would ask proxies
    finally:
        gc.enable()
    assert count == 40 and alive <= 6


@pytest.mark.parametrize("fps", [15, 25, 50])
def test_one_frame_is_held_at_a_time(tmp_path: Path, fps: int) -> None:
    """Beside those of the decoder: of 4096×4096 each is 25 MB."""
    path = tmp_path / "clip"
    path.write_bytes(Film(options={"bf": "0"}, turn=90).of(cards(12)))
    gc.collect()
    gc.disable()
    try:
        with open_clip(path, MediaKind.MP4, fps, LIMITS) as clip:
            alive = [whole_frames(160) for _ in clip.frames((60, 80))]
    finally:
        gc.enable()
    assert len(alive) > 5 and max(alive) == 1


def whole_frames(width: int) -> int:
    """Decoded frames of this width that are in memory."""
    frames = [thing for thing in gc.get_objects() if type(thing) is VideoFrame]  # isinstance would ask proxies
    return sum(frame.width == width for frame in frames)


def test_colours_that_are_not_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(AvatarUndecodable, match=r"coded as YCgCo.*export it as H\.264 with BT\.709"):
        Taken(tmp_path, Film(matrix=BT601, prepare=_ycgco, tagged=False).of(cards(3)))
    with pytest.raises(AvatarUndecodable, match=r"Dolby Vision \(dvhe\).*export it as HDR10, HLG or SDR"):
        Taken(tmp_path, HEVC_10.of(cards(3)).replace(b"hev1", b"dvhe"))


def _ycgco(stream: VideoStream) -> None:
    stream.codec_context.colorspace = 8


def test_a_last_frame_that_never_ends_adds_no_minutes(tmp_path: Path) -> None:
    """The last frame lasts as long as its file says, within the longest clip."""
    data = bytearray(Film("avi", "mpeg4", fps=Fraction(1), tagged=False).of(cards(2)))
    rate = data.index(b"strh") + 8 + 20  # dwScale of the stream: seconds a frame
    assert struct.unpack_from("<II", data, rate) == (1, 1)
    struct.pack_into("<I", data, rate, 45)
    with pytest.raises(AvatarTooLarge, match=r"lasts 90\.0 s; at most 60 s"):
        Taken(tmp_path, bytes(data))
    struct.pack_into("<I", data, data.index(b"strh") + 8 + 32, 1)  # and it promises one frame only
    taken = Taken(tmp_path, bytes(data), fps=15)
    assert len(taken.frames) == 15 * 60 and taken.numbers == [0] * 675 + [1] * 225

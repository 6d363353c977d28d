"""Parts of a film: joined they have every frame at its time and the sound beside it, and parts that do not fit are refused."""

from __future__ import annotations

import zipfile
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.media_types import VideoFrame
from musetalk_agent.protocol.renders import RenderFormat
from musetalk_agent.renders.film_parts import Colours, FilmClock, PartsDiffer, join, part_writer
from musetalk_agent.renders.sounds import Sound
from tests.musetalk_agent.tools.test_render_film import write_wav

FPS, SIDE, RATE = 25, 64, 16_000
FILMS = [RenderFormat.MP4, RenderFormat.WEBM]


def shade(number: int) -> int:
    """The brightness of a frame, which says its number: 3 levels apart, of video's range."""
    return 20 + 3 * number


def frame(number: int, side: int = SIDE) -> VideoFrame:
    planes = np.full(side * side * 3 // 2, 128, np.uint8)
    planes[: side * side] = shade(number)
    return VideoFrame(planes, side, side, number)


def parts(folder: Path, made: RenderFormat, sizes: list[int], side: int = SIDE) -> list[Path]:
    """A film's frames in parts of so many."""
    found, number = [], 0
    for count in sizes:
        path = folder / f"{number:06d}.{side}.part"
        with part_writer(path, made, FPS, number) as writer:
            for _ in range(count):
                writer.write(frame(number, side))
                number += 1
        found.append(path)
    return found


def sound(folder: Path, seconds: float, channels: int = 1) -> Sound:
    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE)).astype(np.int16)
    samples = tone if channels == 1 else np.stack([tone, tone], 1)
    return Sound.open(write_wav(folder / "sound.wav", samples, RATE))


def shown(film: Path) -> list[tuple[float, int]]:
    """When each frame is shown, and its number."""
    with av.open(str(film)) as container:
        return [
            (float(picture.time or 0.0), round((float(picture.to_ndarray()[:SIDE].mean()) - 20) / 3))
            for picture in container.decode(video=0)
        ]


def heard_s(film: Path) -> tuple[float, int]:
    """How long the film's sound is, and how many channels it has."""
    with av.open(str(film)) as container:
        frames = list(container.decode(audio=0))
        channels = container.streams.audio[0].channels
        return sum(each.samples for each in frames) / frames[0].sample_rate, channels


@pytest.mark.parametrize("made", FILMS)
def test_a_film_of_parts_has_every_frame_once_and_in_order(tmp_path: Path, made: RenderFormat) -> None:
    target = tmp_path / "film"
    join(parts(tmp_path, made, [5, 7, 1, 12]), sound(tmp_path, 1.0), made, FilmClock.steady(FPS, 25), target)
    seen = shown(target)
    assert [number for _, number in seen] == list(range(25))
    assert [time for time, _ in seen] == pytest.approx([k / FPS for k in range(25)], abs=0.001)


@pytest.mark.parametrize("made", FILMS)
def test_frames_are_shown_when_the_clock_says(tmp_path: Path, made: RenderFormat) -> None:
    """As those of footage of an uneven rate are; ticks are thousandths, which both containers hold."""
    clock = FilmClock(Fraction(1, 1000), [0, 40, 60, 140, 500, 520], 700)
    target = tmp_path / "film"
    join(parts(tmp_path, made, [2, 4]), sound(tmp_path, 0.7), made, clock, target)
    assert [(round(1000 * time), number) for time, number in shown(target)] == list(
        zip(clock.ticks, range(6), strict=True)
    )
    with av.open(str(target)) as container:
        assert container.duration is not None and container.duration / 1e6 >= 0.69, "the last frame is shown to its end"


@pytest.mark.parametrize("made", FILMS)
@pytest.mark.parametrize(("seconds", "channels"), [(1.0, 2), (0.3, 1), (2.5, 1)])
def test_all_of_the_sound_is_in_the_film_however_long_the_pictures_are(
    tmp_path: Path, made: RenderFormat, seconds: float, channels: int
) -> None:
    target = tmp_path / "film"
    join(parts(tmp_path, made, [25]), sound(tmp_path, seconds, channels), made, FilmClock.steady(FPS, 25), target)
    found_s, found = heard_s(target)
    assert found == channels
    assert found_s == pytest.approx(seconds, abs=0.15), "encoders add up to a block at both ends"


def test_an_mp4_can_be_played_before_all_of_it_has_come(tmp_path: Path) -> None:
    target = tmp_path / "film"
    join(
        parts(tmp_path, RenderFormat.MP4, [5]),
        sound(tmp_path, 0.2),
        RenderFormat.MP4,
        FilmClock.steady(FPS, 5),
        target,
    )
    data = target.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_parts_that_were_encoded_otherwise_are_refused_by_name(tmp_path: Path) -> None:
    first, other = (parts(tmp_path, RenderFormat.MP4, [3], side)[0] for side in (SIDE, 96))
    with pytest.raises(PartsDiffer, match=r"000000\.96\.part was encoded otherwise than 000000\.64\.part"):
        join(
            [first, other],
            sound(tmp_path, 0.2),
            RenderFormat.MP4,
            FilmClock.steady(FPS, 6),
            tmp_path / "film",
        )


@pytest.mark.parametrize("made", [*FILMS, RenderFormat.PNG])
def test_a_frame_that_comes_after_the_end_is_left_out(tmp_path: Path, made: RenderFormat) -> None:
    """A part is given up while its last frame is on its way in a thread."""
    path = tmp_path / "part"
    writer = part_writer(path, made, FPS, 0)
    with pytest.raises(KeyboardInterrupt), writer:
        for k in range(3):
            writer.write(frame(k))
        raise KeyboardInterrupt
    before = path.read_bytes() if path.exists() else None
    writer.write(frame(3))
    assert (path.read_bytes() if path.exists() else None) == before


@pytest.mark.parametrize("made", [*FILMS, RenderFormat.PNG])
def test_a_part_that_fails_before_its_first_frame_fails_with_that_error(tmp_path: Path, made: RenderFormat) -> None:
    with pytest.raises(ValueError, match="the engine broke"), part_writer(tmp_path / "part", made, FPS, 0):
        raise ValueError("the engine broke")


def test_a_zip_of_frames_has_their_numbers_in_the_film_and_the_sound(tmp_path: Path) -> None:
    target, spoken = tmp_path / "film.zip", sound(tmp_path, 0.5)
    join(parts(tmp_path, RenderFormat.PNG, [2, 3]), spoken, RenderFormat.PNG, FilmClock.steady(FPS, 5), target)
    with zipfile.ZipFile(target) as whole:
        assert whole.namelist() == [*(f"{k:08d}.png" for k in range(5)), "sound.wav"]
        assert whole.read("sound.wav") == spoken.path.read_bytes()
        for k in range(5):
            picture = cv2.imdecode(np.frombuffer(whole.read(f"{k:08d}.png"), np.uint8), cv2.IMREAD_COLOR)
            assert picture is not None and picture.shape == (SIDE, SIDE, 3)
            assert abs(float(picture.mean()) - (shade(k) - 16) * 255 / 219) < 2, "limited range becomes full"


@pytest.mark.parametrize("made", FILMS)
@pytest.mark.parametrize("aspect", [Fraction(4, 3), Fraction(8, 9)])
def test_pixels_that_are_not_square_are_seen_at_their_form_and_colours_are_said(
    tmp_path: Path, made: RenderFormat, aspect: Fraction
) -> None:
    """An MP4 says the form; a WebM has so many more pixels."""
    colours, path, target = Colours(matrix=1, range=1, primaries=1, transfer=1), tmp_path / "part", tmp_path / "film"
    with part_writer(path, made, FPS, 0, colours, aspect) as writer:
        for k in range(3):
            writer.write(frame(k))
    join([path], sound(tmp_path, 0.2), made, FilmClock.steady(FPS, 3), target)
    with av.open(str(target)) as container:
        stream = container.streams.video[0]
        context, form = stream.codec_context, stream.sample_aspect_ratio or Fraction(1)
        assert (context.colorspace, context.color_range, context.color_primaries, context.color_trc) == (1, 1, 1, 1)
        assert float(context.width * form) == pytest.approx(SIDE * aspect, abs=1) and context.height == SIDE
    assert [number for _, number in shown(target)] == [0, 1, 2]


def test_pictures_of_pixels_that_are_not_square_are_wider(tmp_path: Path) -> None:
    bar = frame(60)
    bar.i420[: SIDE * SIDE].reshape(SIDE, SIDE)[:, SIDE // 2 :] = 16
    with part_writer(tmp_path / "part", RenderFormat.PNG, FPS, 7, aspect=Fraction(3, 2)) as writer:
        writer.write(bar)
    with zipfile.ZipFile(tmp_path / "part") as part:
        picture = cv2.imdecode(np.frombuffer(part.read("00000007.png"), np.uint8), cv2.IMREAD_GRAYSCALE)
    assert picture is not None and picture.shape == (SIDE, SIDE * 3 // 2)
    assert picture[:, :46].min() > 180 and picture[:, 50:].max() < 20, "its middle stays in the middle"


@given(st.lists(st.integers(1, 500), min_size=1, max_size=20), st.fractions(Fraction(1, 90_000), Fraction(1, 10)))
def test_a_clock_s_frames_follow_each_other_to_its_end(lasts: list[int], base: Fraction) -> None:
    ticks = [sum(lasts[:k]) for k in range(len(lasts))]
    clock = FilmClock(base, ticks, sum(lasts))
    assert [clock.until(k) - clock.ticks[k] for k in range(len(lasts))] == lasts
    assert clock.seconds == sum(lasts) * base


@given(st.integers(1, 120), st.integers(1, 10_000))
def test_a_steady_clock_has_so_many_frames_a_second(fps: int, frames: int) -> None:
    clock = FilmClock.steady(fps, frames)
    assert clock.seconds == Fraction(frames, fps) and len(clock.ticks) == frames
    assert clock.until(frames - 1) == frames

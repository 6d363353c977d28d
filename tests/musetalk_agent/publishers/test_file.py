"""Films: exact times, the sound as it was, nothing left of what was not finished."""

from __future__ import annotations

import resource
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from musetalk_agent.clock import VirtualClock
from musetalk_agent.media_types import Pcm, VideoFrame
from musetalk_agent.publishers.file import FilePublisher, Film, FilmAudio


def grey(value: int, width: int = 64, height: int = 48) -> VideoFrame:
    return VideoFrame(np.full(width * height * 3 // 2, value, np.uint8), width, height, 0)


def noise(samples: int, channels: int) -> Pcm:
    wave = np.random.default_rng(3).normal(0, 3000, (samples, channels))
    smooth = np.stack([np.convolve(wave[:, c], np.ones(8) / 3, "same") for c in range(channels)], 1)
    return np.clip(smooth, -32768, 32767).astype(np.int16)


def pictures(path: Path) -> list[tuple[Fraction, int]]:
    """Time in seconds and luma of the middle of every picture."""
    with av.open(str(path)) as film:
        return [(f.pts * f.time_base, int(f.to_ndarray()[f.height // 2, f.width // 2])) for f in film.decode(video=0)]


def heard(path: Path) -> tuple[int, np.ndarray]:
    """Rate, and samples float64 `[n, channels]`, placed by their time stamps."""
    with av.open(str(path)) as film:
        stream = film.streams.audio[0]
        parts = [(f.pts * f.time_base * f.sample_rate, f.to_ndarray().T) for f in film.decode(stream)]
        start = parts[0][0]
        assert start.denominator == 1
        wave = np.concatenate([part for _, part in parts])
        return stream.rate, wave[max(0, -int(start)) :]


@pytest.mark.parametrize(
    ("fps", "rate", "channels"), [(25, 16_000, 1), (30, 44_100, 2), (50, 48_000, 2), (15, 8_000, 1)]
)
def test_pictures_have_their_times_and_the_sound_its_rate(tmp_path: Path, fps: int, rate: int, channels: int) -> None:
    target = tmp_path / "out.mp4"
    sound = noise(rate, channels)
    blocks = [sound[at : at + 1_000] for at in range(0, len(sound), 1_000)]
    with Film(target, fps, fps, FilmAudio(blocks, rate, channels)) as film:
        film.open(64, 48)
        for index in range(fps):
            film.picture(index, grey(60 + 2 * index))
        assert not target.exists()
        film.finish()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.mp4"]
    seen = pictures(target)
    assert [t for t, _ in seen] == [Fraction(index, fps) for index in range(fps)]
    assert max(abs(luma - 60 - 2 * index) for index, (_, luma) in enumerate(seen)) <= 3
    got_rate, wave = heard(target)
    assert (got_rate, wave.shape[1]) == (rate, channels)
    assert rate <= len(wave) < rate + 2048  # AAC works in frames of 1024
    for channel in range(channels):
        one, other = sound[:, channel] / 32768, wave[:rate, channel]
        shifts = {
            shift: float(np.corrcoef(one[100:-100], other[100 + shift : rate - 100 + shift])[0, 1])
            for shift in range(-50, 51)
        }
        assert max(shifts, key=lambda s: shifts[s]) == 0 and shifts[0] > 0.9
    with av.open(str(target)) as made:
        assert made.streams.video[0].duration * made.streams.video[0].time_base == 1
        context = made.streams.video[0].codec_context
        assert (int(context.colorspace), int(context.color_range)) == (5, 1)  # BT.601, limited


def test_missing_pictures_are_those_before_them_and_late_ones_are_ignored(tmp_path: Path) -> None:
    target = tmp_path / "out.mp4"
    with Film(target, 25, 6, FilmAudio([np.zeros((3_840, 1), np.int16)], 16_000, 1)) as film:
        film.open(64, 48)
        for index, value in ((1, 50), (3, 100), (2, 200), (3, 200), (6, 200), (-1, 200)):
            film.picture(index, grey(value))
        film.finish()
        assert film.repeated == 4
    assert [round(luma / 50) for _, luma in pictures(target)] == [1, 1, 1, 2, 2, 2]


def test_what_is_not_finished_is_deleted_and_what_was_there_stays(tmp_path: Path) -> None:
    target = tmp_path / "out.mp4"
    target.write_bytes(b"before")
    with pytest.raises(RuntimeError), Film(target, 25, 2, FilmAudio([], 16_000, 1)) as film:
        film.open(64, 48)
        film.picture(0, grey(100))
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"] and target.read_bytes() == b"before"
    with Film(target, 25, 2, FilmAudio([], 16_000, 1)) as film, pytest.raises(ValueError, match="without a picture"):
        film.finish()
    with pytest.raises(FileNotFoundError), Film(tmp_path / "nowhere" / "x.mp4", 25, 1, FilmAudio([], 16_000, 1)):
        raise AssertionError
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        with pytest.raises(OSError), Film(tmp_path / "out.mp4", 25, 50, FilmAudio([], 16_000, 1)) as film:
            film.open(640, 480)
            for index in range(50):
                film.picture(index, VideoFrame(rng.integers(0, 255, 640 * 720, np.uint8), 640, 480, 0))
            film.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


async def test_only_what_is_shown_while_the_voice_is_heard_is_in_the_film(tmp_path: Path) -> None:
    target, clock = tmp_path / "out.mp4", VirtualClock()
    silence = np.zeros(1_920, np.int16)
    with Film(target, 25, 3, FilmAudio([np.zeros((1_920, 1), np.int16)], 16_000, 1)) as film:
        publisher = FilePublisher(film, clock)
        await publisher.open(grey(30), lambda _: None)
        assert publisher.state.connected
        publisher.push_video(grey(30))
        for value in (60, 90, 120):
            await publisher.push_audio(silence)
            publisher.push_video(grey(value))
            await clock.run(clock.now() + 0.04)
        publisher.push_video(grey(250))
        await publisher.aclose()
        film.finish()
    assert [round(luma / 30) for _, luma in pictures(target)] == [2, 3, 4]

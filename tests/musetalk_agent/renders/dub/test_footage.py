"""Footage: every frame at its time, from any frame on, its planes as they are."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_agent.renders.dub.footage import Footage, footage_limits
from musetalk_agent.renders.dub.scanning import film_clock
from tests.musetalk_agent.renders.dub.films import counted, decoded, write_video

LIMITS = footage_limits(60, 1 << 30)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("b_frames", ["0", "3"])
def test_frames_are_those_of_the_file_from_wherever_they_are_read(tmp_path: Path, suffix: str, b_frames: str) -> None:
    frames = [counted(number) for number in range(45)]
    path = write_video(tmp_path / f"a.{suffix}", frames, options={"bf": b_frames})
    times, planes = decoded(path)
    footage = Footage(path, LIMITS)
    found = list(footage.frames())
    assert [frame.stamp for frame in found] == times
    assert all(np.array_equal(frame.planes, plane) for frame, plane in zip(found, planes, strict=True))
    for start in (1, 9, 10, 11, 44):
        rest = list(footage.frames(start, times))
        assert [frame.stamp for frame in rest] == times[start:]
        assert all(np.array_equal(frame.planes, plane) for frame, plane in zip(rest, planes[start:], strict=True))


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), Fraction(30000, 1001), Fraction(50), Fraction(12)])
def test_a_rate_is_kept_exactly(tmp_path: Path, rate: Fraction) -> None:
    path = write_video(tmp_path / "a.mp4", [counted(number) for number in range(20)], rate)
    clock = film_clock([frame.stamp for frame in Footage(path, LIMITS).frames()], Fraction(0))
    assert [tick * clock.base for tick in clock.ticks] == [number / rate for number in range(20)]
    assert clock.seconds == 20 / rate


def test_an_uneven_rate_is_kept(tmp_path: Path) -> None:
    ticks = [0, 40, 70, 200, 233, 1000, 1100]
    frames = [counted(number) for number in range(7)]
    path = write_video(tmp_path / "a.mkv", frames, ticks=ticks, base=Fraction(1, 1000))
    stamps = [frame.stamp for frame in Footage(path, LIMITS).frames()]
    assert [(stamp - stamps[0]) * 1000 for stamp in stamps] == ticks


def test_ten_bits_become_eight_and_an_odd_row_goes(tmp_path: Path) -> None:
    ten = write_video(tmp_path / "ten.mp4", [counted(0)] * 3, pix_fmt="yuv420p10le")
    [first, *_] = Footage(ten, LIMITS).frames()
    assert first.size == (96, 72) and first.planes.dtype == np.uint8
    assert np.abs(first.bgr().astype(int) - counted(0)).mean() < 6
    odd = write_video(tmp_path / "odd.mp4", [counted(0, 97, 73)] * 3, pix_fmt="yuv444p")
    [first, *_] = Footage(odd, LIMITS).frames()
    assert first.size == (96, 72) and first.bgr().shape == (72, 96, 3)


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"RIFF....WAVE" + b"x" * 400, ErrorCode.VIDEO_UNREADABLE), (b"", ErrorCode.VIDEO_UNREADABLE)],
)
def test_what_is_no_video_is_refused(tmp_path: Path, content: bytes, code: ErrorCode) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(ProblemError) as caught:
        list(Footage(path, LIMITS).frames())
    assert caught.value.code is code and caught.value.field == "video_url"


def test_a_film_that_is_too_long_names_the_setting(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [counted(number) for number in range(50)])
    with pytest.raises(ProblemError, match="DUB_SECONDS") as caught:
        list(Footage(path, replace(LIMITS, video_seconds=1.0)).frames())
    assert caught.value.code is ErrorCode.VIDEO_TOO_LONG and caught.value.limit == 1.0

"""Pictures of a film in their order, upright and at their times; a mouth's opening as geometry says; what is no film."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musetalk_agent.avatars.face import LEFT_EYE, RIGHT_EYE, Points
from musetalk_agent.features.phonemes import CLOSURE, JAW
from musetalk_agent.features.visemes import VisemeFeatures
from musetalk_agent.measure.lip_measures import (
    LOWER_LIP,
    UPPER_LIP,
    VideoFaces,
    VideoUnreadable,
    mouth_heard,
    mouth_seen,
    video_frames,
)
from musetalk_agent.measure.measure_sync import estimate_lag
from tests.musetalk_agent.measure.test_measure_sync import speech


def film(path: Path, greys: list[int], *, fps: int = 25, start: int = 0, width: int = 96) -> Path:
    """Even pictures of these greys, whose left upper corner is white."""
    with av.open(path, "w") as container:
        stream = container.add_stream("ffv1", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, 64, "bgr0"
        stream.time_base = stream.codec_context.time_base = Fraction(1, fps)
        for number, grey in enumerate(greys):
            picture = np.full((64, width, 3), grey, np.uint8)
            picture[:8, :8] = 255
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts, frame.time_base = start + number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("fps", [15, 25, 50])
def test_pictures_come_in_order_with_their_times_and_their_pixels(tmp_path: Path, fps: int) -> None:
    greys = [10 * number for number in range(20)]
    seen = list(video_frames(film(tmp_path / "a.mkv", greys, fps=fps)))
    assert [int(picture[40, 60, 1]) for _, picture in seen] == greys
    np.testing.assert_allclose(
        [time for time, _ in seen], np.arange(20) / fps, atol=0.001
    )  # Matroska counts milliseconds
    for _, picture in seen:
        assert picture.shape == (64, 96, 3) and picture.dtype == np.uint8 and picture.flags.c_contiguous
        assert (picture[2, 2] == 255).all()


def test_a_film_that_begins_later_keeps_its_own_time_line(tmp_path: Path) -> None:
    assert next(video_frames(film(tmp_path / "a.mkv", [0, 50], start=50)))[0] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "cannot be read: No such file or directory"),
        (lambda path: path.mkdir(), "cannot be read: Is a directory"),
        (lambda path: path.write_bytes(b""), "is no film that can be read, or it is damaged"),
        (lambda path: path.write_bytes(bytes(range(256)) * 20), "is no film"),
        (lambda path: path.write_text("#!/bin/sh\n" * 50), "is no film"),
    ],
    ids=["absent", "a folder", "empty", "bytes", "a text"],
)
def test_what_is_no_film_has_a_sentence_with_its_name(tmp_path: Path, make, says: str) -> None:  # type: ignore[no-untyped-def]  # a table of makers
    path = tmp_path / "a.mkv"
    make(path)
    with pytest.raises(VideoUnreadable) as refused:
        list(video_frames(path))
    assert str(refused.value).startswith(f"{path} ") and says in str(refused.value)


def test_a_film_that_is_cut_off_gives_what_it_has_or_says_so(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mkv", list(range(0, 200, 4)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    got = []
    try:
        got.extend(int(picture[40, 60, 1]) for _, picture in video_frames(path))
    except VideoUnreadable as refused:
        assert "damaged" in str(refused)
    assert got == list(range(0, 200, 4))[: len(got)] and got


def mesh(opening: float, *, turned: float = 0.0, scale: float = 100.0, at: tuple[float, float] = (0, 0)) -> Points:
    """A face whose eyes are `scale` apart and whose inner lips are apart by `opening` of that, turned by an angle (radians)."""
    points = np.zeros((468, 2))
    points[LEFT_EYE], points[RIGHT_EYE] = (0, 0), (1, 0)  # left and right in the picture
    points[UPPER_LIP], points[LOWER_LIP] = (0.5, 1), (0.5, 1 + opening)
    turn = np.array([[math.cos(turned), math.sin(turned)], [-math.sin(turned), math.cos(turned)]])
    return np.asarray(points @ turn * scale + at, np.float32)


@given(st.floats(-0.05, 0.5), st.floats(-3, 3), st.floats(20, 900), st.floats(-500, 2000))
def test_an_opening_is_in_eye_distances_however_large_and_turned_the_face_is(
    opening: float, turned: float, scale: float, at: float
) -> None:
    track = mouth_seen(VideoFaces(np.array([0.0]), [mesh(opening, turned=turned, scale=scale, at=(at, -at))]))
    assert track.aperture[0] == pytest.approx(opening, abs=2e-3)


def test_a_picture_without_a_face_has_no_opening_and_keeps_the_middle_of_its_time() -> None:
    track = mouth_seen(VideoFaces(np.array([0.0, 0.04, 0.08]), [mesh(0.1), None, mesh(0.2)]))
    assert track.times == pytest.approx([0.02, 0.06, 0.1])
    assert np.isnan(track.aperture[1]) and track.aperture[[0, 2]] == pytest.approx([0.1, 0.2], abs=1e-5)


@pytest.mark.parametrize("start_s", [0.0, 2.5, -0.1])
@pytest.mark.parametrize("samples", [16_000, 16_001, 40_000])
def test_what_is_heard_is_even_in_time_and_silence_is_shut(start_s: float, samples: int) -> None:
    track = mouth_heard(VisemeFeatures.load(), np.zeros(samples, np.int16), start_s)
    assert len(track.times) == -(-samples // 320) == len(track.aperture)
    np.testing.assert_allclose(np.diff(track.times), 0.02)
    assert track.times[0] == pytest.approx(start_s + 0.01) and not track.aperture.any()


def test_a_picture_that_is_held_has_its_middle_later() -> None:
    track = mouth_seen(VideoFaces(np.array([1.0, 1.04, 1.2, 1.24]), [mesh(0.1)] * 4))
    assert track.times == pytest.approx([1.02, 1.12, 1.22, 1.26])


@pytest.mark.parametrize("fps", [15, 25, 30, 50])
def test_what_the_network_makes_has_no_lag_at_any_frame_rate(fps: int) -> None:
    """By their beginnings pictures of 15 fps would be 13 ms early, and those of 50 fps 10 ms late."""
    features, voice = VisemeFeatures.load(), speech()[: 8 * 16_000]
    stream = features.stream(fps)
    vectors = [*stream.push(voice), *stream.flush()]
    meshes = [mesh(0.12 * float(v[JAW]) * (1 - float(v[CLOSURE]))) for v in vectors]
    lag = estimate_lag(mouth_seen(VideoFaces(np.arange(len(meshes)) / fps, meshes)), mouth_heard(features, voice, 0.0))
    assert lag is not None and lag.lag_s == pytest.approx(0, abs=0.004) and lag.confidence > 0.9

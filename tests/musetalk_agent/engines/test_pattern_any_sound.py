"""The pattern engine against plain numpy, and what every engine that needs no card promises alike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musetalk_agent.engines.interface import PatchRequest
from musetalk_agent.engines.pattern import THRESHOLD, PatternEngine, PatternFeatures, PatternSession, pattern_bundle
from musetalk_agent.media_types import frame_start, frames_begun

RATES = st.sampled_from([15, 24, 25, 30, 50, 60])
SOUND = np.random.default_rng(3).integers(-20_000, 20_000, 4_000).astype(np.int16)


def heard(chunks: list[int], fps: int, length: int) -> list[float]:
    """What a stream gives of a sound that comes in chunks of these lengths, and of its end."""
    stream = PatternFeatures().stream(fps)
    made, at = [], 0
    for size in chunks:
        made += stream.push(SOUND[at : min(at + size, length)])
        at = min(at + size, length)
    made += stream.push(SOUND[at:length])
    return [float(value[0]) for value in [*made, *stream.flush()]]


@settings(max_examples=60)
@given(st.lists(st.integers(0, 900), max_size=8), RATES, st.integers(0, 4_000))
def test_a_frame_s_value_is_the_rms_of_its_own_samples_however_they_come(
    chunks: list[int], fps: int, length: int
) -> None:
    """What is missing of the last frame counts as silence."""
    made = heard(chunks, fps, length)
    assert len(made) == frames_begun(length, fps)
    for frame, value in enumerate(made):
        start, end = frame_start(frame, fps), frame_start(frame + 1, fps)
        own = SOUND[start : min(end, length)].astype(np.float64) / 32768
        assert value == pytest.approx(float(np.sqrt((own**2).sum() / (end - start))), rel=1e-6)


@given(RATES, st.integers(0, 4_000))
def test_no_value_is_given_before_its_frame_is_whole(fps: int, length: int) -> None:
    stream = PatternFeatures().stream(fps)
    assert len(stream.push(SOUND[:length])) == length * fps // 16_000


def test_a_reset_stream_is_a_new_one() -> None:
    stream = PatternFeatures().stream(25)
    first = stream.push(SOUND[:1000])
    stream.cue([])
    stream.reset()
    assert [value.tolist() for value in stream.push(SOUND[:1000])] == [value.tolist() for value in first]


def test_flushing_twice_gives_the_end_once() -> None:
    stream = PatternFeatures().stream(25)
    stream.push(SOUND[:100])
    assert (len(stream.flush()), len(stream.flush())) == (1, 0)


@given(st.integers(4, 40).map(lambda n: 2 * n), st.integers(4, 40).map(lambda n: 2 * n))
def test_the_block_is_even_in_the_middle_and_about_a_quarter_of_the_picture(width: int, height: int) -> None:
    bundle = pattern_bundle(width, height, 25)
    box = bundle.box(0)
    assert all(value % 2 == 0 for value in (box.x0, box.y0, box.x1, box.y1))
    assert 0 <= box.x0 < box.x1 <= width and 0 <= box.y0 < box.y1 <= height
    assert abs(box.x0 + box.x1 - width) <= 2 and abs(box.y0 + box.y1 - height) <= 2
    assert abs(box.width - width / 2) <= 2 and abs(box.height - height / 2) <= 2
    luma = bundle.frames[0][:height]
    assert (luma[box.y0 : box.y1, box.x0 : box.x1] == 16).all()
    assert np.count_nonzero(luma == 16) == box.width * box.height
    assert bundle.faces[0].shape == (box.height, box.width, 3) and not bundle.faces[0].any()


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=8))
def test_white_is_what_is_louder_than_the_threshold_and_nothing_else(loud: list[float]) -> None:
    engine = PatternEngine()
    session = engine.open(pattern_bundle(64, 64, 25))
    flight = engine.launch([PatchRequest(session, 0, np.array([value], np.float32)) for value in loud])
    flight.wait()
    for patch, value in zip(flight.patches(), loud, strict=True):
        assert patch is (session.white if value > np.float32(THRESHOLD) else session.black)


def test_the_patches_cover_the_block_in_plain_white_and_black() -> None:
    session = PatternEngine().open(pattern_bundle(64, 48, 25))
    assert set(session.white.pixels.ravel().tolist()) == {255} and set(session.black.pixels.ravel().tolist()) == {0}
    assert session.white.box == session.black.box and session.white.mask is None


@given(st.floats(0, 1, width=32), st.floats(0, 1), st.floats(0, 1))
def test_a_feature_fades_to_rest_and_never_past_it(value: float, less: float, more: float) -> None:
    session = PatternEngine().open(pattern_bundle(64, 64, 25))
    feature = np.array([value], np.float32)
    less, more = sorted((less, more))
    near, far = (session.fade_to_silence(feature, amount) for amount in (less, more))
    assert 0 <= far[0] <= near[0] <= feature[0] and near.dtype == np.float32
    assert np.array_equal(session.fade_to_silence(feature, 1.0), session.rest)
    assert np.array_equal(session.fade_to_silence(feature, 0.0), feature)


def test_it_needs_nothing_and_limits_nothing() -> None:
    engine = PatternEngine()
    bundle = pattern_bundle(64, 64, 25)
    engine.prepare(bundle)
    engine.warmup()
    session = engine.open(bundle)
    assert isinstance(session, PatternSession)
    assert (engine.capacity(25), engine.stats(), session.idle(0), session.missing_idle_patches()) == (
        None,
        {},
        None,
        (),
    )
    session.store_idle_patch(0, session.white)
    assert session.idle(0) is None
    for ending in (session.close, session.close, engine.close, engine.close):
        ending()

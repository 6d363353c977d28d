"""Whisper's windows: the streaming contract, what each one holds, silence."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from musetalk_agent.features import whisper_features as mel
from musetalk_agent.features.whisper_features import (
    BEGIN,
    CONTEXT,
    END,
    HEARD,
    MEL_COLUMNS,
    PLACE,
    POSITIONS,
    STEP,
    TAIL,
    TARGET,
    WhisperFeatures,
    rest,
)
from musetalk_agent.media_types import Cue, Pcm, frame_start, frames_begun
from tests.late import late_imports

with late_imports("transformers"):
    import transformers

RATE = 16_000


def noise(samples: int, seed: int = 0) -> Pcm:
    """Noise whose loudness and colour change, so that no two columns are alike."""
    rng = np.random.default_rng(seed)
    white = rng.normal(0, 1, samples)
    swell = 0.02 + np.abs(np.sin(np.arange(samples) / 2900.0))
    return (np.clip(np.cumsum(white) * 0.01 + white, -4, 4) * swell * 4000).astype(np.int16)


def whole(sound: Pcm, fps: int = 25, lookahead: int = 80) -> NDArray[np.float32]:
    stream = WhisperFeatures(lookahead).stream(fps)
    return np.array(stream.push(sound) + stream.flush())


@given(
    cuts=st.lists(st.integers(0, 9000), max_size=12),
    fps=st.sampled_from([15, 24, 25, 30, 50]),
    lookahead=st.sampled_from([0, 33, 80, 200]),
)
@settings(max_examples=40, deadline=None)
def test_chunking_changes_nothing(cuts: list[int], fps: int, lookahead: int) -> None:
    sound = noise(9000)
    stream, out = WhisperFeatures(lookahead).stream(fps), []
    for a, b in pairwise([0, *sorted(cuts), len(sound)]):
        out += stream.push(sound[a:b])
    out += stream.flush()
    np.testing.assert_array_equal(np.array(out), whole(sound, fps, lookahead))


def test_one_sample_at_a_time_changes_nothing() -> None:
    sound, stream = noise(3000), WhisperFeatures().stream(25)
    out = [feature for i in range(len(sound)) for feature in stream.push(sound[i : i + 1])]
    np.testing.assert_array_equal(np.array(out + stream.flush()), whole(sound))


@pytest.mark.parametrize("fps", [15, 23, 25, 29, 30, 48, 50, 60])
@pytest.mark.parametrize("samples", [0, 1, 199, 319, 639, 640, 641, 1280, 4799, 16_000, 16_001])
def test_as_many_frames_as_begin(fps: int, samples: int) -> None:
    stream = WhisperFeatures().stream(fps)
    out = stream.push(noise(samples)) + stream.flush()
    assert len(out) == frames_begun(samples, fps)
    assert all(f.shape == (MEL_COLUMNS, 80) and f.dtype == np.float32 and np.isfinite(f).all() for f in out)


@pytest.mark.parametrize("fps", [15, 24, 25, 30, 50, 60])
@pytest.mark.parametrize("lookahead", [0, 40, 80, 120, 200])
def test_a_frame_comes_with_its_last_sample_and_reads_no_further(fps: int, lookahead: int) -> None:
    features, sound = WhisperFeatures(lookahead), noise(14_000)
    assert features.lookahead_ms == lookahead
    expected = whole(sound, fps, lookahead)
    stream, done = features.stream(fps), 0
    for k in range(fps // 2):
        ready = frame_start(k + 1, fps) + lookahead * RATE // 1000
        assert stream.push(sound[done : ready - 1]) == []
        (got,) = stream.push(sound[ready - 1 : ready])
        np.testing.assert_array_equal(got, expected[k])  # though the sound after it was there when `expected` was made
        done = ready


@pytest.mark.parametrize("lookahead", [0, 80, 200])
def test_the_look_ahead_is_read_to_its_end(lookahead: int) -> None:
    sound, k = noise(14_000), 10
    cut = frame_start(k + 1, 25) + lookahead * RATE // 1000
    other = sound.copy()
    other[cut - 60 : cut] = 30_000
    assert not np.array_equal(whole(sound, 25, lookahead)[k], whole(other, 25, lookahead)[k])
    np.testing.assert_array_equal(whole(sound, 25, lookahead)[: k - 1], whole(other, 25, lookahead)[: k - 1])


@pytest.mark.parametrize("fps", [15, 24, 25, 30, 50, 60])
def test_the_target_rows_are_the_frames_own_time(fps: int) -> None:
    """A click in the middle of a frame's own position is loudest in the column of that position's middle."""
    for k in (0, 1, 7, fps - 1):
        row = 50 * k // fps
        assert row * STEP <= frame_start(k, fps) < (row + 1) * STEP
        sound = np.zeros(2 * RATE, np.int16)
        sound[row * STEP + mel.HOP] = 20_000
        window = whole(sound, fps)[k][:-1]
        assert int(window.sum(axis=1).argmax()) - 2 == 2 * (CONTEXT + 4) + 1


@pytest.mark.parametrize(("fps", "lookahead"), [(25, 0), (25, 80), (25, 200), (15, 200), (50, 80)])
def test_the_last_row_tells_what_exists(fps: int, lookahead: int) -> None:
    sound = noise(6 * RATE + 100)
    stream = WhisperFeatures(lookahead).stream(fps)
    streamed, flushed = stream.push(sound), stream.flush()
    for k, feature in enumerate(streamed + flushed):
        row, reported = 50 * k // fps, feature[-1].astype(int)
        first = row - 4 - CONTEXT
        assert reported[PLACE] == first % 1500 and reported[BEGIN] == max(-1, -first)
        cut = frame_start(k + 1, fps) + lookahead * RATE // 1000
        assert reported[HEARD] == max(row + 6, cut // STEP) + TAIL - first <= POSITIONS
        assert reported[END] == (POSITIONS if k < len(streamed) else len(sound) // STEP - first)
        assert (feature[-1] == np.trunc(feature[-1])).all() and not feature[-1, 4:].any()
    assert len(flushed) > 0 and reported[END] < TARGET.stop


def test_the_place_wraps_after_thirty_seconds() -> None:
    stream, places = WhisperFeatures().stream(25), []
    for _ in range(35):
        places += [int(feature[-1, PLACE]) for feature in stream.push(np.zeros(RATE, np.int16))]
    assert min(places) == 0 or min(places) == 1
    assert places == [(2 * k - 4 - CONTEXT) % 1500 for k in range(len(places))]


def test_a_long_segment_costs_no_more_memory() -> None:
    stream = WhisperFeatures().stream(25)
    sizes = []
    for _ in range(8):
        last = stream.push(noise(RATE))[-1]
        sizes.append((len(stream._samples), len(stream._logs)))
    assert sizes[5:] == [sizes[5]] * 3
    assert last[-1, BEGIN] == -1 and (last[: 2 * TARGET.stop].std(axis=1) > 0.01).all()  # all of it is sound


def test_reset_and_flush_begin_anew() -> None:
    sound, stream = noise(9000), WhisperFeatures().stream(25)
    first = stream.push(sound) + stream.flush()
    stream.push(sound[:3001])
    stream.reset()
    np.testing.assert_array_equal(np.array(first), np.array(stream.push(sound) + stream.flush()))


def test_cues_are_ignored() -> None:
    sound, stream = noise(5000), WhisperFeatures().stream(25)
    stream.cue([Cue("m", 0, 4000)])
    np.testing.assert_array_equal(np.array(stream.push(sound) + stream.flush()), whole(sound))


def test_silence_is_the_rest_feature() -> None:
    feature = whole(np.zeros(6 * RATE, np.int16))[100]
    np.testing.assert_array_equal(feature[:-1], rest()[:-1])
    np.testing.assert_array_equal(feature[-1, 1:], rest()[-1, 1:])  # but for the place
    assert (rest()[:-1] == -1.5).all() and rest().shape == (MEL_COLUMNS, 80) and rest().dtype == np.float32


def test_values_lie_within_eighty_decibels_of_the_loudest_so_far() -> None:
    sound = np.concatenate([noise(8000) // 50, noise(3000), noise(120_000) // 400])
    floors = [feature[:-1].min() for feature in whole(sound)]
    highest = max(feature[:-1].max() for feature in whole(sound))
    assert floors[0] < floors[20] == pytest.approx(highest - 2.0, abs=1e-6)
    assert floors[-1] == floors[20]  # nine seconds later, when what was loud has left the window


@pytest.mark.parametrize("lookahead", [-1, 201])
def test_a_look_ahead_outside_of_the_range_is_refused(lookahead: int) -> None:
    with pytest.raises(ValueError, match="lookahead_ms"):
        WhisperFeatures(lookahead)


@pytest.mark.parametrize("fps", [14, 61])
def test_an_fps_outside_of_the_range_is_refused(fps: int) -> None:
    with pytest.raises(ValueError, match="fps"):
        WhisperFeatures().stream(fps)


def sound(samples: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    t = np.arange(samples) / RATE
    return (6000 * np.sin(2 * np.pi * (200 + 300 * t) * t) * np.abs(np.sin(4 * t)) + rng.normal(0, 20, samples)).astype(
        np.int16
    )


def test_columns_are_transformers_own() -> None:
    extractor = transformers.WhisperFeatureExtractor(feature_size=80)
    pcm = sound(3 * RATE)
    theirs = np.asarray(extractor._np_extract_fbank_features(np.float32([pcm]) / 32768, device="cpu"))[0].T
    padded = np.pad(pcm.astype(np.float32) / 32768, (200, 0), mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, mel.WINDOW)[:: mel.HOP]
    logs = mel.columns(frames)
    np.testing.assert_allclose(mel.scaled(logs, logs.max()), theirs[: len(logs)], atol=1e-6)
    assert (mel.columns(np.zeros((1, mel.WINDOW), np.float32)) == mel.SILENCE).all()


def test_filters_are_transformers_own() -> None:
    from transformers.audio_utils import mel_filter_bank

    theirs = mel_filter_bank(201, 80, 0.0, 8000.0, RATE, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(mel._FILTERS, theirs, atol=1e-9)


@pytest.mark.parametrize("lookahead", [0, 80, 200])
def test_a_streams_window_is_transformers_mel_of_what_was_heard(lookahead: int) -> None:
    """Its first columns as at the start of a recording, its last cut by the look-ahead."""
    extractor = transformers.WhisperFeatureExtractor(feature_size=80)
    pcm = sound(5 * RATE)
    ours = WhisperFeatures(lookahead).stream(25).push(pcm)
    for k in (0, 3, 49, 99, 110):
        cut = 640 * (k + 1) + lookahead * 16
        theirs = (
            extractor(pcm[:cut].astype(np.float32) / 32768, sampling_rate=RATE, return_tensors="np").input_features[0].T
        )
        begin = 2 * (2 * k - 4 - CONTEXT) - 2
        window = ours[k][:-1]
        expected = theirs[max(0, begin) : begin + len(window)]
        np.testing.assert_allclose(window[max(0, -begin) :], expected, atol=1e-4)  # in float32, by torch

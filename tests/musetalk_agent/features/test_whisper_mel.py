"""Whisper's log-mel columns against transformers' own."""

from __future__ import annotations

import numpy as np
import pytest

from musetalk_agent.features import whisper_mel as mel
from musetalk_agent.features.whisper import CONTEXT, WhisperFeatures

transformers = pytest.importorskip("transformers")

RATE = 16_000


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

"""The encoder on windows, against transformers called plainly on what has been heard, and upstream's table of chunks."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from musetalk_agent.features.whisper_features import CONTEXT, STEP, TAIL, WhisperFeatures, rest
from musetalk_agent.media_types import Pcm, frame_start, frames_begun, frames_complete
from tests.late import late_imports

with late_imports("torch", "transformers"):
    import torch
    import transformers
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    from musetalk_agent.engines.musetalk.network import AudioEncoder
    from tests.reference import whisper as reference

RATE = 16_000
Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def encoder() -> WhisperEncoder:
    """whisper-tiny's architecture, narrower, seeded; weights large enough that attention is no mere average."""
    torch.manual_seed(4)
    config = transformers.WhisperConfig(
        d_model=32, encoder_layers=4, encoder_attention_heads=2, encoder_ffn_dim=64, init_std=0.3
    )
    return WhisperEncoder(config).eval().requires_grad_(False)


def speech(samples: int, seed: int = 0) -> Pcm:
    rng = np.random.default_rng(seed)
    t = np.arange(samples) / RATE
    tone = np.sin(2 * np.pi * (180 + 60 * np.sin(3 * t)) * t) * (0.2 + np.abs(np.sin(5 * t)))
    return (8000 * tone + rng.normal(0, 300, samples)).astype(np.int16)


def heard(sound: Pcm) -> Array:
    return sound.astype(np.float32) / np.float32(32768)


def streamed(encoder: WhisperEncoder, sound: Pcm, fps: int, lookahead: int) -> Array:
    stream = WhisperFeatures(lookahead).stream(fps)
    windows = torch.from_numpy(np.array(stream.push(sound) + stream.flush()))
    with torch.inference_mode():
        return torch.cat([AudioEncoder(encoder)(part) for part in windows.split(16)]).numpy()


@pytest.mark.parametrize(("fps", "lookahead"), [(25, 80), (25, 0), (25, 200), (24, 80), (30, 40), (15, 80), (50, 120)])
def test_a_window_is_the_plain_encoder_on_what_was_heard(encoder: WhisperEncoder, fps: int, lookahead: int) -> None:
    sound = speech(5 * RATE + 77)
    ours = streamed(encoder, sound, fps, lookahead)
    assert ours.shape == (frames_begun(len(sound), fps), 50, 32)
    for k in sorted({0, 1, 2, fps, 4 * fps, 4 * fps + 3}):
        cut = frame_start(k + 1, fps) + lookahead * RATE // 1000
        row = 50 * k // fps
        first, stop = max(0, row - 4 - CONTEXT), max(row + 6, cut // STEP) + TAIL
        expected = reference.streamed(encoder, heard(sound[:cut]), row, first, stop, 1500)
        np.testing.assert_allclose(ours[k], expected, rtol=1e-5, atol=1e-4)


def test_after_the_last_sample_vectors_are_zero_and_the_rest_is_as_upstream_pads(encoder: WhisperEncoder) -> None:
    sound = speech(RATE + 130)
    end = len(sound) // STEP
    ours = streamed(encoder, sound, 25, 80)
    for k in range(len(ours) - 3, len(ours)):
        row, vectors = 2 * k, ours[k].reshape(10, 5, 32)
        beyond = np.arange(row - 4, row + 6) >= end
        assert beyond.any() and (vectors[beyond] == 0).all() and (vectors[~beyond] != 0).all()
        stop = max(row + 6, (frame_start(k + 1, 25) + 1280) // STEP) + TAIL
        expected = reference.streamed(encoder, heard(sound), row, max(0, row - 4 - CONTEXT), stop, end)
        np.testing.assert_allclose(ours[k], expected, rtol=1e-5, atol=1e-4)


def test_before_the_first_sample_vectors_are_zero_as_upstream_pads(encoder: WhisperEncoder) -> None:
    sound = speech(RATE)
    ours = streamed(encoder, sound, 25, 80)
    upstream = reference.upstream_chunks(reference.vectors(encoder, heard(sound)), len(sound), 25)
    np.testing.assert_array_equal((ours == 0).all(axis=2)[:25], (upstream == 0).all(axis=2))
    assert (ours[0].reshape(10, 5, 32)[:4] == 0).all() and (ours[1].reshape(10, 5, 32)[:2] == 0).all()


def test_rows_are_time_times_five_plus_layer(encoder: WhisperEncoder) -> None:
    """The first of five is convolution and position; the last is normed: mean 0 and variance 1 before its scale."""
    vectors = streamed(encoder, speech(3 * RATE), 25, 80)[40].reshape(10, 5, 32)
    normed = (vectors[:, 4] - encoder.layer_norm.bias.numpy()) / encoder.layer_norm.weight.numpy()
    np.testing.assert_allclose(normed.mean(axis=1), 0, atol=1e-4)
    np.testing.assert_allclose(normed.std(axis=1), 1, atol=1e-3)
    assert np.abs(vectors[:, 3].std(axis=1) - 1).min() > 0.05


def test_a_batch_is_its_members(encoder: WhisperEncoder) -> None:
    stream = WhisperFeatures().stream(25)
    windows = torch.from_numpy(np.array([rest(), *stream.push(speech(12_000))]))
    model = AudioEncoder(encoder)
    with torch.inference_mode():
        together = model(windows)
        alone = torch.cat([model(window[None]) for window in windows])
    assert torch.isfinite(together).all()
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_nothing_at_all_gives_zeros_not_nan(encoder: WhisperEncoder) -> None:
    ours = streamed(encoder, speech(100), 25, 80)
    assert ours.shape == (1, 50, 32) and (ours == 0).all()


@pytest.mark.parametrize("half_type", ["bfloat16", "float16"])
def test_half_precision_stays_near(encoder: WhisperEncoder, half_type: str) -> None:
    dtype = getattr(torch, half_type)
    stream = WhisperFeatures().stream(25)
    windows = torch.from_numpy(
        np.array(stream.push(speech(31 * RATE))[-2:])
    )  # places near 1499, which bf16 cannot count to
    half = WhisperEncoder(encoder.config).eval().requires_grad_(False)
    half.load_state_dict(encoder.state_dict())
    with torch.inference_mode():
        full = AudioEncoder(encoder)(windows)
        ours = AudioEncoder(half.to(dtype))(windows)
    assert ours.dtype == dtype
    assert torch.nn.functional.cosine_similarity(ours.float().flatten(1), full.flatten(1)).min() > 0.99


@pytest.mark.parametrize(("fps", "lost"), [(15, 1), (24, 0), (25, 18), (29, 0), (30, 2)])
def test_frame_counts_against_upstreams_for_every_length(fps: int, lost: int) -> None:
    """Upstream counts whole frames in float64, we count frames begun. Exactly: ours are the whole ones, plus one if a sample
    lies in the next; upstream's are the whole ones, less one where rounding loses it, which only whole multiples of a frame do."""
    lengths = np.arange(1, 200_001)
    upstream = np.array([reference.counts(n, fps)[0] for n in lengths.tolist()])
    ours = np.array([frames_begun(n, fps) for n in lengths.tolist()])
    complete = np.array([frames_complete(n, fps) for n in lengths.tolist()])
    beyond = lengths * fps % RATE  # samples after the last whole frame, times fps
    np.testing.assert_array_equal(ours - complete, beyond >= fps)
    missing = complete - upstream
    assert set(missing.tolist()) <= {0, 1} and missing.sum() == lost and not missing[beyond > 0].any()
    if fps == 25:
        assert missing[18_560 - 1] == 1


@pytest.mark.parametrize("fps", [25, 29, 30])
def test_chunks_are_upstreams_where_upstream_is_right(fps: int) -> None:
    rng = np.random.default_rng(1)
    samples = 3 * RATE
    features = rng.normal(size=(samples * 50 // RATE, 5, 4)).astype(np.float32)
    upstream = reference.upstream_chunks(features, samples, fps)
    ours = np.stack([reference.window(features, k, fps) for k in range(len(upstream))])
    np.testing.assert_array_equal(ours, upstream)


def test_upstreams_lips_are_late_below_25_fps_and_ours_are_not() -> None:
    features = np.arange(200, dtype=np.float32)[:, None, None] + np.ones((1, 5, 1), np.float32)
    upstream = reference.upstream_chunks(features, 4 * RATE, 24)
    ours = reference.window(features, 50, 24)
    assert ours[0, 0] - upstream[50][0, 0] == 2  # 40 ms

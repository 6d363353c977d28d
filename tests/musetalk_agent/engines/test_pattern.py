"""The pattern engine, to the definition in the design."""

from __future__ import annotations

import numpy as np
import pytest

from musetalk_agent.compose.compositor import Compositor
from musetalk_agent.engines.interface import PatchRequest
from musetalk_agent.engines.pattern import PatternEngine, PatternStream, pattern_bundle
from musetalk_agent.media_types import frames_begun


def test_the_value_is_the_rms_of_the_frames_own_samples() -> None:
    stream = PatternStream(25)
    loud, quiet = np.full(640, 16384, np.int16), np.zeros(640, np.int16)
    values = [float(v[0]) for v in stream.push(np.concatenate([loud, quiet, loud]))]
    assert values == pytest.approx([0.5, 0.0, 0.5])


@pytest.mark.parametrize("fps", [15, 25, 29, 30, 50, 60])
def test_any_chunking_gives_the_same_and_as_many_as_frames_begin(fps: int) -> None:
    rng = np.random.default_rng(2)
    for length in (0, 1, 639, 640, 641, 5_000, 16_001):
        samples = rng.integers(-20_000, 20_000, length).astype(np.int16)
        whole = PatternStream(fps)
        expected = [*whole.push(samples), *whole.flush()]
        chunked, made, at = PatternStream(fps), [], 0
        while at < length:
            size = int(rng.integers(1, 700))
            made += chunked.push(samples[at : at + size])
            at += size
        made += chunked.flush()
        assert len(expected) == frames_begun(length, fps)
        assert np.array_equal(np.array(made), np.array(expected))


def test_white_above_the_threshold_and_black_below() -> None:
    engine, bundle = PatternEngine(), pattern_bundle(512, 512, 25)
    session, compositor = engine.open(bundle), Compositor(bundle)
    requests = [PatchRequest(session, 0, np.array([v], np.float32)) for v in (0.0, 0.05, 0.0501, 1.0)]
    centres = []
    for patch in engine.infer(requests):
        luma = compositor.compose(0, patch).i420[: 512 * 512].reshape(512, 512)
        assert luma[0, 0] == 125  # mid-grey around it
        assert len(np.unique(luma[128:384, 128:384])) == 1
        centres.append(int(luma[200, 200]))
    assert centres == [16, 16, 235, 235]


@pytest.mark.parametrize("size", [(512, 512), (640, 360), (66, 70)])
def test_the_idle_picture_is_grey_with_a_black_centre(size: tuple[int, int]) -> None:
    width, height = size
    bundle = pattern_bundle(width, height, 25)
    box = bundle.box(0)
    assert box.x0 % 2 == box.y0 % 2 == box.x1 % 2 == box.y1 % 2 == 0
    luma = np.asarray(bundle.frames[0]).reshape(-1)[: width * height].reshape(height, width)
    assert luma[height // 2, width // 2] == 16 and luma[0, 0] == 125

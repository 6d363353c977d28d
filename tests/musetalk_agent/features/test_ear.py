"""A detector and a stream that share one run of the network decide and make what two runs of their own do, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from musetalk_agent.features.ear import Ear
from musetalk_agent.features.listening import Listening
from musetalk_agent.features.mouth_network import Array, NetworkRun, Step
from musetalk_agent.features.speech_detector import SpeechDetector, shipped_network
from musetalk_agent.features.visemes import VisemeFeatures, VisemeStream
from musetalk_agent.media import Feature
from tests.musetalk_agent.features.test_speech_detector import RATE, noise, peak, rms, spoken

FEATURES = VisemeFeatures.load()


class Apart(VisemeFeatures):
    """Every detector and every stream hears for itself."""

    def begin(self, fps: int) -> tuple[SpeechDetector, VisemeStream]:
        return self.detector(), self.stream(fps)


def talk(seed: int) -> NDArray[np.int16]:
    """Words, silence and noise, so that the detector sleeps, wakes, and is awake without a stream."""
    rng, parts = np.random.default_rng(seed), []
    for kind in rng.permutation(["word", "word", "word", "zeros", "noise", "loud noise", "swelling noise", "pause"]):
        seconds = float(rng.uniform(0.1, 1.5))
        if kind == "word":
            begin = int(rng.integers(0, RATE))
            parts.append(peak(spoken()[begin : begin + round(seconds * RATE)], float(rng.uniform(-30, -3))))
        elif kind == "swelling noise":
            swell = np.abs(np.sin(2 * np.pi * 4 * np.arange(round(seconds * RATE)) / RATE))
            parts.append((rng.normal(0, 2000, len(swell)) * swell).astype(np.int16))
        elif kind == "pause":
            parts.append(np.zeros(round(0.45 * RATE), np.int16))  # the detector sleeps and the stream goes on
        else:
            level = {"zeros": -90.0, "noise": -50.0, "loud noise": -30.0}[kind]
            parts.append(rms(noise(seconds), level))
    return np.concatenate(parts)


def decided(features: VisemeFeatures, sound: NDArray[np.int16], fps: int, seed: int) -> list[Feature | None]:
    """Two segments of the sound, cut at random; the first is dropped halfway."""
    rng, listening, made = np.random.default_rng(seed), Listening(features, fps), []
    made += listening.push(sound[: len(sound) // 2])
    listening.reset()
    at = 0
    while at < len(sound):
        size = int(rng.integers(1, 3000))
        made += listening.push(sound[at : at + size])
        at += size
    return made + listening.flush()


@pytest.mark.parametrize("fps", [24, 25, 29, 50])
@pytest.mark.parametrize("seed", range(3))
def test_one_run_for_two_is_the_same_as_two_runs(fps: int, seed: int) -> None:
    shared = decided(FEATURES, talk(seed), fps, seed)
    apart = decided(Apart(shipped_network()), talk(seed), fps, seed)
    assert len(shared) == len(apart)
    for frame, (one, other) in enumerate(zip(shared, apart, strict=True)):
        if one is None or other is None:
            assert one is other, frame
        else:
            np.testing.assert_array_equal(one, other, err_msg=f"frame {frame}")


def test_speech_runs_the_network_once(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, step = 0, NetworkRun.step

    def counted(run: NetworkRun, mels: Array) -> Step:
        nonlocal steps
        steps += 1
        return step(run, mels)

    monkeypatch.setattr(NetworkRun, "step", counted)
    sound = peak(spoken()[: 2 * RATE], -6)
    Listening(FEATURES, 25).push(sound)
    assert steps == len(sound) // 320


def test_a_step_that_is_neither_the_last_nor_the_next_is_refused() -> None:
    ear, window = Ear(shipped_network()), np.zeros(560, np.float32)
    for wrong in (-1, 1):
        with pytest.raises(ValueError, match=f"step {wrong} "):
            ear.hear(wrong, window)
    assert ear.hear(0, window) is ear.hear(0, window)
    ear.hear(1, window)
    with pytest.raises(ValueError, match=r"step 0 .* step 1"):
        ear.hear(0, window)

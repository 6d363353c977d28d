"""The mouth network's steps beside the same network written over the whole recording, in float64, with every past frame kept."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from musetalk_agent.features.extractor import WARM_S, FeatureStream, SpeechGate, VoiceActivityDetector
from musetalk_agent.features.mouth_network import (
    BANDS,
    DILATIONS,
    HEADS,
    WIDTH,
    Array,
    LipState,
    MouthNetwork,
    NetworkRun,
    NetworkStep,
    SharedNetworkRun,
    default_weights,
)
from musetalk_agent.features.phonemes import CLASSES
from musetalk_agent.features.speech_detector import SpeechDetector, shipped_network
from musetalk_agent.features.visemes import VisemeFeatures, VisemeStream
from musetalk_agent.media_types import Feature
from tests.musetalk_agent.features.test_speech_detector import RATE, noise, peak, rms, spoken

Arrays = dict[str, NDArray[np.float64]]
SILENCE = (-70 + 35) / 20  # what a frame 70 dB or more below the level reads


@pytest.fixture(scope="module")
def weights() -> Arrays:
    with np.load(default_weights()) as stored:
        return {name: stored[name].astype(np.float64) for name in stored.files}


def over_all(a: Arrays, mels: NDArray[np.float64]) -> list[dict[str, NDArray[np.float64]]]:
    """What each step says, from all frames at once: float64, nothing remembered."""
    padded = np.concatenate([np.full((2, BANDS), SILENCE), mels])
    x = np.array(
        [np.maximum(a["conv.w"] @ padded[at : at + 4].ravel() + a["conv.b"], 0) for at in range(0, len(mels), 2)]
    )
    for layer, dilation in enumerate(DILATIONS):
        past = np.concatenate([np.zeros((2 * dilation, WIDTH)), x])
        taps = np.concatenate([past[: len(x)], past[dilation : dilation + len(x)], x], axis=1)
        x = x + np.maximum(taps @ a[f"res{layer}.w"].T + a[f"res{layer}.b"], 0)
    heard = np.concatenate([x, memories(a, "gru", x)], axis=1)
    lips = np.concatenate([heard, memories(a, "lips", heard)], axis=1)
    hidden = np.maximum(lips @ a["lips1.w"].T + a["lips1.b"], 0)
    reported = []
    for logits, out in zip(
        heard[:, WIDTH:] @ a["head.w"].T + a["head.b"], hidden @ a["lips2.w"].T + a["lips2.b"], strict=True
    ):
        likely = np.exp(logits[:25]) / np.exp(logits[:25]).sum()
        heads = np.array(
            [*np.clip(out[:2], 0, 1), *(1 / (1 + np.exp(-out[2:]))), *(1 / (1 + np.exp(-logits[[25, 27]])))]
        )
        reported.append({"phonemes": likely, "heads": heads})
    return reported


def memories(a: Arrays, name: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a GRU remembers after each row."""
    size = a[f"{name}.wh"].shape[1]
    memory, out = np.zeros(size), []
    for row in x:
        given, kept = a[f"{name}.wi"] @ row + a[f"{name}.bi"], a[f"{name}.wh"] @ memory + a[f"{name}.bh"]
        reset, update = (1 / (1 + np.exp(-(given[s] + kept[s]))) for s in (slice(0, size), slice(size, 2 * size)))
        new = np.tanh(given[2 * size :] + reset * kept[2 * size :])
        memory = (1 - update) * new + update * memory
        out.append(memory)
    return np.array(out)


def mels(steps: int, seed: int = 0) -> NDArray[np.float64]:
    """Frames that change like speech: bands that swell and fall."""
    rng = np.random.default_rng(seed)
    moving = np.cumsum(rng.normal(0, 0.3, (2 * steps, BANDS)), axis=0)
    return np.asarray(np.clip(moving, -1.75, 1.75))


def run(network: MouthNetwork, frames: NDArray[np.float64]) -> list[NetworkStep]:
    return [step for step, _ in both(network, frames)]


def both(network: MouthNetwork, frames: NDArray[np.float64]) -> list[tuple[NetworkStep, LipState]]:
    going, mouth = network.run(), network.lips()
    return [
        (going.step(frames[at : at + 2].astype(np.float32)), mouth.step(going.state)) for at in range(0, len(frames), 2)
    ]


def numbers(step: NetworkStep, lips: LipState) -> list[float]:
    return [*lips.opening, *lips.closure, lips.gate, lips.voice, step.speech, step.tuck]


@pytest.mark.parametrize("seed", range(3))
def test_step_by_step_it_says_what_the_whole_network_says(weights: Arrays, seed: int) -> None:
    frames = mels(40, seed)
    network = MouthNetwork({name: value.astype(np.float32) for name, value in weights.items()})
    for number, ((step, lips), want) in enumerate(zip(both(network, frames), over_all(weights, frames), strict=True)):
        np.testing.assert_allclose(step.phonemes, want["phonemes"], atol=2e-4, err_msg=f"step {number}")
        np.testing.assert_allclose(numbers(step, lips), want["heads"], atol=4e-4, err_msg=f"step {number}")


@pytest.mark.parametrize("sizes", [[40], [1, 2, 3, 4, 5, 6, 7, 8, 4], [1] * 40, [37, 3]])
def test_many_steps_at_once_say_what_they_say_one_by_one(sizes: list[int]) -> None:
    network, frames = MouthNetwork.load(default_weights()), mels(40).astype(np.float32)
    alone, at_once, mixed, at = run(network, frames), network.run(), network.run(), 0
    for number, size in enumerate(sizes):
        piece = frames[2 * at : 2 * (at + size)]
        phonemes, speech = at_once.batch(piece)
        np.testing.assert_allclose(phonemes, [step.phonemes for step in alone[at : at + size]], atol=1e-5)
        np.testing.assert_allclose(speech, [step.speech for step in alone[at : at + size]], atol=1e-5)
        at += size
        if number % 2:  # a run takes both, in any order
            mixed.batch(piece)
        else:
            last = [mixed.step(piece[k : k + 2]) for k in range(0, len(piece), 2)][-1]
            np.testing.assert_allclose(last.phonemes, phonemes[-1], atol=1e-5)
        np.testing.assert_allclose(mixed.state, at_once.state, atol=1e-4)


def test_two_streams_do_not_hear_each_other() -> None:
    network = MouthNetwork.load(default_weights())
    one, other = mels(12, 4), mels(12, 5)
    alone = [step.phonemes for step in run(network, one)]
    first, second = network.run(), network.run()
    for at in range(0, 24, 2):
        step = first.step(one[at : at + 2].astype(np.float32))
        second.step(other[at : at + 2].astype(np.float32))
        np.testing.assert_array_equal(step.phonemes, alone[at // 2])


@pytest.mark.parametrize("frames", [np.full((40, BANDS), 1.75), np.full((40, BANDS), -1.75), mels(20) * 1000])
def test_whatever_it_hears_its_numbers_are_shares(frames: NDArray[np.float64]) -> None:
    for step, lips in both(MouthNetwork.load(default_weights()), frames):
        assert step.phonemes.shape == (len(CLASSES),) and float(step.phonemes.sum()) == pytest.approx(1, abs=1e-5)
        assert all(0 <= number <= 1 for number in numbers(step, lips))
        assert np.isfinite(step.phonemes).all() and (step.phonemes >= 0).all()


def test_from_silence_it_says_silence() -> None:
    for step, lips in both(MouthNetwork.load(default_weights()), np.full((60, BANDS), SILENCE))[10:]:
        assert CLASSES[int(step.phonemes.argmax())] == "sil" and step.speech < 0.05
        assert lips.opening[0] * lips.gate * lips.voice < 0.1


def test_what_is_said_later_cannot_change_what_was_said() -> None:
    network, frames = MouthNetwork.load(default_weights()), mels(20)
    other = frames.copy()
    other[30:] = 0.5
    for before, after in zip(run(network, frames)[:15], run(network, other)[:15], strict=True):
        np.testing.assert_array_equal(before.phonemes, after.phonemes)
    assert HEADS == len(CLASSES) + 3


FEATURES = VisemeFeatures.load()


class Apart(VisemeFeatures):
    """Every detector and every stream hears for itself."""

    def begin(self, fps: int) -> tuple[SpeechDetector, VisemeStream]:
        return self.detector(), self.stream(fps)

    def share(self, detector: VoiceActivityDetector, stream: FeatureStream) -> None:
        pass


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
    rng, listening, made = np.random.default_rng(seed), SpeechGate(features, fps), []
    made += listening.push(sound[: len(sound) // 2])
    listening.reset()
    at = 0
    while at < len(sound):
        size = int(rng.integers(1, 3000))
        made += listening.push(sound[at : at + size])
        at += size
    return made + listening.flush()


@pytest.mark.parametrize("fps", [24, 25, 29, 50, 60])
@pytest.mark.parametrize("seed", range(3))
def test_one_run_for_two_decides_as_two_runs_do(fps: int, seed: int) -> None:
    shared = decided(FEATURES, talk(seed), fps, seed)
    apart = decided(Apart(shipped_network()), talk(seed), fps, seed)
    assert len(shared) == len(apart)
    # a detector that shares has heard more of what was before, so that it may be sure a little sooner or later
    other = sum((one is None) != (two is None) for one, two in zip(shared, apart, strict=True))
    assert other <= 0.15 * len(shared)


def test_until_the_detector_sleeps_one_run_for_two_is_the_same_as_two_runs() -> None:
    sound = peak(spoken()[: 2 * RATE], -6)
    shared, apart = (decided(each, sound, 25, 0) for each in (FEATURES, Apart(shipped_network())))
    np.testing.assert_array_equal(np.array(shared), np.array(apart))


def test_speech_runs_the_network_once(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, step = 0, NetworkRun.step

    def counted(run: NetworkRun, mels: Array) -> NetworkStep:
        nonlocal steps
        steps += 1
        return step(run, mels)

    monkeypatch.setattr(NetworkRun, "step", counted)
    word = peak(spoken()[: 2 * RATE], -6)
    listening = SpeechGate(FEATURES, 25)
    listening.push(word)
    assert steps == len(word) // 320
    listening.push(np.zeros(2 * RATE, np.int16))
    slept = steps
    listening.push(word)
    woken = round(
        (WARM_S + 0.3 + 0.3) * RATE
    )  # what the stream hears first, what the detector does, and until it is sure
    assert len(word) // 320 <= steps - slept <= (len(word) + woken) // 320


def test_a_step_that_is_neither_the_last_nor_the_next_is_refused() -> None:
    shared, window = SharedNetworkRun(shipped_network()), np.zeros(560, np.float32)
    for wrong in (-1, 1):
        with pytest.raises(ValueError, match=f"step {wrong} "):
            shared.step(wrong, window)
    assert shared.step(0, window) is shared.step(0, window)
    shared.step(1, window)
    with pytest.raises(ValueError, match=r"step 0 .* step 1"):
        shared.step(0, window)

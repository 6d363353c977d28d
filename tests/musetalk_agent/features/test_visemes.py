"""The CPU features: streaming contract, silence and noise, loudness, cues."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from musetalk_agent.errors import WeightsMissing
from musetalk_agent.features.phonemes import (
    CLASSES,
    CLOSURE,
    JAW,
    LIP_TUCKS,
    LIPS_MEET,
    ROUNDING,
    TUCK,
    WIDTH,
    classes_of,
    spans,
)
from musetalk_agent.features.visemes import VisemeFeatures, default_weights
from musetalk_agent.media_types import Cue, frame_start, frames_begun

RATE = 16_000
Pcm = NDArray[np.int16]
SPOKEN = Path(__file__).parents[2] / "data" / "spoken_joe.npz"
"""Eight seconds of the CC0 voice joe with its sounds, made by tools/train_mouth/fixture.py."""


def spoken() -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Speech in -1..1 and its (class, start, end)."""
    with np.load(SPOKEN) as stored:
        coded = stored["mulaw"] / 127.5 - 1
        return np.sign(coded) * (256 ** np.abs(coded) - 1) / 255, stored["spans"]


@pytest.fixture(scope="module")
def features() -> VisemeFeatures:
    return VisemeFeatures.load()


def pcm(sound: NDArray[np.floating], dbfs: float) -> Pcm:
    sound = sound / (np.sqrt(np.mean(sound**2)) + 1e-12) * 10 ** (dbfs / 20)
    return (np.clip(sound, -1, 1) * 32767).astype(np.int16)


def babble(dbfs: float = -20.0) -> Pcm:
    return pcm(spoken()[0][:40_000], dbfs)


def whole(features: VisemeFeatures, sound: Pcm, fps: int = 25, cues: list[Cue] | None = None) -> NDArray[np.float32]:
    stream = features.stream(fps)
    stream.cue(cues or [])
    return np.array(stream.push(sound) + stream.flush())


def aperture(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors[:, JAW] * (1 - vectors[:, CLOSURE])


@pytest.mark.parametrize("fps", [15, 24, 25, 30, 50, 60])
@pytest.mark.parametrize("sizes", [(1, 7, 159), (320,), (641, 3), (5000, 17)])
def test_chunking_changes_nothing(features: VisemeFeatures, fps: int, sizes: tuple[int, ...]) -> None:
    sound = babble()[:20_000]
    stream, out, at, i = features.stream(fps), [], 0, 0
    while at < len(sound):
        out += stream.push(sound[at : at + sizes[i % len(sizes)]])
        at += sizes[i % len(sizes)]
        i += 1
    out += stream.flush()
    np.testing.assert_array_equal(np.array(out), whole(features, sound, fps))


@pytest.mark.parametrize("fps", [15, 23, 25, 29, 30, 48, 50, 60])
@pytest.mark.parametrize("samples", [0, 1, 319, 639, 640, 641, 1280, 4799, 16_000, 16_001])
def test_as_many_frames_as_begin(features: VisemeFeatures, fps: int, samples: int) -> None:
    stream = features.stream(fps)
    out = stream.push(np.zeros(samples, np.int16)) + stream.flush()
    assert len(out) == frames_begun(samples, fps)
    assert all(v.shape == (5,) and v.dtype == np.float32 for v in out)


@pytest.mark.parametrize("fps", [15, 25, 30, 50, 60])
def test_a_frame_comes_with_its_sixty_milliseconds(features: VisemeFeatures, fps: int) -> None:
    sound, stream, done = babble()[:12_000], features.stream(fps), 0
    for k in range(fps // 2):
        ready = frame_start(k + 1, fps) + features.lookahead_ms * RATE // 1000
        assert stream.push(sound[done : ready - 1]) == []
        assert len(stream.push(sound[ready - 1 : ready])) == 1
        done = ready


@pytest.mark.parametrize("fps", [15, 25, 30, 50, 60])
def test_nothing_later_than_the_look_ahead_is_read(features: VisemeFeatures, fps: int) -> None:
    sound = babble()
    k = fps // 2
    cut = frame_start(k + 1, fps) + features.lookahead_ms * RATE // 1000
    other = np.concatenate([sound[:cut], np.full(8000, 9000, np.int16)])
    np.testing.assert_array_equal(whole(features, sound, fps)[: k + 1], whole(features, other, fps)[: k + 1])


def test_reset_and_flush_begin_anew(features: VisemeFeatures) -> None:
    sound, stream = babble()[:9000], features.stream(25)
    first = stream.push(sound) + stream.flush()
    stream.push(sound[:3001])
    stream.reset()
    np.testing.assert_array_equal(np.array(first), np.array(stream.push(sound) + stream.flush()))


def test_values_keep_their_ranges(features: VisemeFeatures) -> None:
    vectors = whole(features, babble(-8))
    assert np.isfinite(vectors).all()
    assert (vectors[:, [JAW, ROUNDING, CLOSURE, TUCK]] >= 0).all() and (vectors <= 1).all() and (vectors >= -1).all()


def test_silence_keeps_the_mouth_at_rest(features: VisemeFeatures) -> None:
    assert np.abs(whole(features, np.zeros(RATE, np.int16))).max() < 0.02


def test_the_mouth_closes_within_80_ms_of_silence_and_stays(features: VisemeFeatures) -> None:
    sound, found = spoken()
    for kind, start, end in found:
        if CLASSES[kind] in ("ae", "a", "e") and end - start > 1500:
            vectors = aperture(
                whole(features, np.concatenate([pcm(sound[: end - 300], -20), np.zeros(RATE, np.int16)]))
            )
            last = -(-(end - 300) * 25 // RATE)
            assert vectors[last - 3 : last].max() > 0.15
            assert vectors[last + 2 :].max() < 0.05


@functools.cache
def _noises() -> dict[str, Pcm]:
    rng = np.random.default_rng(5)
    count = 3 * RATE
    t = np.arange(count) / RATE
    pink = np.fft.irfft(
        np.fft.rfft(rng.standard_normal(count)) / np.sqrt(np.maximum(np.fft.rfftfreq(count, 1 / RATE), 40)), count
    )
    clicks = np.zeros(count)
    for at in rng.integers(0, count - 400, 25):
        clicks[at : at + 300] += rng.standard_normal(300) * np.exp(-np.arange(300) / 50)
    hum = sum(np.sin(2 * np.pi * 50 * k * t) / k for k in (1, 2, 3, 5, 7))
    breath = pink * np.maximum(0, np.sin(2 * np.pi * 0.4 * t))
    buzz = sum(np.sin(2 * np.pi * 100 * k * t + k * k) * 0.9**k for k in range(1, 60))
    chords = [196, 247, 294, 262, 330, 392]
    music = sum(np.sin(2 * np.pi * k * np.repeat(chords, count // 6) * t) / k**1.5 for k in (1, 2, 3, 4))
    sounds = {
        "buzz": buzz,
        "swelling buzz": buzz * np.minimum(1, t),
        "pink": pink,
        "white": rng.standard_normal(count),
        "keyboard": clicks,
        "hum": hum,
        "hum that begins": hum * (t > 0.8),
        "breath": breath,
        "breath that begins": breath * (t > 0.6),
        "music": music * np.exp(-2 * (t % 0.5)),
    }
    return {f"{name} {level}": pcm(sound, level) for name, sound in sounds.items() for level in (-45, -30, -20)}


@pytest.mark.parametrize("name", sorted(_noises()))
def test_noise_does_not_speak(features: VisemeFeatures, name: str) -> None:
    """From the first frame on."""
    assert np.quantile(aperture(whole(features, _noises()[name])), 0.95) <= 0.06


def test_loudness_does_not_matter(features: VisemeFeatures) -> None:
    sizes = [np.quantile(aperture(whole(features, babble(level))), 0.95) for level in (-35, -28, -20, -12)]
    assert max(sizes) < 1.1 * min(sizes)


def test_vowels_differ(features: VisemeFeatures) -> None:
    sound, found = spoken()
    vectors = whole(features, pcm(sound, -20))
    seen: dict[str, list[NDArray[np.float32]]] = {}
    for kind, start, end in found:
        if end - start > 1000:
            seen.setdefault(CLASSES[kind], []).append(vectors[(start + end) // 2 * 25 // RATE])
    a, i, u = (np.mean(seen[name], axis=0) for name in ("a", "i", "u"))
    assert a[JAW] > i[JAW] + 0.1 and a[JAW] > u[JAW] + 0.1
    assert i[WIDTH] > a[WIDTH] + 0.3 and i[WIDTH] > u[WIDTH] + 0.5
    assert u[ROUNDING] > i[ROUNDING] + 0.3 and u[ROUNDING] > a[ROUNDING] + 0.2


def test_lips_meet_and_tuck_by_ear_alone(features: VisemeFeatures) -> None:
    sound, found = spoken()
    vectors = whole(features, pcm(sound, -20))
    made = aperture(vectors)
    quarter = np.quantile(made[made > 0.02], 0.95) / 4
    closed, tucked = [], []
    for kind, start, end in found:
        here = slice(max(0, start - 320) // 640, (end + 320) // 640 + 1)
        if kind in LIPS_MEET:
            closed.append(made[here].min() < quarter)
        if kind == LIP_TUCKS:
            tucked.append(vectors[here, TUCK].max() > 0.5)
    assert np.mean(closed) >= 0.75 and np.mean(tucked) >= 0.6


@pytest.mark.parametrize("fps", [15, 24, 30, 50, 60])
def test_the_middles_of_frames_agree_at_every_rate(features: VisemeFeatures, fps: int) -> None:
    """A frame of any rate shows what one of 25 fps with the same middle shows: the best lag between the two is none."""
    sound = pcm(spoken()[0], -20)
    usual, other = aperture(whole(features, sound)), aperture(whole(features, sound, fps))
    middles = (np.arange(len(usual)) + 0.5) / 25
    lags = np.arange(-40, 41, 5)
    found = [
        np.corrcoef(usual, np.interp(middles + lag / 1000, (np.arange(len(other)) + 0.5) / fps, other))[0, 1]
        for lag in lags
    ]
    assert abs(lags[int(np.argmax(found))]) <= 10
    assert max(found) > 0.95


def _cues(text: str, each: int = 1200, start: int = 3200) -> list[Cue]:
    return [Cue(symbol, start + i * each, start + (i + 1) * each) for i, symbol in enumerate(text.split())]


@pytest.mark.parametrize("fps", [15, 25, 30, 50, 60])
@pytest.mark.parametrize("each", [500, 777, 1200, 2000])
def test_known_lip_sounds_always_close(features: VisemeFeatures, fps: int, each: int) -> None:
    cues = _cues("m ɑ p ɑ b i m u b ə p ʌ m ɪ t ɑ v ɑ f i", each)
    vectors = whole(features, np.zeros(3200 + each * 22, np.int16), fps, cues)
    for cue in cues:
        frame = (cue.start + cue.end) // 2 * fps // RATE
        if cue.phoneme in "pbm":
            assert vectors[frame, CLOSURE] == 1
        if cue.phoneme in "fv":
            assert vectors[frame, TUCK] == 1


def test_known_vowels_open_and_round(features: VisemeFeatures) -> None:
    cues = _cues("t ɑ t u t i t", 3200)
    vectors = whole(features, np.zeros(3200 * 9, np.int16), 25, cues)
    a, u, i = (vectors[5 + 5 * n + 2] for n in (1, 3, 5))
    assert a[JAW] > i[JAW] + 0.2 and u[ROUNDING] > 0.6 and i[WIDTH] > 0.5
    assert vectors[5 + 5 * 2 + 4][ROUNDING] > vectors[5 + 5 * 4 + 4][ROUNDING] + 0.2  # /t/ before /u/ rounds already


def test_known_articulation_is_smooth(features: VisemeFeatures) -> None:
    vectors = whole(features, np.zeros(RATE * 2, np.int16), 25, _cues("h ə l oʊ h aʊ ɑːɹ j uː", 1600))
    assert np.abs(np.diff(vectors[:, JAW])).max() < 0.35


def test_where_no_cue_is_the_network_decides(features: VisemeFeatures) -> None:
    sound = babble()
    plain, mixed = whole(features, sound), whole(features, sound, 25, [Cue("m", 0, 3200)])
    np.testing.assert_array_equal(plain[5:], mixed[5:])


def test_cues_may_come_in_pieces(features: VisemeFeatures) -> None:
    cues = _cues("m ɑ p ɑ b i", 1200)
    stream, sound = features.stream(25), np.zeros(16_000, np.int16)
    stream.cue(cues[:3])
    out = stream.push(sound[:3200])
    stream.cue(cues[3:])
    out += stream.push(sound[3200:]) + stream.flush()
    np.testing.assert_allclose(np.array(out)[8:], whole(features, sound, 25, cues)[8:])


def test_marks_join_their_sounds() -> None:
    found = spans([("ˈ", 0, 10), ("ɑ", 10, 20), ("ː", 20, 30), (" ", 30, 35), ("p", 35, 50), (",", 50, 60)])
    assert [(start, end) for _, start, end in found] == [(0, 30), (30, 50), (50, 60)]
    assert len(classes_of("aɪ")) == 2 and classes_of(",") == classes_of("_")


def test_missing_or_broken_weights_are_reported(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing):
        VisemeFeatures.load(tmp_path / "none.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK not really")
    with pytest.raises(WeightsMissing):
        VisemeFeatures.load(tmp_path / "bad.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(WeightsMissing):
        VisemeFeatures.load(tmp_path / "other.npz")


@pytest.mark.parametrize("fps", [14, 61])
def test_frame_rates_outside_are_refused(features: VisemeFeatures, fps: int) -> None:
    with pytest.raises(ValueError, match="fps"):
        features.stream(fps)


def test_the_weights_are_small() -> None:
    assert default_weights().stat().st_size < 2_000_000

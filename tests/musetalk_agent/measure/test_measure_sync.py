"""The lag of lips: exact on curves with a known one, true on a film of the real pipeline, silent where it cannot know."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import av
import numpy as np
import pytest

from musetalk_agent.measure import measure_sync
from musetalk_agent.measure.lip_measures import MouthTrack
from musetalk_agent.measure.measure_sync import estimate_lag
from musetalk_agent.media_types import Pcm
from musetalk_agent.tools import render_film
from tests.musetalk_agent.tools.test_render_film import write_wav

RATE = 16_000
SPEECH = Path(__file__).resolve().parents[2] / "data" / "spoken_joe.npz"


def speech() -> Pcm:
    """The neural voice reading a few sentences, int16 mono 16 kHz."""
    with np.load(SPEECH, allow_pickle=False) as stored:
        coded = stored["mulaw"] / 127.5 - 1
    return (np.sign(coded) * np.expm1(np.abs(coded) * np.log(256)) / 255 * 32767).astype(np.int16)


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    measure_sync.add_arguments(parser)
    return measure_sync.run(parser.parse_args(argv))


def babble(times: np.ndarray, seed: int = 0) -> np.ndarray:
    """A mouth that opens some four times a second, as a function of time."""
    rng = np.random.default_rng(seed)
    grid = np.arange(-5, 40, 0.12)
    return np.interp(times, grid, 0.05 + 0.04 * rng.standard_normal(len(grid)))


@pytest.mark.parametrize("lag_ms", [-333, -120, -7, 0, 13, 40, 200, 480])
@pytest.mark.parametrize("fps", [25, 30])
def test_a_known_lag_is_found_between_frames(lag_ms: int, fps: int) -> None:
    heard_at, seen_at = np.arange(0, 10, 0.02), 1000.0 + np.arange(0, 10, 1 / fps)
    drift = 0.1 * np.sin(2 * np.pi * seen_at / 7)  # a head that turns
    noise = np.random.default_rng(1).normal(0, 0.004, len(seen_at))
    seen = MouthTrack(seen_at, babble(seen_at - 1000 - lag_ms / 1000) * 0.5 + drift + noise)
    heard = MouthTrack(1000 + heard_at, babble(heard_at))
    seen.aperture[40:55] = np.nan  # a hand before the mouth
    found = estimate_lag(seen, heard)
    assert found is not None
    assert 1000 * found.lag_s == pytest.approx(lag_ms, abs=4)
    assert found.correlation > 0.85 and found.confidence > 0.5


def test_another_voice_a_lag_out_of_reach_and_stillness_have_no_confidence() -> None:
    at, frames = np.arange(0, 10, 0.02), np.arange(0, 10, 0.04)
    other = [
        estimate_lag(MouthTrack(frames, babble(frames, seed)), MouthTrack(at, babble(at))) for seed in range(1, 20)
    ]
    assert float(np.median([o.confidence for o in other if o])) < 0.15
    assert max(o.confidence for o in other if o) < 0.35
    beyond = estimate_lag(MouthTrack(frames, babble(frames - 0.9)), MouthTrack(at, babble(at)))
    assert beyond is not None and beyond.confidence < measure_sync.LEAST_CONFIDENCE
    still = estimate_lag(MouthTrack(frames, np.full(len(frames), 0.03)), MouthTrack(at, babble(at)))
    assert still is not None and (still.correlation, still.confidence) == (0.0, 0.0)


def test_too_little_to_compare_is_none() -> None:
    at, frames = np.arange(0, 10, 0.02), np.arange(0, 10, 0.04)
    heard = MouthTrack(at, babble(at))
    blind = babble(frames)
    blind[40:] = np.nan
    assert estimate_lag(MouthTrack(frames, blind), heard) is None
    assert estimate_lag(MouthTrack(frames + 8.5, babble(frames)), heard) is None
    assert estimate_lag(MouthTrack(frames, babble(frames)), MouthTrack(at[:0], at[:0])) is None


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo avatar saying six seconds, by the warp engine."""
    folder = tmp_path_factory.mktemp("film")
    source = write_wav(folder / "in.wav", speech()[: 6 * RATE], RATE)
    parser = argparse.ArgumentParser()
    render_film.add_arguments(parser)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AVATAR_CACHE_DIR", str(folder / "cache"))
        argv = ["--avatar", "demo", "--audio", str(source), "-o", str(folder / "out.mp4"), "--engine", "warp"]
        assert render_film.run(parser.parse_args([*argv, "--width", "320", "--height", "320"])) == 0
    return folder / "out.mp4"


def test_a_rendered_film_is_in_step(film: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(film), "--json") == 0
    reported = json.loads(capsys.readouterr().out)
    assert sorted(reported) == ["confidence", "correlation", "lag_ms"]
    assert abs(reported["lag_ms"]) <= 10 and reported["correlation"] > 0.8 and reported["confidence"] > 0.5
    assert run(str(film)) == 0
    assert "(correlation 0.9" in capsys.readouterr().out


@pytest.mark.parametrize("shift_ms", [-160, 90])
def test_a_shifted_voice_is_measured_to_a_quarter_of_a_frame(
    film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], shift_ms: int
) -> None:
    """The lips become late by as much as the voice comes earlier."""
    samples = shift_ms * RATE // 1000
    voice = speech()[: 6 * RATE]
    moved = voice[samples:] if samples > 0 else np.concatenate([np.zeros(-samples, np.int16), voice])
    assert run(str(film), "--json") == 0
    natural = json.loads(capsys.readouterr().out)["lag_ms"]
    assert run(str(film), "--audio", str(write_wav(tmp_path / "moved.wav", moved, RATE)), "--json") == 0
    assert json.loads(capsys.readouterr().out)["lag_ms"] == pytest.approx(natural + shift_ms, abs=10)


def test_it_says_when_it_cannot_tell(film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    silence = write_wav(tmp_path / "silence.wav", np.zeros(6 * RATE, np.int16), RATE)
    backwards = write_wav(tmp_path / "backwards.wav", speech()[: 6 * RATE][::-1], RATE)
    faceless = tmp_path / "faceless.mp4"
    with av.open(str(faceless), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 128
        for _ in range(60):
            picture = np.full((128, 128, 3), 90, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    for argv, sentence in (
        ((str(film), "--audio", str(silence)), "only 0.0 s of open-mouthed speech are heard"),
        ((str(film), "--audio", str(backwards)), "the lips do not follow this sound"),
        ((str(faceless), "--audio", str(backwards)), "60 of 60 frames show no face"),
        ((str(faceless),), "faceless.mp4 has no sound track"),
        ((str(silence),), "silence.wav has no picture track"),
        ((str(tmp_path / "none.mp4"),), "none.mp4 cannot be read: No such file"),
    ):
        assert run(*argv) == 1
        seen = capsys.readouterr()
        assert sentence in seen.err and seen.out == ""
    assert run(str(film), "--audio", str(silence), "--json") == 1
    reported = json.loads(capsys.readouterr().out)
    assert reported["lag_ms"] is None and "speech are heard" in reported["problem"]

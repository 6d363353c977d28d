"""Films by the pipeline: in step to the frame, the same each time, and nothing left behind when something is wrong."""

from __future__ import annotations

import argparse
import itertools
import signal
import subprocess
import sys
import wave
from collections.abc import Sequence
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from musetalk_agent.engines.interface import InFlightBatch, PatchRequest
from musetalk_agent.engines.pattern import THRESHOLD, PatternEngine
from musetalk_agent.media_types import Pcm
from musetalk_agent.tools import render_film
from musetalk_agent.weights import default_models_dir
from tests.musetalk_agent.avatars.clips import encoded, flat, frames_zip, moving
from tests.waiting import NEVER_S, wait_until


def write_wav(path: Path, samples: Pcm, rate: int) -> Path:
    """int16 `[n]` or `[n, channels]` as a WAV file."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.ascontiguousarray(samples, "<i2").tobytes())
    return path


def bursts(seconds: float, rate: int, channels: int = 1) -> Pcm:
    """Loud tones of odd lengths at odd moments, and silence between them."""
    t = np.arange(round(seconds * rate)) / rate
    loud = ((t > 0.37) & (t < 0.61)) | ((t > 1.013) & (t < 1.4)) | (t > seconds - 0.11)
    tone = (12_000 * loud * np.sin(2 * np.pi * 313 * t)).astype(np.int16)
    return tone if channels == 1 else np.stack([tone] * channels, 1)


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    render_film.add_arguments(parser)
    return render_film.run(parser.parse_args(argv))


def film(path: Path) -> tuple[list[float], np.ndarray]:
    """Times, and I420 pictures `[n, h·3/2, w]`."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return [float(f.pts * f.time_base) for f in frames], np.stack([f.to_ndarray() for f in frames])


def loudness(samples: Pcm, rate: int, fps: int) -> np.ndarray:
    """RMS of every frame's own stretch of sound, straight from the definition."""
    mixed = samples.astype(float).reshape(len(samples), -1).mean(1) / 32768
    frames = int(np.ceil(len(mixed) * fps / rate))
    edges = [round(k * rate / fps) for k in range(frames + 1)]
    return np.array([np.sqrt((mixed[a:b] ** 2).sum() * fps / rate) for a, b in itertools.pairwise(edges)])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVATAR_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("fps", "rate", "channels", "seconds"),
    [(25, 16_000, 1, 3.0), (30, 44_100, 2, 2.5), (50, 48_000, 1, 2.013), (15, 22_050, 2, 2.0), (24, 96_000, 1, 2.0)],
)
def test_white_frames_are_exactly_the_loud_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fps: int, rate: int, channels: int, seconds: float
) -> None:
    sound = bursts(seconds, rate, channels)
    source, target = write_wav(tmp_path / "in.wav", sound, rate), tmp_path / "out.mp4"
    small = ("--width", "64", "--height", "64")
    done = run(
        "--avatar", "-", "--audio", str(source), "-o", str(target), "--engine", "pattern", "--fps", str(fps), *small
    )
    assert done == 0
    times, pictures = film(target)
    expected = loudness(sound, rate, fps)
    assert times == pytest.approx([k / fps for k in range(len(expected))], abs=1e-4)
    clear = np.abs(expected - THRESHOLD) > 0.01  # the way to 16 kHz may tip a frame that lies on the threshold
    assert clear.mean() > 0.85
    np.testing.assert_array_equal((pictures[:, 32, 32] > 128)[clear], (expected > THRESHOLD)[clear])
    with av.open(str(target)) as container:
        track = container.streams.audio[0]
        assert (track.rate, len(track.layout.channels)) == (min(rate, 48_000), channels)
    reported = capsys.readouterr().out
    assert f"{len(expected)} frames of 64×64 at {fps} fps" in reported and "× real time" in reported
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "cache") == ["in.wav", "out.mp4"]


def test_sound_in_other_wrappings_and_twice_the_same_film(tmp_path: Path) -> None:
    sound = bursts(2.0, 32_000)
    mp3 = tmp_path / "in.mp3"
    with av.open(str(mp3), "w") as container:
        stream = container.add_stream("libmp3lame", rate=32_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(sound[None], format="s16", layout="mono")
        frame.sample_rate = 32_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    made = []
    for name in ("a.mp4", "b.mp4"):
        target = tmp_path / name
        assert run("--avatar", "x", "--audio", str(mp3), "-o", str(target), "--engine", "pattern", "--width", "64") == 0
        made.append(film(target)[1])
    np.testing.assert_array_equal(*made)
    whites = np.flatnonzero(made[0][:, 256, 32] > 128) / 25
    assert 0.36 <= whites[0] <= 0.44  # the MP3 decoder's own delay included


def test_refusals_have_a_sentence_a_code_and_leave_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = str(write_wav(tmp_path / "in.wav", bursts(1.0, 16_000), 16_000))
    text = tmp_path / "text.wav"
    text.write_text("no sound at all")
    silent = tmp_path / "silent.mp4"
    with av.open(str(silent), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    grey = tmp_path / "grey.png"
    grey.write_bytes(encoded(flat(width=200, height=200)))
    out = str(tmp_path / "out.mp4")
    before = sorted(tmp_path.iterdir())
    pattern = ("--engine", "pattern")
    for argv, code, reported in (
        (("--avatar", "x", "--audio", str(tmp_path / "none.wav"), "-o", out, *pattern), 1, "none.wav cannot be read"),
        (("--avatar", "x", "--audio", str(text), "-o", out, *pattern), 1, "text.wav is no sound file"),
        (("--avatar", "x", "--audio", str(silent), "-o", out, *pattern), 1, "silent.mp4 has no sound track"),
        (("--avatar", str(grey), "--audio", good, "-o", out, "--engine", "warp"), 1, "no_face_in_avatar"),
        (("--avatar", "sha256:0", "--audio", good, "-o", out, "--engine", "warp"), 1, "avatar_not_found"),
        (("--avatar", str(tmp_path / "no.zip"), "--audio", good, "-o", out, "--engine", "warp"), 1, "cannot be read"),
        (("--avatar", "x", "--audio", good, "-o", str(tmp_path / "no" / "x.mp4"), *pattern), 1, "cannot be written"),
        (("--avatar", "x", "--audio", good, "-o", str(tmp_path / "x.avi"), *pattern), 2, "does not end in .mp4"),
        (("--avatar", "x", "--audio", str(silent), "-o", str(silent), *pattern), 2, "over its own source"),
        (("--avatar", "x", "--audio", good, "-o", out, "--fps", "14", *pattern), 2, "fps 14"),
    ):
        assert run(*argv) == code, argv
        seen = capsys.readouterr()
        assert reported in seen.err and seen.out == ""
    assert [p for p in sorted(tmp_path.iterdir()) if p.name != "cache"] == before


def test_a_film_with_frames_that_failed_is_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = PatternEngine.launch

    def sometimes(self: PatternEngine, batch: Sequence[PatchRequest]) -> InFlightBatch:
        if batch[0].feature[0] > 0.3:
            raise ValueError("no luck")
        return launch(self, batch)

    monkeypatch.setattr(PatternEngine, "launch", sometimes)
    sound = np.concatenate([bursts(1.0, 16_000), bursts(1.0, 16_000) * 2])
    source, target = write_wav(tmp_path / "in.wav", sound, 16_000), tmp_path / "out.mp4"
    assert run("--avatar", "x", "--audio", str(source), "-o", str(target), "--engine", "pattern") == 1
    assert "the engine failed on some frames (ValueError: no luck)" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "cache") == ["in.wav"]


def test_musetalk_speaks_in_a_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights: a face of noise, and only there."""
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from tests.fakes.weights import write_models

    write_models(tmp_path / "models", scale="tiny")
    (tmp_path / "models" / "face").symlink_to(default_models_dir() / "face")
    monkeypatch.setenv("MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("MUSETALK_DEVICE", "cpu")
    clip = tmp_path / "clip.zip"
    clip.write_bytes(frames_zip(moving(3, 256, 0.0)))
    source, target = write_wav(tmp_path / "in.wav", bursts(0.4, 16_000), 16_000), tmp_path / "out.mp4"
    assert run("--avatar", str(clip), "--audio", str(source), "-o", str(target), "--engine", "musetalk") == 0
    _, pictures = film(target)
    still = cv2.cvtColor(moving(1, 256)[0], cv2.COLOR_BGR2YUV_I420)
    change = np.abs(pictures.astype(int) - still)[:, :256].mean(0)
    assert len(pictures) == 10
    assert change[150:190, 110:150].mean() > 10 * change[:50].mean()


@pytest.mark.usefixtures("heeded_ctrl_c")
def test_ctrl_c_leaves_no_half_film(tmp_path: Path) -> None:
    source = write_wav(tmp_path / "in.wav", bursts(600.0, 16_000), 16_000)
    program = "import sys; from tests.musetalk_agent.tools.test_render_film import run; sys.exit(run(*sys.argv[1:]))"
    argv = ["--avatar", "x", "--audio", str(source), "-o", str(tmp_path / "out.mp4"), "--engine", "pattern"]
    child = subprocess.Popen([sys.executable, "-c", program, *argv], stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: any(p.suffix == ".part" and p.stat().st_size > 0 for p in tmp_path.iterdir()))
        assert child.poll() is None
        child.send_signal(signal.SIGINT)
        reported = child.communicate(timeout=NEVER_S)[1]
    finally:
        child.kill()
    assert child.returncode == 130 and "interrupted; nothing was written" in reported and "Traceback" not in reported
    assert [p.name for p in tmp_path.iterdir() if p.name != "cache"] == ["in.wav"]

"""The reader of the mouth network's corpus, from a folder laid out as its publisher ships it: made films, sounds and word times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import wave
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from musetalk_agent.media_types import Pixels
from tests.musetalk_agent.avatars.clips import face

ROOT = Path(__file__).parents[2]
FRAMES, SAMPLES, RATE = 75, 48_000, 16_000
WIDTH, HEIGHT = 360, 288
WORDS = "0 12500 sil\n12500 18500 bin\n18500 23500 blue\n23500 74500 sil\n"
OPEN = range(30, 45)
"""Frames in which the made mouth is open."""
Sound = NDArray[np.int16]


def picture(opening: int) -> Pixels:
    """The demo face in a picture as wide as the corpus's, its lower lip `opening` pixels further down, dark between the lips."""
    side = face(HEIGHT)
    if opening:
        line, left, right = round(0.5635 * HEIGHT), round(0.45 * HEIGHT), round(0.60 * HEIGHT)
        lower = side[line : line + 40, left:right].copy()
        side[line + opening : line + opening + 40 - opening, left:right] = lower[: 40 - opening]
        side[line : line + opening, left:right] = 25
    edge = (WIDTH - HEIGHT) // 2
    return np.asarray(cv2.copyMakeBorder(side, 0, 0, edge, edge, cv2.BORDER_REPLICATE), np.uint8)


def tone(hz: float, rate: int, seconds: float) -> Sound:
    """A sine of half the full scale."""
    return (16_000 * np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate)).astype(np.int16)


def film(path: Path, pictures: Sequence[Pixels], sound: Sound | None) -> None:
    """MPEG-1 with 25 pictures a second and mono MP2 of 44.1 kHz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w", format="mpeg") as container:
        video = container.add_stream("mpeg1video", rate=25)
        video.width, video.height, video.pix_fmt, video.bit_rate = WIDTH, HEIGHT, "yuv420p", 2_000_000
        voice = None if sound is None else container.add_stream("mp2", rate=44_100, layout="mono")
        for number, shown in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(shown, format="bgr24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if voice is not None and sound is not None:
            block = av.AudioFrame.from_ndarray(sound[None], format="s16", layout="mono")
            block.sample_rate, block.pts, block.time_base = 44_100, 0, Fraction(1, 44_100)
            container.mux(voice.encode(block))
            container.mux(voice.encode(None))


def write_wav(path: Path, sound: Sound, rate: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(sound.tobytes())


def read(corpus: Path, cache: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs the reader as its README says."""
    command = [sys.executable, str(ROOT / "tools" / "train_mouth" / "talkers.py"), str(corpus), str(cache), *options]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)


def frequency(sound: Sound) -> float:
    """Of the strongest partial, in Hz."""
    return float(np.argmax(np.abs(np.fft.rfft(sound[:RATE].astype(float)))))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Talker s1 as in the corpus's `.zip` files, s2 as in its large videos, and clips that cannot be used."""
    root = tmp_path_factory.mktemp("grid")
    mouth = [picture(14 if number in OPEN else 0) for number in range(FRAMES)]
    film(root / "s1" / "bbaf2n.mpg", mouth, tone(440, 44_100, 2.978))
    film(root / "s1" / "bbaf3s.mpg", mouth[:70], tone(440, 44_100, 2.8))
    film(root / "s2" / "video" / "mpg_6000" / "lwwz9a.mpg", mouth[:30], tone(440, 44_100, 1.2))
    for clip in ("s1/bbaf2n", "s2/lwwz9a"):
        (root / "alignments" / clip).parent.mkdir(parents=True, exist_ok=True)
        (root / "alignments" / f"{clip}.align").write_text(WORDS)
    write_wav(root / "audio_25k" / "s1" / "bbaf2n.wav", tone(1000, 25_000, 3.1), 25_000)
    film(root / "s1" / "empty1.mpg", [np.full((HEIGHT, WIDTH, 3), 127, np.uint8)] * 5, tone(440, 44_100, 0.2))
    film(root / "s1" / "silent.mpg", mouth[:5], None)
    (root / "s1" / "damage.mpg").write_bytes(b"no film" * 500)
    film(root / "s2" / "video" / "mpg_6000" / "words1.mpg", mouth[:5], tone(440, 44_100, 0.2))
    (root / "alignments" / "s2" / "words1.align").write_text("0 soon sil\n")
    return root


@pytest.fixture(scope="module")
def result(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that the reader made of the corpus, and what it printed."""
    cache = tmp_path_factory.mktemp("cache")
    done = read(corpus, cache)
    assert done.returncode == 0, done.stderr
    return cache / "real", done.stdout


def test_films_sounds_and_words_become_clips(result: tuple[Path, str]) -> None:
    folder, _ = result
    assert sorted(path.name for path in folder.iterdir()) == ["s1.npz", "s2.npz"]
    with np.load(folder / "s1.npz") as stored:
        first = {key: stored[key] for key in stored.files}
    assert first["names"].tolist() == ["bbaf2n", "bbaf3s"]
    assert first["sound"].shape == (2, SAMPLES) and first["sound"].dtype == np.int16
    assert first["aperture"].shape == first["width"].shape == (2, FRAMES)
    assert np.isfinite(first["aperture"]).all() and np.isfinite(first["width"]).all()
    shut, opened = np.delete(first["aperture"], OPEN, axis=1), first["aperture"][:, OPEN[1] : OPEN[-1]]
    assert shut[:, : OPEN[0] - 1].max() < 0.03 and opened.min() > 0.06
    assert (0.3 < first["width"]).all() and (first["width"] < 0.7).all()
    one, other = [json.loads(str(words)) for words in first["words"]]
    assert one == [["sil", 0.0, 0.5], ["bin", 0.5, 0.74], ["blue", 0.74, 0.94], ["sil", 0.94, 2.98]]
    assert other == []
    with np.load(folder / "s2.npz") as stored:
        assert stored["names"].tolist() == ["lwwz9a"] and len(json.loads(str(stored["words"][0]))) == 4
        assert stored["aperture"].shape == (1, FRAMES)
        assert (stored["aperture"][0, 29:] == stored["aperture"][0, 29]).all()
        assert not stored["sound"][0, 2 * RATE :].any()


def test_the_sound_is_the_corpus_s_own_where_it_is_there_else_the_film_s(result: tuple[Path, str]) -> None:
    with np.load(result[0] / "s1.npz") as stored:
        assert [frequency(sound) for sound in stored["sound"]] == [1000, 440]


def test_clips_that_cannot_be_used_are_named_and_left_out(result: tuple[Path, str]) -> None:
    left_out = {line.split(" is left out: ")[0]: line for line in result[1].splitlines() if " is left out: " in line}
    assert sorted(Path(name).name for name in left_out) == ["damage.mpg", "empty1.mpg", "silent.mpg", "words1.mpg"]
    assert "no face in any picture" in left_out["s1/empty1.mpg"] and "has no sound" in left_out["s1/silent.mpg"]
    assert "damaged" in left_out["s1/damage.mpg"] and "words1.align" in left_out["s2/video/mpg_6000/words1.mpg"]


def test_at_most_so_many_clips_of_a_talker(corpus: Path, tmp_path: Path) -> None:
    assert read(corpus, tmp_path, "--most", "1").returncode == 0
    with np.load(tmp_path / "real" / "s1.npz") as stored:
        assert stored["names"].tolist() == ["bbaf2n"]


def test_a_folder_without_clips_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    done = read(tmp_path / "corpus", tmp_path / "cache")
    assert done.returncode == 2 and "no clip that can be used" in done.stderr

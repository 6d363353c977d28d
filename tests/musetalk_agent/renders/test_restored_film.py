"""`musetalk-agent restore`: pictures and films whose faces a known network tints."""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from musetalk_agent.avatars.face_restorer import RESTORER
from musetalk_agent.renders import restore_command
from musetalk_agent.weights import Manifest, default_models_dir
from tests.fakes.tiny_restorer import write_restorer
from tests.musetalk_agent.avatars.clips import face, moving

TIMES = (0, 1, 2, 5, 6, 7)
"""Of the film's frames, in twenty-fifths of a second: one is shown three times as long."""


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models folder with the face models and a network that takes 30 levels of red, whose size no manifest minds."""
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "face").symlink_to(default_models_dir() / "face")
    write_restorer(folder, tint=(-30, 0, 0))
    known = Manifest.load()
    free = known.entries[RESTORER].model_copy(update={"size": None, "sha256": None})
    monkeypatch.setattr(restore_command.Manifest, "load", lambda: Manifest({**known.entries, RESTORER: free}))
    monkeypatch.setenv("MODELS_DIR", str(folder))
    return folder


def restore(*argv: object) -> int:
    parser = argparse.ArgumentParser()
    restore_command.add_arguments(parser)
    return restore_command.run(parser.parse_args([str(one) for one in argv]))


def speak(film: av.container.OutputContainer, audio: av.AudioStream) -> None:
    tone = (8000 * np.sin(np.arange(8000) / 5)).astype(np.int16)[None]
    heard = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
    heard.sample_rate, heard.pts, heard.time_base = 16000, 0, Fraction(1, 16000)
    film.mux(audio.encode(heard))
    film.mux(audio.encode(None))


def write_film(path: Path, side: int = 320) -> Path:
    with av.open(str(path), "w") as film:
        video = film.add_stream("libx264", rate=25, options={"crf": "8", "bf": "0"})
        video.width = video.height = side
        video.pix_fmt = "yuv420p"
        audio = film.add_stream("aac", rate=16000, layout="mono")
        for at, picture in zip(TIMES, moving(len(TIMES), side), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts, frame.time_base = at, Fraction(1, 25)
            film.mux(video.encode(frame))
        film.mux(video.encode(None))
        speak(film, audio)
    return path


def watched(path: Path) -> tuple[list[float], list[np.ndarray], bytes]:
    """Times in seconds after the sound's beginning, pictures, and the sound as it is coded."""
    with av.open(str(path)) as film:
        frames = list(film.decode(video=0))
    with av.open(str(path)) as film:
        packets = [packet for packet in film.demux(audio=0) if packet.pts is not None]
    sound = b"".join(bytes(packet) for packet in packets)
    begins = float(packets[0].pts * packets[0].time_base)
    return [float(f.pts * f.time_base) - begins for f in frames], [f.to_ndarray(format="bgr24") for f in frames], sound


def less_red(made: np.ndarray, given: np.ndarray) -> np.ndarray:
    return given[..., 2].astype(int) - made[..., 2]


@pytest.mark.parametrize("kind", ["mp4", "mkv", "mov"])
def test_a_film_s_faces_are_restored_in_every_frame_and_all_else_stays(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = write_film(tmp_path / "given.mp4")
    target = tmp_path / f"made.{kind}"
    assert restore(given, "-o", target, "--strength", 1) == 0
    assert "faces restored in 6 of 6 frames, on the processor" in capsys.readouterr().out
    (times, before, sound), (at, after, copied) = watched(given), watched(target)
    assert at == pytest.approx(times, abs=0.002) and copied == sound
    for one, other in zip(before, after, strict=True):
        change = less_red(other, one)
        assert change[120:200, 130:190].mean() == pytest.approx(30, abs=5), "the face"
        assert abs(change[:20].mean()) < 2 and abs(change[-20:].mean()) < 2, "what is around it"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["given.mp4", target.name, "models"])


def test_a_picture_is_restored_as_much_as_is_asked_for(tmp_path: Path) -> None:
    given = tmp_path / "photo.PNG"
    assert cv2.imwrite(str(given), face(320))
    assert restore(given, "-o", tmp_path / "half.png", "--strength", 0.5) == 0
    change = less_red(cv2.imread(str(tmp_path / "half.png")), face(320))
    assert change[140:180, 145:175].mean() == pytest.approx(15, abs=3)


def test_a_face_with_more_pixels_than_the_network_makes_is_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = cv2.resize(face(512), (1400, 1400), interpolation=cv2.INTER_CUBIC)
    assert cv2.imwrite(str(tmp_path / "large.png"), large)
    assert restore(tmp_path / "large.png", "-o", tmp_path / "made.png") == 0
    assert np.array_equal(cv2.imread(str(tmp_path / "made.png")), large)
    printed = capsys.readouterr()
    assert "restored in 0 of 1 frames" in printed.out and "more pixels than the network makes" in printed.err


def test_without_weights_the_code_and_the_command_that_fetches_them_are_said(
    tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (models / RESTORER).unlink()
    given = write_film(tmp_path / "given.mp4")
    assert restore(given, "-o", tmp_path / "made.mp4") == 1
    printed = capsys.readouterr().err
    assert printed.startswith("weights_missing: ") and "fetch-models restore" in printed
    own = write_restorer(tmp_path / "own")
    assert restore(given, "-o", tmp_path / "made.mp4", "--network", own) == 0


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (("given.mp4", "-o", "made.avi"), "does not end in one of .mp4, .mkv, .mov"),
        (("given.mp4", "-o", "made.mp4", "--strength", "2"), "--strength 2.0: give 0 … 1."),
        (("none.mp4", "-o", "made.mp4"), "none.mp4 is no file."),
        (("given.mp4", "-o", "given.mp4"), "written over its own source"),
    ],
)
def test_what_cannot_be_begun_is_refused_with_a_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: tuple[str, ...],
    why: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_film(tmp_path / "given.mp4")
    assert restore(*argv) == 2
    assert why in capsys.readouterr().err


@pytest.mark.parametrize("name", ["noise.mp4", "noise.png", "sound.mp4"])
def test_a_file_that_is_no_film_or_shows_nothing_leaves_nothing(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / name
    if name == "sound.mp4":
        with av.open(str(given), "w") as film:
            speak(film, film.add_stream("aac", rate=16000, layout="mono"))
    else:
        given.write_bytes(bytes(range(256)) * 40)
    target = tmp_path / f"made{given.suffix}"
    assert restore(given, "-o", target) == 1
    assert str(given) in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "models"])


def test_a_folder_that_cannot_be_written_and_an_interruption_are_reported_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = write_film(tmp_path / "given.mp4")
    assert restore(given, "-o", tmp_path / "nowhere" / "made.mp4") == 1
    assert "No such file or directory" in capsys.readouterr().err

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("musetalk_agent.renders.restore_command.FrameRestorer.frame", interrupted)
    assert restore(given, "-o", tmp_path / "made.mp4") == 130
    assert "nothing was written" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given.mp4", "models"]

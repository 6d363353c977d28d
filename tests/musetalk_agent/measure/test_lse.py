"""LSE-C and LSE-D: cepstra, network and figures as upstream has them, a planted shift, the command with and without weights.

The figures from upstream were made once with python_speech_features 0.6 and joonson/syncnet_python (as in syncnet-python 0.2.3).
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from musetalk_agent.errors import WeightsInvalid
from musetalk_agent.measure import lip_measures
from musetalk_agent.measure.lip_measures import VideoFaces, mfcc
from musetalk_agent.media_types import Pcm, Pixels
from musetalk_agent.tools import render_film
from musetalk_agent.weights import Manifest, ModelStore, default_models_dir
from tests.musetalk_agent.measure.test_measure_sync import run, speech
from tests.musetalk_agent.tools.test_render_film import write_wav

if TYPE_CHECKING:
    from torch import Tensor

RATE = 16_000
UPSTREAM_KEYS = "a1fa7da255a543b98540e3ca3adb15c5101c73e1543711b1e7fee6a5cc0906e4"
"""sha256 of the lines `name [shape]` of upstream's state dict."""


def tones() -> Pcm:
    """A quarter of a second of two tones and a sawtooth, with a hole of digital silence."""
    n = np.arange(4000)
    tone = 6000 * np.sin(2 * np.pi * 220 * n / RATE) + 3000 * np.sin(2 * np.pi * 1733 * n / RATE + 1)
    made = np.round(tone + 800 * ((n * 7919) % 1000 - 500) / 500).astype(np.int16)
    made[2500:3300] = 0
    return made


def test_the_cepstra_are_those_of_python_speech_features() -> None:
    found = mfcc(tones())
    expected = {
        0: "19.908795 -9.034232 -10.90999 9.532665 37.515483 5.234901 -36.185944 -24.444404 -3.950018 -20.191428"
        " -31.769501 -23.395231 -5.747594",
        10: "19.921536 -6.881219 -13.511454 -3.189572 27.34436 -1.897751 -41.89364 -24.143697 -6.405518 -23.575405"
        " -34.956357 -30.378212 -10.332684",
        18: "-36.043653 0 0 0 0 0 0 0 0 0 0 0 0",  # digital silence
        23: "19.741047 -4.849158 -10.408145 2.702052 35.108089 3.536476 -39.27744 -19.631992 1.751083 -16.155852"
        " -28.364784 -25.023445 -7.656037",
    }
    assert found.shape == (24, 13)
    for row, values in expected.items():
        np.testing.assert_allclose(found[row], [float(value) for value in values.split()], atol=1e-6)


@pytest.mark.parametrize(("samples", "windows"), [(1, 1), (400, 1), (401, 2), (16_000, 99), (48_123, 300)])
def test_the_last_window_is_filled_up(samples: int, windows: int) -> None:
    assert mfcc(np.resize(tones(), samples)).shape == (windows, 13)


def vectors(seed: int, frames: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(frames, 64)).astype(np.float32)


@pytest.mark.parametrize("late", [-15, -4, 0, 1, 15])
def test_a_planted_shift_is_found(late: int) -> None:
    said = vectors(0, 160)
    lips = said[30 - late : 130 - late] + 0.1 * vectors(1, 100)
    found = lip_measures.score(lips, said[30:130])
    assert found.offset_ms == 40 * late
    # Strangers are √(2·64) apart.
    assert found.distance < 0.8 + abs(late) / 10 and found.distance + found.confidence == pytest.approx(11.3, abs=0.4)


def test_the_figures_are_those_of_the_definition() -> None:
    """Straight from the definition, loop by loop: zeros beyond the ends, 1e-6 in every difference, the middle one of 31 means."""
    lips, said = vectors(2, 60), vectors(3, 60)
    means = []
    for shift in range(-15, 16):
        total = 0.0
        for frame in range(60):
            beside = said[frame + shift] if 0 <= frame + shift < 60 else np.zeros(64)
            total += float(np.sqrt(((lips[frame].astype(float) - beside + 1e-6) ** 2).sum()))
        means.append(total / 60)
    found = lip_measures.score(lips, said)
    assert found.distance == pytest.approx(min(means), rel=1e-9)
    assert found.confidence == pytest.approx(sorted(means)[15] - min(means), rel=1e-9)
    assert found.offset_ms == -40 * (means.index(min(means)) - 15)


def test_the_cut_is_level_with_the_box_and_grey_beyond_the_picture() -> None:
    picture: Pixels = np.zeros((400, 600, 3), np.uint8)
    picture[:, :, 0] = np.arange(600) // 3
    picture[:, :, 1] = np.arange(400)[:, None] // 2
    inside = lip_measures.cut(picture, 300, 150, 80)  # left 188, top 70, 224 long: pixel for pixel
    assert inside.shape == (224, 224, 3)
    np.testing.assert_array_equal(inside, picture[70:294, 188:412])
    noise = np.random.default_rng(7).integers(0, 256, picture.shape).astype(np.uint8)
    resized = cv2.resize(noise[0:336, 132:468], (224, 224))  # two thirds, as upstream does it
    assert np.abs(lip_measures.cut(noise, 300, 120, 120).astype(int) - resized).mean() < 1
    beyond = lip_measures.cut(picture, 20, 60, 100)  # from −120 to 160 and from −40 to 240
    assert (beyond[:30, :] == 110).all() and (beyond[:, :94] == 110).all()
    assert not (beyond[34:, 98:, 2] == 110).any()


def test_pictures_are_taken_at_25_a_second_and_the_box_is_steady() -> None:
    still = np.array([[100.0, 50], [180, 150]], np.float32)
    times = 7 + np.arange(120) / 30
    faces = VideoFaces(times, [still] * 50 + [None] * 20 + [still + 40] * 50)
    faces.meshes[20] = still + 300  # the tracker slips
    chosen = lip_measures._at_25_fps(faces)
    assert len(chosen) == 100 and (np.diff(chosen) >= 1).all()
    assert np.abs(times[chosen] - 7 - np.arange(100) / 25).max() <= 1 / 60 + 1e-9
    squares = lip_measures._squares(faces, chosen)
    assert squares is not None
    np.testing.assert_allclose(squares[:30], np.broadcast_to([140, 100, 50], (30, 3)))
    np.testing.assert_allclose(squares[-30:], np.broadcast_to([180, 140, 50], (30, 3)))
    assert squares[50, 0] == pytest.approx(140 + 40 * (60 - 49) / 21, abs=2)  # in the middle of the gap
    even = VideoFaces(np.arange(60) / 25, [None] * 31 + [still] * 29)
    np.testing.assert_array_equal(lip_measures._at_25_fps(even), np.arange(60))
    assert lip_measures._squares(even, np.arange(60)) is None
    assert list(lip_measures._at_25_fps(VideoFaces(np.array([3.0]), [still]))) == [0]


def test_every_picture_is_cut_at_its_own_box_and_repeated_where_the_film_is_slower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    film = list(np.random.default_rng(6).integers(0, 256, (5, 60, 60, 3)).astype(np.uint8))
    monkeypatch.setattr(lip_measures, "video_frames", lambda _: ((k / 15, picture) for k, picture in enumerate(film)))
    chosen, squares = np.array([0, 1, 1, 3]), np.array([[30.0, 20, 10], [31, 20, 10], [35, 22, 12], [20, 30, 9]])
    read: list[int] = []
    cuts = list(lip_measures._cuts(Path("film"), chosen, squares, read.append))
    assert len(cuts) == 4 and read == [1, 2, 3, 4]
    for made, index, (x, y, half) in zip(cuts, chosen, squares, strict=True):
        np.testing.assert_array_equal(made, lip_measures.cut(film[index], x, y, half))


def random_state() -> dict[str, Tensor]:
    """Random weights under upstream's names, without the counters that PyTorch before 0.4 did not write."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    from musetalk_agent.measure.syncnet import SyncNet

    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in SyncNet().state_dict().items()}
    rng = np.random.default_rng(0)
    state: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            continue
        noise = rng.standard_normal(shape, np.float32)
        if name.endswith("running_var"):
            noise = 0.5 + np.abs(noise)
        elif len(shape) == 1:
            noise = np.float32(0.1) * noise + np.float32(name.endswith("weight"))
        else:
            noise *= np.float32((2 / np.prod(shape[1:])) ** 0.5)
        state[name] = torch.from_numpy(noise.astype(np.float32))
    return state


def seen(net: object, frames: Tensor) -> Tensor:
    """Eyes that cost nothing in place of `SyncNet.lips`: the brightness of 1024 places of each of five neighbours' third."""
    return frames[0, 2:-2, ::7, ::7].flatten(1)[:, :1024] / 255


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch")
    path: Path = tmp_path_factory.mktemp("models") / lip_measures.WEIGHTS
    path.parent.mkdir()
    torch.save(random_state(), path, _use_new_zipfile_serialization=False)  # as the published file is
    return path


def test_the_network_is_upstream_s(weights: Path) -> None:
    """Names and shapes of its weights, and what it makes of noise: as `SyncNetModel.S` with the same weights."""
    from musetalk_agent.measure.syncnet import embed_lips, embed_voice, load

    net = load(weights)
    reported = "\n".join(f"{name} {list(value.shape)}" for name, value in net.state_dict().items())
    assert hashlib.sha256(reported.encode()).hexdigest() == UPSTREAM_KEYS
    assert sum(value.numel() for value in net.parameters()) == 13_631_616
    rng = np.random.default_rng(1)
    faces = list(rng.integers(0, 256, (8, 224, 224, 3)).astype(np.uint8))
    voice = embed_voice(net, rng.normal(0, 10, (40, 13)), 6)
    lips = embed_lips(net, faces)
    assert lips.shape == (4, 1024) and voice.shape == (6, 1024)
    expected = [[202.80624, 115.01723, 427.2605], [165.0381, 153.09102, 404.66873]]
    np.testing.assert_allclose(lips[[0, 3], :3], expected, rtol=1e-3)
    expected = [[-6.11997, 35.92616, 17.74865], [-15.70737, 35.48541, 20.20428]]
    np.testing.assert_allclose(voice[[0, 5], :3], expected, rtol=1e-3)
    assert embed_lips(net, faces[:4]).shape == (0, 1024)


def test_a_long_film_is_taken_in_pieces_that_meet(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from musetalk_agent.measure import syncnet

    net = syncnet.load(weights)
    faces = list(np.random.default_rng(4).integers(0, 256, (9, 224, 224, 3)).astype(np.uint8))
    whole = syncnet.embed_lips(net, faces)
    monkeypatch.setattr(syncnet, "_BATCH", 2)
    np.testing.assert_allclose(syncnet.embed_lips(net, faces), whole, rtol=1e-3, atol=1e-2)


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    from musetalk_agent.measure.syncnet import load

    path = tmp_path / "syncnet_v2.model"
    torch.save({"netcnnaud.0.weight": torch.zeros(64, 1, 3, 3)}, path)
    with pytest.raises(WeightsInvalid, match=r"syncnet_v2.model does not fit .* missing"):
        load(path)
    path.write_bytes(b"<html>moved</html>")
    with pytest.raises(WeightsInvalid, match=r"syncnet_v2.model"):
        load(path)


@pytest.mark.parametrize(("start_s", "late"), [(0.0, 0), (0.0, 5), (-0.4, 3), (0.2, -4), (0.12, 0)])
def test_film_and_sound_meet_on_the_film_s_time_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start_s: float, late: int
) -> None:
    """A picture whose brightness is the loudness of its moment, and eyes and ears that see just that in the network's place."""
    pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    from musetalk_agent.measure import syncnet

    rng = np.random.default_rng(5)
    levels = rng.uniform(0, 1, 160)  # of every 40 ms from −1.2 s on
    film = tmp_path / "film.mp4"
    with av.open(str(film), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        for level in levels[30 - late : 130 - late]:
            grey = np.full((64, 64, 3), round(40 + 150 * level), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode(None))
    sound = (np.repeat(np.exp(3 * levels), 640) * rng.normal(0, 100, 160 * 640)).astype(np.int16)
    sound = sound[round((1.2 + start_s) * RATE) :]

    def windows(values: NDArray[np.float64], count: int) -> NDArray[np.float32]:
        values = (values - values.mean()) / values.std()
        return np.array([values[at : at + 5] for at in range(count)], np.float32)

    monkeypatch.setattr(syncnet, "load", lambda _: None)
    monkeypatch.setattr(
        syncnet, "embed_lips", lambda _, cuts: windows(np.array([cut[:, :, 1].mean() for cut in cuts]), 96)
    )

    def loudness(_: object, cepstra: NDArray[np.float64], count: int) -> NDArray[np.float32]:
        return windows(np.maximum(cepstra[:400:4, 0], 12), count)  # silence before the sound has no loudness at all

    monkeypatch.setattr(syncnet, "embed_voice", loudness)
    mesh = np.array([[16.0, 16], [48, 48]], np.float32)
    read: list[int] = []
    found = lip_measures.judge_sync(
        tmp_path, film, VideoFaces(np.arange(100) / 25, [mesh] * 100), sound, start_s, read.append
    )
    assert found is not None and found.offset_ms == 40 * late
    assert found.distance < 1.3 and found.confidence > 1
    assert read == list(range(1, 101))
    short = sound[: round(1.9 * RATE)]
    assert (
        lip_measures.judge_sync(tmp_path, film, VideoFaces(np.arange(100) / 25, [mesh] * 100), short, 0.0, read.append)
        is None
    )


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo avatar saying a few words, by the warp engine."""
    folder = tmp_path_factory.mktemp("film")
    source = write_wav(folder / "in.wav", speech()[: round(2.6 * RATE)], RATE)
    parser = argparse.ArgumentParser()
    render_film.add_arguments(parser)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AVATAR_CACHE_DIR", str(folder / "cache"))
        argv = ["--avatar", "demo", "--audio", str(source), "-o", str(folder / "out.mp4"), "--engine", "warp"]
        assert render_film.run(parser.parse_args([*argv, "--width", "320", "--height", "320"])) == 0
    return folder / "out.mp4"


def test_the_command_tells_it_where_the_weights_are(
    film: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from musetalk_agent.measure.syncnet import SyncNet

    monkeypatch.setattr(SyncNet, "lips", seen)
    assert run(str(film), "--json") == 0
    plain = json.loads(capsys.readouterr().out)
    assert sorted(plain) == ["confidence", "correlation", "lag_ms"]
    models = weights.parents[1]
    (models / "face").symlink_to(default_models_dir() / "face")
    monkeypatch.setenv("MODELS_DIR", str(models))
    assert run(str(film), "--json") == 0
    reported = json.loads(capsys.readouterr().out)
    assert {key: reported[key] for key in plain} == plain
    assert sorted(set(reported) - set(plain)) == ["lse_c", "lse_d", "syncnet_offset_ms"]
    assert reported["lse_d"] > 0 and reported["lse_c"] >= 0 and reported["syncnet_offset_ms"] in range(-600, 601, 40)
    monkeypatch.setattr(lip_measures, "judge_sync", lambda *_: lip_measures.LipSync(6.1234, 7.5678, -40))
    assert run(str(film)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[1] == "SyncNet: LSE-C 6.12, LSE-D 7.57, offset -40 ms"
    monkeypatch.setattr(lip_measures.importlib.util, "find_spec", lambda name: None)
    assert run(str(film)) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_the_manifest_says_where_the_weights_come_from() -> None:
    entry = Manifest.load().entries[lip_measures.WEIGHTS]
    assert entry.group == "syncnet" and entry.sha256 is not None and entry.size == 54_573_114
    assert ModelStore(None, Manifest.load()).location(lip_measures.WEIGHTS).parts[-2:] == (
        "syncnet",
        "syncnet_v2.model",
    )

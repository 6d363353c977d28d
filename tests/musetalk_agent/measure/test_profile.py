"""Where a frame's time goes: shares that add up, operations counted right, a chart that shows them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from musetalk_agent.measure import profile
from musetalk_agent.measure.profile import Bar, StageTiming, bars
from musetalk_agent.weights import default_models_dir
from tests.musetalk_agent.avatars.clips import frames_zip, moving

PEAK_SIDE = 256
"""Of the matrix product that the peak is taken from: an eighth of the real one, whose half a minute of bfloat16 shows no more."""


@pytest.fixture
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AVATAR_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "clip.zip"
    path.write_bytes(frames_zip(moving(4, 256)))
    return str(path)


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    profile.add_arguments(parser)
    return profile.run(parser.parse_args(argv))


def checked(reported: dict[str, Any], frames: int) -> dict[str, dict[str, Any]]:
    stages = {stage["stage"]: stage for stage in reported["stages"]}
    assert reported["frames"] == frames and reported["face_px"] > 60
    assert sum(s["share"] for s in stages.values()) == pytest.approx(1, abs=0.001)
    assert sum(s["mean_ms"] for s in stages.values()) == pytest.approx(reported["frame_ms"], rel=0.01)
    assert all(s["mean_ms"] >= 0 and s["p95_ms"] >= 0 for s in stages.values())
    return stages


def test_the_warp_engine_and_its_chart(clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chart = tmp_path / "chart.png"
    assert run("--avatar", clip, "--frames", "12", "--json", "--picture", str(chart)) == 0
    reported = json.loads(capsys.readouterr().out)
    stages = checked(reported, 12)
    assert list(stages) == ["features", "engine", "composition", "I420"]
    assert (reported["engine"], reported["device"], reported["width"], reported["peak_gflop_per_s"]) == (
        "warp",
        "cpu",
        256,
        None,
    )
    assert all(stage["mean_ms"] > 0 for stage in stages.values())
    picture = cv2.imread(str(chart))
    assert picture is not None and picture.shape[1] == 1000 and len(np.unique(picture)) > 5
    assert run("--avatar", clip, "--frames", "2") == 0
    table = capsys.readouterr().out
    assert "picture 256x256" in table and "frames/s one after the other" in table and "GFLOP" not in table


def test_musetalk_part_by_part(
    clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from musetalk_agent.measure import network_stages
    from tests.fakes.weights import write_models

    monkeypatch.setattr(network_stages, "_PEAK_SIDE", {"cpu": PEAK_SIDE})
    write_models(tmp_path / "models", scale="tiny")
    (tmp_path / "models" / "face").symlink_to(default_models_dir() / "face")
    monkeypatch.setenv("MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("MUSETALK_DEVICE", "cpu")
    assert run("--engine", "musetalk", "--avatar", clip, "--frames", "2", "--json") == 0
    reported = json.loads(capsys.readouterr().out)
    stages = checked(reported, 2)
    assert list(stages) == ["features", "whisper", "unet", "decoder", "copy", "patch", "composition", "I420"]
    assert reported["batch"] == 1 and list(reported["in_service_ms"]) == ["1"]
    for name in ("whisper", "unet", "decoder"):
        gflop, speed, peak = stages[name]["gflop"], stages[name]["gflop_per_s"], reported["peak_gflop_per_s"]
        mean_s = stages[name]["mean_ms"] / 1000
        # as exact as the figures are written, whose speeds are small on a slow machine
        assert gflop > 0.1 and speed == pytest.approx(gflop / mean_s, abs=0.05 + 0.005 / mean_s + 1e-3 * speed)
        assert stages[name]["of_peak"] == pytest.approx(speed / peak, abs=(0.05 + 0.05 * speed / peak) / peak + 0.0001)
    assert all(stages[name]["gflop"] is None for name in ("features", "copy", "patch", "composition", "I420"))


def test_operations_of_a_part_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from musetalk_agent.engines.musetalk.device import CpuCard
    from musetalk_agent.measure import network_stages

    layer = torch.nn.Conv2d(3, 5, 3, padding=1)
    counted = network_stages.operations(lambda: (layer(torch.zeros(2, 3, 8, 8)),), CpuCard())
    assert counted == 2 * 2 * 5 * 8 * 8 * 3 * 3 * 3
    line = torch.nn.Linear(7, 11)
    assert network_stages.operations(lambda: (line(torch.zeros(4, 7)),), CpuCard()) == 2 * 4 * 7 * 11


@pytest.mark.parametrize("runs_compiled", [False, True])
def test_parts_are_timed_as_the_engine_runs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs_compiled: bool
) -> None:
    """The encoder's windows stay float32 with half-precision weights; what runs compiled is timed compiled."""
    torch = pytest.importorskip("torch")
    write_models = pytest.importorskip("tests.fakes.weights").write_models
    from musetalk_agent.engines.musetalk.engine import MuseTalkEngine
    from musetalk_agent.engines.musetalk.profiles import Options
    from musetalk_agent.measure import network_stages

    monkeypatch.setattr(network_stages, "_PEAK_SIDE", {"cpu": PEAK_SIDE})
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda call, **how: compiled.append(how) or call)
    engine = MuseTalkEngine(write_models(tmp_path / "models"), Options(precision="bfloat16"))
    engine.fused = "compile" if runs_compiled else "off"
    seen: list[object] = []
    engine.network.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    stages = network_stages.network_stages(engine, 1, 1, lambda _: None).stages
    engine.close()
    assert [stage.name for stage in stages] == ["whisper", "unet", "decoder", "copy"]
    assert set(seen) == {torch.float32} and compiled == [{"dynamic": False}] * (3 if runs_compiled else 0)


def test_refusals(
    clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for argv, code, sentence in (
        (("--frames", "0"), 2, "--frames and --batch are 1 or more"),
        (("--width", "8"), 2, "width 8"),
        (("--avatar", str(tmp_path / "none.zip")), 1, "avatar_not_found"),
        (("--avatar", clip, "--frames", "1", "--picture", str(tmp_path / "no" / "x.png")), 1, "cannot be written"),
    ):
        assert run(*argv) == code
        assert sentence in capsys.readouterr().err
    monkeypatch.setenv("MODELS_DIR", str(tmp_path))
    assert run("--engine", "musetalk") == 1
    assert capsys.readouterr().err.startswith(("weights_missing: ", "engine_unavailable: "))


def test_bars_are_as_long_as_their_values() -> None:
    picture = bars("title", [Bar("a", 1.0, 2.0, ""), Bar("b", 4.0, 4.0, "")])
    solid = (picture == (180, 130, 60)).all(2)
    lengths = [int(solid[top : top + 44].any(0).sum()) for top in (60, 104)]
    assert lengths[0] == pytest.approx(lengths[1] / 4, abs=2) and lengths[1] > 400
    pale = (picture == (225, 205, 175)).all(2)
    assert int(pale[60:104].any(0).sum()) == pytest.approx(lengths[1] / 4, abs=2)


def test_figures_of_a_stage() -> None:
    stage = StageTiming("x", [0.001 * k for k in range(1, 101)])
    assert stage.mean_ms == pytest.approx(50.5)
    assert stage.p95_ms == pytest.approx(95.05)

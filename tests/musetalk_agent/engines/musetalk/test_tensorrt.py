"""TensorRT without a card: the export computes what torch computes, and the rest speaks to a fake of its interface."""

from __future__ import annotations

import importlib.util
import sys
import types
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musetalk_agent.engines.musetalk.profiles import profile_named
from musetalk_agent.errors import EngineUnavailable
from musetalk_agent.tools import build_engine
from tests.fakes.fake_tensorrt import FakeTensorRT
from tests.fakes.weights import write_models
from tests.late import late_imports

with late_imports("torch", "diffusers"):
    import torch

    from musetalk_agent.engines.musetalk import tensorrt
    from musetalk_agent.engines.musetalk.loading import load_unet, load_vae
    from musetalk_agent.engines.musetalk.network import FoldedUNet, PatchDecoder
    from tests.musetalk_agent.engines.musetalk.models import CPU, inputs


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


def test_the_exported_network_paints_what_torch_paints_at_any_batch_size(models: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    painter = tensorrt.UNetAndDecoder(
        FoldedUNet(load_unet(models, CPU, torch.float32)), PatchDecoder(load_vae(models, CPU, torch.float32))
    )
    path = tmp_path / "painter.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's remarks on shapes that never change here
        tensorrt.export(painter, path, CPU, torch.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    audio, latents = inputs(3)
    made = session.run(None, {"latents": latents.float().numpy(), "audio": audio.numpy()})[0]
    with torch.inference_mode():
        wanted = painter(latents.float(), audio).numpy()
    assert made.shape == wanted.shape == (3, 3, 256, 256)
    assert np.abs(made - wanted).max() < 1 / 255


def test_a_plan_belongs_to_its_weights_profile_and_precision(models: Path, tmp_path: Path) -> None:
    quality, half = profile_named("quality"), torch.float16
    path = tensorrt.plan_path(models, quality, half)
    others = [
        tensorrt.plan_path(models, profile_named("lower"), half),
        tensorrt.plan_path(models, quality, torch.bfloat16),
        tensorrt.plan_path(write_models(tmp_path, seed=9), quality, half),
    ]
    assert path.parent == models / "tensorrt"
    assert path.name not in [other.name for other in others]
    assert tensorrt.find_plan(models, quality, CPU, half) is None


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_without_tensorrt_the_command_says_so(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = build_engine.argparse.ArgumentParser()
    build_engine.add_arguments(parser)
    assert build_engine.run(parser.parse_args(["--models-dir", str(models)])) == 1
    assert "tensorrt is not installed" in capsys.readouterr().err


STREAM = 77


def computed(latents: np.ndarray, audio: np.ndarray) -> np.ndarray:
    """Three planes of a face that say which frame they belong to."""
    value = latents.mean((1, 2, 3)) + audio.mean((1, 2))
    return np.broadcast_to(value[:, None, None, None], (len(latents), 3, 256, 256)).astype(np.float32)


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    fake = FakeTensorRT(computed, STREAM)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=STREAM))
    return fake


@pytest.fixture
def plan(trt: FakeTensorRT, tmp_path: Path) -> tensorrt.TensorRTPlan:
    path = tmp_path / "quality.plan"
    path.write_bytes(b"a plan")
    return tensorrt.TensorRTPlan(path, profile_named("quality"), CPU)


def test_each_batch_size_has_a_context_that_is_never_given_another_shape(
    trt: FakeTensorRT, plan: tensorrt.TensorRTPlan
) -> None:
    """The fake raises where a context that has run gets another shape: a graph captured from it would be undefined."""
    for count in (16, 1, 4, 16, 1, 4):
        audio, latents = inputs(count, seed=count)
        made = plan(latents.float(), audio)
        wanted = latents.float().mean((1, 2, 3)) + audio.mean((1, 2))
        assert made.shape == (count, 3, 256, 256)
        assert (made[:, 0, 0, 0] - wanted).abs().max() < 1e-5
    assert [context.shapes["latents"][0] for context in trt.contexts] == [16, 1, 4]
    assert [context.runs for context in trt.contexts] == [2, 2, 2]
    assert len({context.memory for context in trt.contexts}) == 1, "one block of memory for all"


def test_a_batch_that_the_plan_was_not_built_for_is_refused(trt: FakeTensorRT, plan: tensorrt.TensorRTPlan) -> None:
    trt.most = 8
    with pytest.raises(EngineUnavailable, match="no batch of 16"):
        plan(torch.zeros(16, 8, 32, 32), torch.zeros(16, 50, 384))


def test_a_plan_that_does_not_run_is_a_failure_of_the_card(trt: FakeTensorRT, plan: tensorrt.TensorRTPlan) -> None:
    trt.fails = True
    with pytest.raises(RuntimeError, match="CUDA error"):
        plan(torch.zeros(1, 8, 32, 32), torch.zeros(1, 50, 384))


def test_no_memory_for_another_context_is_memory_that_ran_out(
    trt: FakeTensorRT, plan: tensorrt.TensorRTPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trt, "create_execution_context", lambda strategy: None)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        plan(torch.zeros(1, 8, 32, 32), torch.zeros(1, 50, 384))


def test_a_plan_of_another_card_is_refused(trt: FakeTensorRT, tmp_path: Path) -> None:
    path = tmp_path / "old.plan"
    path.write_bytes(b"another card's")
    with pytest.raises(EngineUnavailable, match="built for another card"):
        tensorrt.TensorRTPlan(path, profile_named("quality"), CPU)


def test_build_engine_takes_the_models_dir_in_use_and_frees_the_networks_before_it_builds(
    trt: FakeTensorRT, models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alive: list[weakref.ref[Any]] = []
    freed: list[bool] = []

    def exported(painter: Any, path: Path, *_: Any) -> None:
        alive.extend(weakref.ref(part) for part in (painter, painter.unet, painter.decoder))
        path.write_bytes(b"onnx")

    def building() -> None:
        freed.append(all(part() is None for part in alive))

    trt.building = building
    monkeypatch.setattr(tensorrt, "export", exported)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    emptied: list[int] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(len(freed)))
    monkeypatch.setenv("MODELS_DIR", str(models))
    parser = build_engine.argparse.ArgumentParser()
    build_engine.add_arguments(parser)
    assert build_engine.run(parser.parse_args(["--device", "cpu"])) == 0
    wanted = tensorrt.plan_path(models, profile_named("quality"), torch.float16)
    assert wanted.read_bytes() == b"a plan" and str(wanted) in capsys.readouterr().out
    assert len(alive) == 3 and freed == [True] and emptied == [0]
    assert trt.onnx_bytes == 4
    assert trt.profile_shapes == {
        "latents": ((1, 8, 32, 32), (8, 8, 32, 32), (16, 8, 32, 32)),
        "audio": ((1, 50, 384), (8, 50, 384), (16, 50, 384)),
    }


def test_a_plan_that_tensorrt_cannot_build_leaves_no_file(
    trt: FakeTensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt.serialized = None
    onnx = tmp_path / "painter.onnx"
    onnx.write_bytes(b"onnx")
    with pytest.raises(EngineUnavailable, match="could not build"):
        tensorrt.build(onnx, tmp_path / "tensorrt" / "a.plan", 16)
    assert not (tmp_path / "tensorrt").exists()

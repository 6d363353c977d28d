"""The half of the TensorRT path that needs no card: the export computes what torch computes, and absence is said."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from musetalk_agent.engines.musetalk import tensorrt  # noqa: E402
from musetalk_agent.engines.musetalk.loading import load_unet, load_vae  # noqa: E402
from musetalk_agent.engines.musetalk.network import FoldedUNet, PatchDecoder  # noqa: E402
from musetalk_agent.engines.musetalk.profiles import profile_named  # noqa: E402
from musetalk_agent.tools import build_engine  # noqa: E402
from tests.fakes.weights import write_models  # noqa: E402
from tests.musetalk_agent.engines.musetalk.models import CPU, inputs  # noqa: E402


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


@pytest.mark.skipif(tensorrt.importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_without_tensorrt_the_command_says_so(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = build_engine.argparse.ArgumentParser()
    build_engine.add_arguments(parser)
    assert build_engine.run(parser.parse_args(["--models-dir", str(models)])) == 1
    assert "tensorrt is not installed" in capsys.readouterr().err

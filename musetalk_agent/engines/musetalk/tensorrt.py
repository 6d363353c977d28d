"""UNet and decoder as one TensorRT plan, where that package and a plan are there. The torch path is the reference.

Written from NVIDIA's documentation and the names that the bindings of TensorRT 11.4 export: no card was at hand to run it on.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from musetalk_agent.engines.musetalk import weights_files
from musetalk_agent.engines.musetalk.network import AUDIO_ROWS, AUDIO_WIDTH, LATENT_SHAPE
from musetalk_agent.engines.musetalk.profiles import Profile
from musetalk_agent.engines.musetalk.weights_files import fingerprint
from musetalk_agent.errors import EngineUnavailable, WeightsMissing

log = logging.getLogger(__name__)

WORKSPACE_BYTES = 8 << 30
"""What the builder may use while it tries kernels."""
_OPSET = 17
_INPUTS, _OUTPUT = ("latents", "audio"), "face"


class UNetAndDecoder(nn.Module):
    """What a plan holds: UNet, then decoder."""

    def __init__(self, unet: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.unet, self.decoder = unet, decoder

    def forward(self, latents: Tensor, audio: Tensor) -> Tensor:
        """`[B, 8, 32, 32]` and `[B, 50, 384]` to RGB `[B, 3, h, 256]`, all of the weights' dtype."""
        decoded: Tensor = self.decoder(self.unet(latents, audio))
        return decoded


def plan_path(models: Path, profile: Profile, dtype: torch.dtype) -> Path:
    """Where the plan of these weights lies or would lie. Raises `WeightsMissing` without a UNet."""
    found = weights_files.find(models, "unet", None)
    if found is None:
        raise WeightsMissing(f"The model file {weights_files.name_of('unet')} is missing from {models}.")
    precision = str(dtype).removeprefix("torch.")
    return models / "tensorrt" / f"{profile.name}-{precision}-{fingerprint(found.path)[:12]}.plan"


def export(painter: UNetAndDecoder, path: Path, device: torch.device, dtype: torch.dtype) -> None:
    """Writes the painter as ONNX with a free batch size. Raises OSError."""
    latents = torch.zeros((2, *LATENT_SHAPE), device=device, dtype=dtype)
    audio = torch.zeros((2, AUDIO_ROWS, AUDIO_WIDTH), device=device, dtype=dtype)
    with torch.no_grad():
        torch.onnx.export(
            painter.eval(),
            (latents, audio),
            str(path),
            input_names=list(_INPUTS),
            output_names=[_OUTPUT],
            dynamic_axes={name: {0: "batch"} for name in (*_INPUTS, _OUTPUT)},
            opset_version=_OPSET,
            dynamo=False,  # the other exporter wants a package more
        )


def build(onnx: Path, plan: Path, most: int) -> None:
    """Builds the plan for batches of 1 … `most` on the card of this machine; minutes. Raises `EngineUnavailable`."""
    trt = require()
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    # strongly typed: the plan computes in the types of the exported network
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        raise EngineUnavailable(f"TensorRT cannot read the exported network: {parser.get_error(0)}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    shapes = builder.create_optimization_profile()
    for name, shape in zip(_INPUTS, (LATENT_SHAPE, (AUDIO_ROWS, AUDIO_WIDTH)), strict=True):
        shapes.set_shape(name, (1, *shape), (min(8, most), *shape), (most, *shape))
    config.add_optimization_profile(shapes)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise EngineUnavailable("TensorRT could not build the plan; its own messages above say why.")
    plan.parent.mkdir(parents=True, exist_ok=True)
    part = plan.with_suffix(".part")
    part.write_bytes(serialized)
    part.replace(plan)


class TensorRTPlan(nn.Module):
    """A plan in place of UNet and decoder; can be captured in a CUDA graph like them.

    Each batch size has an execution context of its own, because a captured graph holds for its context's state at the capture only:
    another shape or address set later would make it undefined. Their activations share one block of memory, as the graphs of
    a card never run at the same time.
    """

    def __init__(self, plan: Path, profile: Profile, device: torch.device) -> None:
        super().__init__()
        trt = require()
        self._runtime: Any = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        self._engine: Any = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise EngineUnavailable(
                f"{plan.name} was built for another card or TensorRT; run `musetalk-agent build-engine`."
            )
        self._user_managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._memory = torch.empty(max(1, self._engine.device_memory_size_v2), dtype=torch.uint8, device=device)
        self._contexts: dict[int, Any] = {}
        self._rows, self._device = profile.rows, device

    def forward(self, latents: Tensor, audio: Tensor) -> Tensor:
        """As `UNetAndDecoder.forward`. The first call of a batch size must not be captured."""
        context = self._contexts.get(len(latents)) or self._context(len(latents))
        face = torch.empty((len(latents), 3, self._rows, 256), device=self._device, dtype=latents.dtype)
        for name, value in zip(_INPUTS, (latents.contiguous(), audio.contiguous()), strict=True):
            context.set_tensor_address(name, value.data_ptr())
        context.set_tensor_address(_OUTPUT, face.data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream(self._device).cuda_stream):
            raise RuntimeError("CUDA error: TensorRT did not run the plan")
        return face

    def _context(self, size: int) -> Any:
        context = self._engine.create_execution_context(self._user_managed)
        if context is None:
            raise torch.cuda.OutOfMemoryError("TensorRT has no memory for another execution context")
        context.set_device_memory(self._memory.data_ptr(), self._memory.numel())
        for name, shape in zip(_INPUTS, (LATENT_SHAPE, (AUDIO_ROWS, AUDIO_WIDTH)), strict=True):
            if not context.set_input_shape(name, (size, *shape)):
                raise EngineUnavailable(
                    f"The TensorRT plan takes no batch of {size}; run `musetalk-agent build-engine`."
                )
        self._contexts[size] = context
        return context


def find_plan(models: Path, profile: Profile, device: torch.device, dtype: torch.dtype) -> TensorRTPlan | None:
    """The plan that `build-engine` made for these weights and this profile, None where there is none to use."""
    if device.type != "cuda" or importlib.util.find_spec("tensorrt") is None:
        return None
    path = plan_path(models, profile, dtype)
    if not path.is_file():
        return None
    try:
        found = TensorRTPlan(path, profile, device)
    except EngineUnavailable as error:
        log.warning("the TensorRT plan is not used", extra={"reason": error.detail})
        return None
    log.info("TensorRT plan in use", extra={"plan": str(path)})
    return found


def require() -> Any:
    """The package. Raises `EngineUnavailable` where it is not installed."""
    try:
        return importlib.import_module("tensorrt")
    except ImportError:
        raise EngineUnavailable(
            "The package tensorrt is not installed: `pip install tensorrt` beside a CUDA build of torch."
        ) from None

"""MuseTalk's networks from a models folder: configuration checked, modules built without memory, weights mapped in.

Weights are mapped into memory, matched strictly by key and shape; no code in a file is ever run.

Every function raises WeightsMissing where a file is not there and WeightsInvalid where one is not of this model; both say which and
how to mend it. fp32 belongs on the CPU, fp16 or bf16 on a card.

On the CPU, weights that need no conversion stay mapped as long as the module lives: a file may be replaced meanwhile (renamed over,
as every command here does), but writing into it ends the process.
"""

from __future__ import annotations

import logging
import pickle
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from musetalk_agent.engines.musetalk import weights_files
from musetalk_agent.engines.musetalk.config import (
    TaesdConfig,
    UnetConfig,
    VaeConfig,
    WhisperEncoderConfig,
    read_config,
)
from musetalk_agent.engines.musetalk.parsing import BiSeNet
from musetalk_agent.engines.musetalk.weights_files import Half, Part
from musetalk_agent.errors import WeightsInvalid, WeightsMissing

log = logging.getLogger(__name__)

DTYPES: Mapping[Half, torch.dtype] = MappingProxyType({"fp16": torch.float16, "bf16": torch.bfloat16})
_Names = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
_Module = TypeVar("_Module", bound=nn.Module)
_MOST_NAMED = 3
_POINTER = b"version https://git-lfs"
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_VAE_ATTENTION = ".mid_block.attentions.0."


def load_unet(folder: Path, device: torch.device, dtype: torch.dtype) -> UNet2DConditionModel:
    """The UNet, `[B, 8, 32, 32]` and `[B, 50, 384]` to `[B, 4, 32, 32]`."""
    return _load(build_unet(folder), folder, "unet", device, dtype)


def load_vae(folder: Path, device: torch.device, dtype: torch.dtype) -> AutoencoderKL:
    """The VAE, encoder and decoder; its `config.scaling_factor` is 0.18215 where the file does not say."""
    return _load(build_vae(folder), folder, "vae", device, dtype)


def load_whisper(folder: Path, device: torch.device, dtype: torch.dtype) -> WhisperEncoder:
    """whisper-tiny's encoder; the decoder in the file is not read."""
    return _load(build_whisper(folder), folder, "whisper", device, dtype)


def load_parsing(folder: Path, device: torch.device, dtype: torch.dtype) -> BiSeNet | None:
    """The face-parsing network, None where its weights are not there: it is optional."""
    if weights_files.find(folder, "parsing", None) is None:
        return None
    with _unfilled():
        module = BiSeNet()
    return _load(module, folder, "parsing", device, dtype)


def load_taesd(folder: Path, device: torch.device, dtype: torch.dtype) -> AutoencoderTiny | None:
    """The small autoencoder, None where its weights are not there: it is optional."""
    if weights_files.find(folder, "taesd", None) is None:
        return None
    config = read_config(TaesdConfig, folder / weights_files.TAESD_CONFIG)
    with _unfilled():
        module = AutoencoderTiny(**config.arguments())
    return _load(module, folder, "taesd", device, dtype)


def build_unet(folder: Path) -> UNet2DConditionModel:
    """The UNet without weights, on the meta device."""
    config = read_config(UnetConfig, folder / weights_files.UNET_CONFIG)
    with _unfilled():
        return UNet2DConditionModel(**config.arguments())


def build_vae(folder: Path) -> AutoencoderKL:
    """The VAE without weights, on the meta device."""
    config = read_config(VaeConfig, weights_files.vae_config_path(folder))
    with _unfilled():
        return AutoencoderKL(**config.arguments())


def build_whisper(folder: Path) -> WhisperEncoder:
    """The audio encoder without weights, on the meta device. Without dropout, which its file sets to 0 as well."""
    config = read_config(WhisperEncoderConfig, folder / weights_files.WHISPER_CONFIG)
    with _unfilled():
        return WhisperEncoder(WhisperConfig(**config.arguments(), dropout=0.0))


@contextmanager
def _unfilled() -> Iterator[None]:
    """Modules are made on the meta device, and without the random values that layers begin with: on that device they compute the
    shapes of nothing, for as long as all the rest of the making takes."""
    with torch.device("meta"), _NoValues():
        yield


class _NoValues(TorchFunctionMode):
    """Leaves what `torch.nn.init` would fill as it is."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def read_part(path: Path, part: Part) -> dict[str, Tensor]:
    """A part's weights as they lie in a file, with today's names, mapped. Raises WeightsInvalid."""
    return _NAMES.get(part, dict)(read_tensors(path))


def _load(module: _Module, folder: Path, part: Part, device: torch.device, dtype: torch.dtype) -> _Module:
    start = time.perf_counter()
    half = next((name for name, kind in DTYPES.items() if kind == dtype), None)
    found = weights_files.find(folder, part, half)
    if found is None:
        name = weights_files.name_of(part)
        raise WeightsMissing(
            f"The model file {name} is missing from {folder}; run `musetalk-agent fetch-models musetalk`.", value=name
        )
    state = dict(read_tensors(found.path)) if found.half else read_part(found.path, part)
    check_fits(module, state, found.path)
    assign_weights(module, state, torch.device(device), dtype)
    seconds = round(time.perf_counter() - start, 3)
    log.info("weights loaded", extra={"part": part, "file": str(found.path), "dtype": str(dtype), "seconds": seconds})
    return module


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or a bare `torch.save` of a state dict, on the CPU.

    Files are mapped into memory where their format allows it (all but the pickles of before 2020): nothing is read until it
    is used, and pages can be given back. Only tensors are unpickled (`weights_only`).

    Raises:
        WeightsInvalid: the file is damaged, cut off, holds code or other objects, or is no file of weights at all.
        OSError: it cannot be read.
    """
    name = f"{path.parent.name}/{path.name}"
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise WeightsInvalid(
                f"{name} is a Git LFS pointer, not the weights; fetch them with `musetalk-agent fetch-models`.",
                value=name,
            )
    try:
        if path.suffix == ".safetensors":
            state: object = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise WeightsInvalid(
            f"{name} holds more than tensors, or is damaged; it was not loaded: {_first_line(error)}", value=name
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise WeightsInvalid(f"{name} is damaged or cut off: {_first_line(error)}", value=name) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsInvalid(f"{name} is not a bare state dict: names with tensors.", value=name)
    return dict(state)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def vae_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A VAE's state with today's names. Checkpoints of 2022 call the projections of their middle attention query, key, value and
    proj_attn, and some keep them as 1×1 convolutions `[C, C, 1, 1]`."""
    return {_vae_name(name): _as_linear(name, value) for name, value in state.items()}


def _vae_name(name: str) -> str:
    stem, attention, rest = name.partition(_VAE_ATTENTION)
    projection, _, kind = rest.rpartition(".")
    if not attention or projection not in _OLD_ATTENTION:
        return name
    return f"{stem}{attention}{_OLD_ATTENTION[projection]}.{kind}"


def _as_linear(name: str, value: Tensor) -> Tensor:
    attention = _VAE_ATTENTION in name and name.endswith(".weight")
    return value[:, :, 0, 0] if attention and value.ndim == 4 and value.shape[2:] == (1, 1) else value


def encoder_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's part of a Whisper checkpoint, whether of the whole model (`model.encoder.…`) or of the body (`encoder.…`)."""
    for prefix in ("model.encoder.", "encoder."):
        if found := {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}:
            return found
    return dict(state)


def state_difference(expected: Mapping[str, torch.Size], found: Mapping[str, torch.Size]) -> str | None:
    """What distinguishes two sets of keys and shapes, in one sentence without its subject; None when nothing does."""
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    shapes = [
        f"{key} is {list(found[key])} instead of {list(shape)}"
        for key, shape in expected.items()
        if key in found and found[key] != shape
    ]
    found_differences = [
        f"{len(names)} {what}: {_some(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    return "; ".join(found_differences) or None


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMED]) + (", …" if len(names) > _MOST_NAMED else "")


def check_fits(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Raises WeightsInvalid, with the difference, unless the state has exactly the module's keys and shapes."""
    expected = {key: value.shape for key, value in module.state_dict().items()}
    if found_differences := state_difference(expected, {key: value.shape for key, value in state.items()}):
        name = f"{path.parent.name}/{path.name}"
        raise WeightsInvalid(
            f"{name} does not fit the model its configuration describes. {found_differences}.", value=name
        )


def assign_weights(module: nn.Module, state: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype) -> None:
    """Gives a module that was built on the meta device its weights and makes it ready for inference.

    Tensors that need no conversion are taken as they are, still mapped; others are converted one at a time on the target device, so
    that no second copy of the model ever exists.

    Raises:
        RuntimeError: keys or shapes differ (`check_fits` gives the details), or the module has buffers that no file holds.
    """
    placed = {key: _placed(value, device, dtype) for key, value in state.items()}
    module.load_state_dict(placed, strict=True, assign=True)
    left = [name for name, value in (*module.named_parameters(), *module.named_buffers()) if value.is_meta]
    if left:
        raise RuntimeError(f"nothing was loaded for {_some(left)}")
    module.eval().requires_grad_(False)


def _placed(value: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    # uploaded first: the card converts faster than the processor
    placed = value.to(device)
    return placed.to(dtype) if placed.is_floating_point() else placed


BUILDERS: Mapping[Part, Callable[[Path], nn.Module]] = MappingProxyType(
    {"unet": build_unet, "vae": build_vae, "whisper": build_whisper}
)
_NAMES: Mapping[Part, _Names] = MappingProxyType({"vae": vae_names, "whisper": encoder_names})

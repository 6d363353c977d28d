"""MuseTalk's networks from a models folder: configuration checked, modules built without memory, weights mapped in.

Every function raises WeightsMissing where a file is not there and WeightsInvalid where one is not of this model; both say which and
how to mend it. fp32 belongs on the CPU, fp16 or bf16 on a card.

On the CPU, weights that need no conversion stay mapped as long as the module lives: a file may be replaced meanwhile (renamed over,
as every command here does), but writing into it ends the process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import Tensor, nn
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from musetalk_agent.engines.musetalk import checkpoints, files
from musetalk_agent.engines.musetalk.config import (
    TaesdConfig,
    UnetConfig,
    VaeConfig,
    WhisperEncoderConfig,
    read_config,
)
from musetalk_agent.engines.musetalk.copies import Half
from musetalk_agent.engines.musetalk.files import Part
from musetalk_agent.engines.musetalk.parsing import BiSeNet
from musetalk_agent.errors import WeightsMissing

log = logging.getLogger(__name__)

DTYPES: Mapping[Half, torch.dtype] = MappingProxyType({"fp16": torch.float16, "bf16": torch.bfloat16})
_Names = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
_Module = TypeVar("_Module", bound=nn.Module)


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
    if files.find(folder, "parsing", None) is None:
        return None
    with torch.device("meta"):
        module = BiSeNet()
    return _load(module, folder, "parsing", device, dtype)


def load_taesd(folder: Path, device: torch.device, dtype: torch.dtype) -> AutoencoderTiny | None:
    """The small autoencoder, None where its weights are not there: it is optional."""
    if files.find(folder, "taesd", None) is None:
        return None
    config = read_config(TaesdConfig, folder / files.TAESD_CONFIG)
    with torch.device("meta"):
        module = AutoencoderTiny(**config.arguments())
    return _load(module, folder, "taesd", device, dtype)


def build_unet(folder: Path) -> UNet2DConditionModel:
    """The UNet without weights, on the meta device."""
    config = read_config(UnetConfig, folder / files.UNET_CONFIG)
    with torch.device("meta"):
        return UNet2DConditionModel(**config.arguments())


def build_vae(folder: Path) -> AutoencoderKL:
    """The VAE without weights, on the meta device."""
    config = read_config(VaeConfig, files.vae_config_path(folder))
    with torch.device("meta"):
        return AutoencoderKL(**config.arguments())


def build_whisper(folder: Path) -> WhisperEncoder:
    """The audio encoder without weights, on the meta device. Without dropout, which its file sets to 0 as well."""
    config = read_config(WhisperEncoderConfig, folder / files.WHISPER_CONFIG)
    with torch.device("meta"):
        return WhisperEncoder(WhisperConfig(**config.arguments(), dropout=0.0))


BUILDERS: Mapping[Part, Callable[[Path], nn.Module]] = MappingProxyType(
    {"unet": build_unet, "vae": build_vae, "whisper": build_whisper}
)
_NAMES: Mapping[Part, _Names] = MappingProxyType({"vae": checkpoints.vae_names, "whisper": checkpoints.encoder_names})


def read_part(path: Path, part: Part) -> dict[str, Tensor]:
    """A part's weights as they lie in a file, with today's names, mapped. Raises WeightsInvalid."""
    return _NAMES.get(part, dict)(checkpoints.read(path))


def _load(module: _Module, folder: Path, part: Part, device: torch.device, dtype: torch.dtype) -> _Module:
    start = time.perf_counter()
    half = next((name for name, kind in DTYPES.items() if kind == dtype), None)
    found = files.find(folder, part, half)
    if found is None:
        name = files.name_of(part)
        raise WeightsMissing(
            f"The model file {name} is missing from {folder}; run `musetalk-agent fetch-models musetalk`.", value=name
        )
    state = dict(checkpoints.read(found.path)) if found.half else read_part(found.path, part)
    checkpoints.check(module, state, found.path)
    checkpoints.fill(module, state, torch.device(device), dtype)
    seconds = round(time.perf_counter() - start, 3)
    log.info("weights loaded", extra={"part": part, "file": str(found.path), "dtype": str(dtype), "seconds": seconds})
    return module

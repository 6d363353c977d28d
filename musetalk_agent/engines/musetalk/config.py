"""The configuration files beside the weights, checked field by field. Imports no torch.

Fields that upstream's files have must be there, others must not: a file of another model is rejected before any weight is read.
Fields that start with an underscore are comments and are dropped, as diffusers does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from musetalk_agent.engines.musetalk.weights_files import UNET_CONFIG
from musetalk_agent.errors import WeightsInvalid, WeightsMissing

SCALING_FACTOR = 0.18215
"""What latents are multiplied by where the VAE's file does not say: sd-vae-ft-mse's does not."""


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def arguments(self) -> dict[str, Any]:
        """The fields as the network's constructor takes them."""
        return self.model_dump()


class UnetConfig(_Config):
    """`musetalkV15/musetalk.json`: diffusers' `UNet2DConditionModel` with MuseTalk's inputs and outputs."""

    act_fn: Literal["silu"]
    attention_head_dim: int
    block_out_channels: tuple[int, ...]
    center_input_sample: Literal[False]
    cross_attention_dim: Literal[384]
    down_block_types: tuple[str, ...]
    downsample_padding: int
    flip_sin_to_cos: bool
    freq_shift: int
    in_channels: Literal[8]
    layers_per_block: int
    mid_block_scale_factor: float
    norm_eps: float
    norm_num_groups: int
    out_channels: Literal[4]
    sample_size: int
    up_block_types: tuple[str, ...]


class VaeConfig(_Config):
    """`sd-vae/config.json`: diffusers' `AutoencoderKL`. Later versions of diffusers write more fields; those that would change
    the network must say that they do not."""

    act_fn: Literal["silu"]
    block_out_channels: tuple[int, ...]
    down_block_types: tuple[str, ...]
    in_channels: Literal[3]
    latent_channels: Literal[4]
    layers_per_block: int
    norm_num_groups: int
    out_channels: Literal[3]
    sample_size: int
    up_block_types: tuple[str, ...]
    scaling_factor: float = SCALING_FACTOR
    shift_factor: None = None
    latents_mean: None = None
    latents_std: None = None
    force_upcast: bool = False
    use_quant_conv: Literal[True] = True
    use_post_quant_conv: Literal[True] = True
    mid_block_add_attention: Literal[True] = True

    def arguments(self) -> dict[str, Any]:
        """Without default values: older versions of diffusers do not know all of these fields."""
        return self.model_dump(exclude_defaults=True) | {"scaling_factor": self.scaling_factor}


class WhisperEncoderConfig(_Config):
    """The encoder's part of `whisper/config.json`. The rest of the file configures text decoding and is ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    activation_function: Literal["gelu"]
    d_model: Literal[384]
    encoder_attention_heads: int
    encoder_ffn_dim: int
    encoder_layers: Literal[4]
    max_source_positions: int
    num_mel_bins: Literal[80]
    scale_embedding: Literal[False]


class TaesdConfig(_Config):
    """`taesd/config.json`: diffusers' `AutoencoderTiny` for Stable Diffusion 1's latents."""

    act_fn: Literal["relu"]
    decoder_block_out_channels: tuple[int, ...]
    encoder_block_out_channels: tuple[int, ...]
    force_upcast: bool
    in_channels: Literal[3]
    latent_channels: Literal[4]
    latent_magnitude: int
    latent_shift: float
    num_decoder_blocks: tuple[int, ...]
    num_encoder_blocks: tuple[int, ...]
    out_channels: Literal[3]
    scaling_factor: float
    shift_factor: float = 0.0
    upsample_fn: Literal["nearest"] = "nearest"
    upsampling_scaling_factor: int


_Any = TypeVar("_Any", bound=_Config)


def read_config(kind: type[_Any], path: Path) -> _Any:
    """Reads and checks one configuration file.

    Raises:
        WeightsMissing: it is not there.
        WeightsInvalid: it is not JSON, or a field is unknown, missing or of a value that MuseTalk is not built for; the first such
            field is named in `field`, all of them in the text.
    """
    name = f"{path.parent.name}/{path.name}"
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise WeightsMissing(f"The model file {name} is missing from {path.parent.parent}.", value=name) from None
    except (OSError, ValueError) as error:
        raise WeightsInvalid(f"{name} cannot be read as JSON: {error}", value=name) from error
    if not isinstance(content, dict):
        raise WeightsInvalid(f"{name} is not an object of fields.", value=name)
    try:
        return kind.model_validate({key: value for key, value in content.items() if not key.startswith("_")})
    except ValidationError as error:
        problems = [(".".join(str(part) for part in found["loc"][:1]), found) for found in error.errors()]
        problems_text = "; ".join(
            _describe(field, found["type"], found["msg"], found["input"]) for field, found in problems
        )
        raise WeightsInvalid(
            f"{name} does not describe this model: {problems_text}.", field=problems[0][0], value=name
        ) from error


def _describe(field: str, kind: str, message: str, given: Any) -> str:
    if kind == "missing":
        return f"the field {field!r} is missing"
    if kind == "extra_forbidden":
        return f"the field {field!r} is unknown"
    return f"the field {field!r} is {given!r}: {message[:1].lower()}{message[1:]}"


def unet_config(folder: Path) -> dict[str, Any] | None:
    """The UNet's configuration in force, None where `musetalk.json` is not in the models folder. Raises WeightsInvalid."""
    try:
        return read_config(UnetConfig, folder / UNET_CONFIG).model_dump(mode="json")
    except WeightsMissing:
        return None

"""Seeded random weights in upstream's exact files: names, formats, key names and shapes.

The UNet's, the VAE's and TAESD's configurations at full scale are upstream's byte for byte (their sha256 is the manifest's).
Values are normal, scaled by the fan-in, so that activations stay of order one and pictures are neither black nor saturated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

Scale = Literal["tiny", "full"]

_POOL = 1 << 20
_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def unet_config(scale: Scale) -> dict[str, Any]:
    """`musetalkV15/musetalk.json`; tiny has few channels and is otherwise the same."""
    tiny = scale == "tiny"
    return {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.6.0.dev0",
        "act_fn": "silu",
        "attention_head_dim": 8,
        "block_out_channels": [32, 64, 64, 64] if tiny else [320, 640, 1280, 1280],
        "center_input_sample": False,
        "cross_attention_dim": 384,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 8,
        "layers_per_block": 1 if tiny else 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": 64,
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    }


def vae_config(scale: Scale) -> dict[str, Any]:
    """`sd-vae/config.json`: as upstream's, without a scaling_factor."""
    tiny = scale == "tiny"
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.4.2",
        "act_fn": "silu",
        "block_out_channels": [16, 16, 32, 32] if tiny else [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 1 if tiny else 2,
        "norm_num_groups": 8 if tiny else 32,
        "out_channels": 3,
        "sample_size": 256,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    }


def taesd_config(scale: Scale) -> dict[str, Any]:
    """`taesd/config.json`."""
    width = 16 if scale == "tiny" else 64
    return {
        "_class_name": "AutoencoderTiny",
        "_diffusers_version": "0.30.0",
        "act_fn": "relu",
        "decoder_block_out_channels": [width] * 4,
        "encoder_block_out_channels": [width] * 4,
        "force_upcast": False,
        "in_channels": 3,
        "latent_channels": 4,
        "latent_magnitude": 3,
        "latent_shift": 0.5,
        "num_decoder_blocks": [3, 3, 3, 1],
        "num_encoder_blocks": [1, 3, 3, 3],
        "out_channels": 3,
        "scaling_factor": 1.0,
        "shift_factor": 0.0,
        "upsample_fn": "nearest",
        "upsampling_scaling_factor": 2,
    }


def whisper_config(scale: Scale) -> dict[str, Any]:
    """`whisper/config.json` with the fields that shape the model; width, depth and positions are whisper-tiny's at both scales."""
    tiny = scale == "tiny"
    return {
        "activation_dropout": 0.0,
        "activation_function": "gelu",
        "architectures": ["WhisperForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": 1 if tiny else 50257,
        "d_model": 384,
        "decoder_attention_heads": 2 if tiny else 6,
        "decoder_ffn_dim": 64 if tiny else 1536,
        "decoder_layers": 1 if tiny else 4,
        "decoder_start_token_id": 1 if tiny else 50258,
        "dropout": 0.0,
        "encoder_attention_heads": 2 if tiny else 6,
        "encoder_ffn_dim": 64 if tiny else 1536,
        "encoder_layerdrop": 0.0,
        "encoder_layers": 4,
        "eos_token_id": 1 if tiny else 50257,
        "is_encoder_decoder": True,
        "max_source_positions": 1500,
        "max_target_positions": 8 if tiny else 448,
        "model_type": "whisper",
        "num_hidden_layers": 4,
        "num_mel_bins": 80,
        "pad_token_id": 0 if tiny else 50257,
        "scale_embedding": False,
        "torch_dtype": "float32",
        "transformers_version": "4.27.0.dev0",
        "use_cache": True,
        "vocab_size": 16 if tiny else 51865,
    }


def write_models(
    folder: Path,
    *,
    scale: Scale = "tiny",
    seed: int = 0,
    vae_folder: Literal["sd-vae", "sd-vae-ft-mse"] = "sd-vae",
    parsing: bool = False,
    taesd: bool = False,
) -> Path:
    """Writes a whole models folder of random fp32 weights and returns it.

    Args:
        folder: made where it is missing.
        scale: "tiny" has the architecture with few channels (1 MB, well under 2 s); "full" has upstream's (3.9 GB).
        seed: the same seed writes the same values.
        vae_folder: one of the two names upstream users have.
        parsing, taesd: write these optional models too. BiSeNet has one size only (53 MB).
    """
    source = _Values(seed)
    write_config(folder / "musetalkV15" / "musetalk.json", unet_config(scale))
    _save(source.fill(_unet_shapes(scale)), folder / "musetalkV15" / "unet.pth")
    write_config(folder / vae_folder / "config.json", vae_config(scale))
    _save(source.fill(_vae_shapes(scale)), folder / vae_folder / "diffusion_pytorch_model.bin")
    write_config(folder / "whisper" / "config.json", whisper_config(scale))
    write_config(folder / "whisper" / "preprocessor_config.json", _preprocessor_config())
    _save(source.fill(_whisper_shapes(scale)), folder / "whisper" / "pytorch_model.bin")
    if parsing:
        write_parsing(folder, seed=seed)
    if taesd:
        write_taesd(folder, scale=scale, seed=seed)
    return folder


def write_parsing(folder: Path, *, seed: int = 0) -> None:
    """`face-parse-bisent/79999_iter.pth`: the old pickle format without a zip around it, as of 2019."""
    _save(_Values(seed).fill(dict(bisenet_shapes())), folder / "face-parse-bisent" / "79999_iter.pth", zipped=False)


def write_taesd(folder: Path, *, scale: Scale = "tiny", seed: int = 0) -> None:
    """`taesd/`: its configuration and safetensors."""
    from diffusers import AutoencoderTiny
    from safetensors.torch import save_file

    write_config(folder / "taesd" / "config.json", taesd_config(scale))
    shapes = _meta_shapes(AutoencoderTiny, taesd_config(scale))
    save_file(_Values(seed).fill(shapes), folder / "taesd" / "diffusion_pytorch_model.safetensors")


class _Values:
    """Cheap normal values: one drawn pool, read from random offsets."""

    def __init__(self, seed: int) -> None:
        import torch

        self._random = torch.Generator().manual_seed(seed)
        self._pool = torch.randn(_POOL, generator=self._random)

    def fill(self, shapes: dict[str, torch.Size]) -> dict[str, torch.Tensor]:
        return {name: self._tensor(name, shape) for name, shape in shapes.items()}

    def _tensor(self, name: str, shape: torch.Size) -> torch.Tensor:
        import torch

        if name.endswith("num_batches_tracked"):
            return torch.tensor(80000)
        count = shape.numel()
        pool = self._pool if count < _POOL else self._pool.repeat(2 + count // _POOL)
        offset = int(torch.randint(min(_POOL, len(pool) - count), (1,), generator=self._random))
        values = pool[offset : offset + count].reshape(shape)
        if name.endswith("running_var"):
            return 1 + 0.1 * values.abs()
        if len(shape) == 1:
            # Biases and means are small; gains of norms (the only 1-D weights) lie around one.
            return 0.05 * values + (1.0 if name.endswith("weight") else 0.0)
        if "embed_" in name:
            return 0.1 * values
        gain = 0.5 if name.endswith("conv_out.weight") else 1.0
        return values * (gain / math.sqrt(count // shape[0]))


def _unet_shapes(scale: Scale) -> dict[str, torch.Size]:
    from diffusers import UNet2DConditionModel

    return _meta_shapes(UNet2DConditionModel, unet_config(scale))


def _vae_shapes(scale: Scale) -> dict[str, torch.Size]:
    from diffusers import AutoencoderKL

    return {_old_name(name): shape for name, shape in _meta_shapes(AutoencoderKL, vae_config(scale)).items()}


def _old_name(name: str) -> str:
    """The spelling of attention weights in checkpoints of 2022."""
    for new, old in _OLD_ATTENTION.items():
        name = name.replace(f"mid_block.attentions.0.{new}.", f"mid_block.attentions.0.{old}.")
    return name


def _whisper_shapes(scale: Scale) -> dict[str, torch.Size]:
    import torch
    from transformers import WhisperConfig, WhisperModel

    with torch.device("meta"):
        model = WhisperModel(WhisperConfig(**whisper_config(scale)))
    return {f"model.{name}": value.shape for name, value in model.state_dict().items()}


def _meta_shapes(kind: Any, config: dict[str, Any]) -> dict[str, torch.Size]:
    import torch

    with torch.device("meta"):
        module = kind(**{key: value for key, value in config.items() if not key.startswith("_")})
    return {name: value.shape for name, value in module.state_dict().items()}


def bisenet_shapes() -> Iterator[tuple[str, torch.Size]]:
    """Every key and shape of zllrunning's face-parsing BiSeNet with 19 classes, written down from its layers."""
    import torch

    yield from _conv_bn("cp.resnet.conv1", "cp.resnet.bn1", 3, 64, 7)
    wide = 64
    for layer, width in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            stem = f"cp.resnet.layer{layer}.{block}"
            yield from _conv_bn(f"{stem}.conv1", f"{stem}.bn1", wide, width, 3)
            yield from _conv_bn(f"{stem}.conv2", f"{stem}.bn2", width, width, 3)
            if wide != width:
                yield from _conv_bn(f"{stem}.downsample.0", f"{stem}.downsample.1", wide, width, 1)
            wide = width
    for arm, width in (("cp.arm16", 256), ("cp.arm32", 512)):
        yield from _conv_bn(f"{arm}.conv.conv", f"{arm}.conv.bn", width, 128, 3)
        yield from _conv_bn(f"{arm}.conv_atten", f"{arm}.bn_atten", 128, 128, 1)
    for name, wide, kernel in (("cp.conv_head32", 128, 3), ("cp.conv_head16", 128, 3), ("cp.conv_avg", 512, 1)):
        yield from _conv_bn(f"{name}.conv", f"{name}.bn", wide, 128, kernel)
    yield from _conv_bn("ffm.convblk.conv", "ffm.convblk.bn", 256, 256, 1)
    yield "ffm.conv1.weight", torch.Size((64, 256, 1, 1))
    yield "ffm.conv2.weight", torch.Size((256, 64, 1, 1))
    for name, wide, width in (("conv_out", 256, 256), ("conv_out16", 128, 64), ("conv_out32", 128, 64)):
        yield from _conv_bn(f"{name}.conv.conv", f"{name}.conv.bn", wide, width, 3)
        yield f"{name}.conv_out.weight", torch.Size((19, width, 1, 1))


def _conv_bn(conv: str, norm: str, wide: int, width: int, kernel: int) -> Iterator[tuple[str, torch.Size]]:
    import torch

    yield f"{conv}.weight", torch.Size((width, wide, kernel, kernel))
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{norm}.{part}", torch.Size((width,))
    yield f"{norm}.num_batches_tracked", torch.Size(())


def _preprocessor_config() -> dict[str, Any]:
    """Without the mel filters that the real file carries: nothing reads them."""
    return {
        "chunk_length": 30,
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": 80,
        "hop_length": 160,
        "n_fft": 400,
        "n_samples": 480000,
        "nb_max_frames": 3000,
        "padding_side": "right",
        "padding_value": 0.0,
        "processor_class": "WhisperProcessor",
        "return_attention_mask": False,
        "sampling_rate": 16000,
    }


def write_config(path: Path, content: dict[str, Any]) -> None:
    """A configuration file as diffusers writes it; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _save(state: dict[str, torch.Tensor], path: Path, *, zipped: bool = True) -> None:
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path, _use_new_zipfile_serialization=zipped)

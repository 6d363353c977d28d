"""The network in one call, beside the reference: small for behaviour, of full size once for numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musetalk_agent.features.whisper_features import WhisperFeatures
from tests.fakes.weights import unet_config, vae_config, write_models
from tests.late import late_imports

with late_imports("torch", "diffusers"):
    import diffusers
    import torch

    from musetalk_agent.engines.musetalk.loading import load_unet, load_vae, load_whisper
    from musetalk_agent.engines.musetalk.network import (
        AudioEncoder,
        FoldedUNet,
        Network,
        PatchDecoder,
        positions,
        to_pixels,
    )
    from tests.musetalk_agent.engines.musetalk.models import CPU, difference, inputs, plain
    from tests.reference.network import PlainNetwork, position_table


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


def network_of(models: Path, dtype: torch.dtype | None = None) -> Network:
    dtype = dtype or torch.float32
    return Network(
        AudioEncoder(load_whisper(models, CPU, dtype)),
        FoldedUNet(load_unet(models, CPU, dtype)),
        PatchDecoder(load_vae(models, CPU, dtype)),
        dtype,
    ).eval()


def windows(count: int) -> torch.Tensor:
    """Features of a second of noise."""
    stream = WhisperFeatures().stream(25)
    noise = np.random.default_rng(5).normal(0, 4000, 16_000).astype(np.int16)
    return torch.from_numpy(np.stack(stream.push(noise)[:count]))


def test_positions_are_the_references() -> None:
    assert (positions() - position_table()).abs().max() < 1e-5
    assert positions()[0, :2].tolist() == [0, 1]


def test_from_windows_to_bytes_as_the_reference_and_whatever_the_batch(models: Path) -> None:
    network, mel, (_, latents) = network_of(models), windows(3), inputs(3)
    with torch.inference_mode():
        audio = network.encoder(mel)
        pixels, good = network(mel, latents)
        alone = torch.cat([network(mel[i : i + 1], latents[i : i + 1])[0] for i in range(3)])
    reference = plain(models)
    wanted = [reference.decoded(reference.predicted(a, b)) for a, b in zip(audio, latents, strict=True)]
    assert good.all()
    assert difference(pixels, np.stack(wanted)) <= 1
    assert difference(pixels, alone) <= 1
    assert difference(pixels[0], pixels[1]) > 10


def test_half_precision_stays_within_three_steps(models: Path) -> None:
    """On the processor, in lieu of a card: what float16 weights and activations cost."""
    mel, (_, latents) = windows(1), inputs(1)
    with torch.inference_mode():
        whole, _ = network_of(models)(mel, latents)
        half, good = network_of(models, torch.float16)(mel, latents)
    error = np.abs(half.numpy().astype(int) - whole.numpy())
    assert good.all()
    assert np.percentile(error, 99.9) <= 3


def test_weights_that_are_no_numbers_are_seen_in_the_flag(models: Path) -> None:
    network = network_of(models)
    bias = network.decoder.decoder.conv_out.bias
    network.decoder.decoder.conv_out.bias = torch.nn.Parameter(bias * float("nan"), requires_grad=False)
    with torch.inference_mode():
        _, good = network(windows(2), inputs(2)[1])
    assert good.tolist() == [False, False]


def full(kind: Any, config: dict[str, Any]) -> Any:
    """A network of full size with seeded values like those of `tests.fakes.weights`, never on disk.

    Parameters of one shape have the same values, and the same memory: most of its gigabytes are never written.
    """
    with torch.device("meta"):
        module = kind(**{key: value for key, value in config.items() if not key.startswith("_")})
    module.to_empty(device="cpu")
    pool = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    made: dict[tuple[torch.Size, bool], torch.Tensor] = {}
    for name, parameter in module.named_parameters():
        gain = parameter.ndim == 1 and name.endswith("weight")
        if (parameter.shape, gain) not in made:
            flat = parameter.detach().view(-1)
            scale = 0.05 if parameter.ndim == 1 else 1 / math.sqrt(flat.numel() // len(parameter))
            values = pool[: len(flat)] * scale + (1.0 if gain else 0.0)
            for start in range(0, len(flat), len(values)):
                part = flat[start : start + len(values)]
                part.copy_(values[: len(part)])
            made[parameter.shape, gain] = parameter.detach()
        parameter.data = made[parameter.shape, gain]
    return module.eval().requires_grad_(False)


def test_an_eighth_of_a_frame_of_the_full_architecture() -> None:
    """850 and 84 million parameters, fp32: the fast path to one step of a byte, latents to 1e-4.

    Each number comes of as many channels as in a whole frame; an eighth of the latents is made, and the pixels of half of them.
    """
    unet = full(diffusers.UNet2DConditionModel, unet_config("full"))
    vae = full(diffusers.AutoencoderKL, vae_config("full"))
    assert sum(p.numel() for p in unet.parameters()) == 849_947_844  # upstream's count
    reference = PlainNetwork(unet, vae)
    audio, latents = inputs(1)
    latents = latents[..., :16, :8]
    predicted = reference.predicted(audio[0], latents[0])
    wanted = reference.decoded(predicted[..., :8, :8])
    with torch.inference_mode():
        made = FoldedUNet(unet)(latents.float(), audio + positions())
        pixels, good = to_pixels(PatchDecoder(vae)(made[..., :8, :8]))
    assert predicted.std() > 0.1 and wanted.std() > 10
    assert (made[0] - predicted).abs().max() < 1e-4
    assert good.all() and difference(pixels[0], wanted) <= 1

"""The fused forwards beside diffusers called plainly, and what they leave to be moved through memory."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.fakes.weights import write_models
from tests.late import late_imports

with late_imports("torch", "diffusers"):
    import torch

    from musetalk_agent.engines.musetalk.fused_network import FusedDecoder, FusedUNet, fused
    from musetalk_agent.engines.musetalk.loading import load_taesd, load_unet, load_vae
    from musetalk_agent.engines.musetalk.network import FoldedUNet, Network, PatchDecoder, TinyDecoder
    from tests.bench.traffic import elementwise_bytes
    from tests.musetalk_agent.engines.musetalk.models import CPU, inputs, network_on_meta, plain
    from tests.reference.network import position_table


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"), taesd=True)


def test_the_unet_is_the_references_to_1e_5(models: Path) -> None:
    audio, latents = inputs(2)
    wanted = torch.stack([plain(models).predicted(a, b) for a, b in zip(audio, latents, strict=True)])
    unet = FusedUNet(FoldedUNet(load_unet(models, CPU, torch.float32))).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        made = unet(latents.float(), audio + position_table())
    assert wanted.std() > 0.1
    assert (made - wanted).abs().max() < 1e-5


def test_the_decoder_is_the_exact_one_to_1e_5(models: Path) -> None:
    """Beside float64: diffusers in float32 is off by up to 2e-5 itself."""
    decoder = FusedDecoder(PatchDecoder(load_vae(models, CPU, torch.float32))).to(memory_format=torch.channels_last)
    given = 0.2 * torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wanted = load_vae(models, CPU, torch.float64).decode(given.double() / 0.18215).sample
        made = decoder(given)
    assert wanted.std() > 0.05
    assert (made - wanted).abs().max() < 1e-5


def test_the_lower_rows_are_the_plain_decoders(models: Path) -> None:
    decoder = PatchDecoder(load_vae(models, CPU, torch.float64), first_row=8)
    given = 0.2 * torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(1)).double()
    with torch.inference_mode():
        assert (FusedDecoder(decoder)(given) - decoder(given)).abs().max() < 1e-5


def test_biases_that_are_moved_count(models: Path) -> None:
    """Guards the test above: with another bias of an upsampler, which is read two layers later, the picture is another one."""
    vae = load_vae(models, CPU, torch.float32)
    decoder, given = PatchDecoder(vae), torch.ones(1, 4, 32, 32)
    with torch.inference_mode():
        before = FusedDecoder(decoder)(given)
        upsampler = vae.decoder.up_blocks[0].upsamplers[0]
        upsampler.bias = torch.nn.Parameter(upsampler.bias + torch.randn(upsampler.bias.shape), requires_grad=False)
        after, wanted = FusedDecoder(decoder)(given), decoder(given)
    assert (after - before).abs().max() > 1e-2
    assert (after - wanted).abs().max() < 1e-4  # of float32's own rounding


def test_weights_are_shared_and_other_decoders_are_kept(models: Path) -> None:
    unet, taesd = FoldedUNet(load_unet(models, CPU, torch.float32)), load_taesd(models, CPU, torch.float32)
    assert taesd is not None
    network = Network(torch.nn.Identity(), unet, TinyDecoder(taesd), torch.float32)
    made = fused(network)
    assert made.decoder is network.decoder
    ours = {parameter.data_ptr() for parameter in made.parameters()}
    assert ours == {parameter.data_ptr() for parameter in network.parameters()}


def test_a_frame_moves_at_most_1_2_gigabytes_outside_products() -> None:
    """Counted from shapes at full size, float16. Unfused it is 2.6 (2.7 by the layer list that the desk check of 2026 counted)."""
    network, given = network_on_meta()
    unfused = elementwise_bytes(lambda: network(*given))
    other = fused(network).to(memory_format=torch.channels_last)
    left = elementwise_bytes(lambda: other(*given))
    assert unfused == pytest.approx(2.65e9, rel=0.02)
    assert 1.1e9 < left <= 1.2e9


def test_the_counter_counts_what_is_read_and_written() -> None:
    x = torch.empty(2, 8, 4, 4, device="meta", dtype=torch.float16)
    size = 2 * 8 * 16 * 2
    convolution = torch.nn.Conv2d(8, 8, 3, padding=1, device="meta", dtype=torch.float16)
    assert elementwise_bytes(lambda: x + x) == 3 * size
    assert (
        elementwise_bytes(lambda: x.permute(0, 2, 3, 1).flatten(1)) == 2 * size
    )  # a copy, because rows are not together
    assert elementwise_bytes(lambda: x.transpose(2, 3)) == 0
    assert elementwise_bytes(lambda: convolution(x)) == 2 * size
    assert elementwise_bytes(lambda: torch.nn.functional.conv2d(x, convolution.weight, padding=1)) == 0
    norm = torch.nn.GroupNorm(4, 8, device="meta", dtype=torch.float16)
    assert elementwise_bytes(lambda: norm(x)) == pytest.approx(3 * size, abs=200)
    query = torch.empty(1, 2, 16, 4, device="meta")
    assert elementwise_bytes(lambda: torch.nn.functional.scaled_dot_product_attention(query, query, query)) == 0


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernels_are_what_a_card_runs() -> None:
    """The operations' implementation for a card calls Triton's; that it is registered is all that shows here."""
    for name in ("moments", "add", "normalize", "geglu", "add_norm"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"musetalk::{name}", "CUDA")

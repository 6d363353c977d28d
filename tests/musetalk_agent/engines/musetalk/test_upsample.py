"""Nearest-neighbour doubling and a convolution as one transposed convolution: equal, borders too, and cheaper."""

from __future__ import annotations

import itertools

import pytest

from tests.fakes.weights import taesd_config, unet_config, vae_config
from tests.late import late_imports

with late_imports("torch", "diffusers"):
    import torch
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    from musetalk_agent.engines.musetalk.network import PatchDecoder, fold_upsamplers, upsampling_convolution
    from tests.musetalk_agent.engines.musetalk.models import FoldedUNetOnMeta, plain_fields


def doubled(convolution: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    return convolution(x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def convolution(channels: int, made: int, *, bias: bool = True, seed: int = 0) -> torch.nn.Conv2d:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.nn.Conv2d(channels, made, 3, padding=1, bias=bias).requires_grad_(False)


@pytest.mark.parametrize(("height", "width", "bias"), [(1, 1, True), (1, 5, False), (2, 2, True), (7, 4, True)])
def test_equal_to_doubling_and_convolving_with_the_borders(height: int, width: int, bias: bool) -> None:
    plain = convolution(24, 40, bias=bias)
    x = torch.randn(3, 24, height, width, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wanted, made = doubled(plain, x), upsampling_convolution(plain)(x)
    assert made.shape == wanted.shape == (3, 40, 2 * height, 2 * width)
    assert (made - wanted).abs().max() < 1e-5
    assert wanted[..., 0, 0].std() > 0.1 and wanted[..., -1, -1].std() > 0.1


def test_each_of_the_nine_weights_lands_where_doubling_puts_it() -> None:
    """Exact: one weight of one, ones and a step as input, every output pixel."""
    x = torch.arange(1.0, 13.0).reshape(1, 1, 3, 4)
    for row, column in itertools.product(range(3), range(3)):
        plain = torch.nn.Conv2d(1, 1, 3, padding=1, bias=False).requires_grad_(False)
        plain.weight.zero_()
        plain.weight[0, 0, row, column] = 1.0
        assert torch.equal(upsampling_convolution(plain)(x), doubled(plain, x)), (row, column)


def test_half_precision_is_summed_in_float32() -> None:
    plain = convolution(8, 8)
    exact = upsampling_convolution(plain).weight
    half = upsampling_convolution(plain.half()).weight
    assert half.dtype == torch.float16
    assert (half.float() - exact).abs().max() <= 2**-11 * 4 * exact.abs().max()


@pytest.mark.parametrize("wrong", [{"padding": 0}, {"stride": 2, "padding": 1}, {"groups": 2, "padding": 1}])
def test_another_convolution_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="not 3×3"):
        upsampling_convolution(torch.nn.Conv2d(4, 4, 3, **wrong))


def test_of_taesd_the_pairs_of_layers_are_folded() -> None:
    decoder = AutoencoderTiny(**plain_fields(taesd_config("tiny"))).decoder.requires_grad_(False)
    x = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        wanted = decoder(x)
        fold_upsamplers(decoder)
        made = decoder(x)
    assert sum(isinstance(layer, torch.nn.ConvTranspose2d) for layer in decoder.layers) == 3
    assert not any(isinstance(layer, torch.nn.Upsample) for layer in decoder.layers)
    assert (made - wanted).abs().max() < 1e-5


def test_unet_and_decoder_of_full_size_need_13_per_cent_fewer_operations() -> None:
    """Counted from shapes: the networks have no weights here."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**plain_fields(unet_config("full"))).eval()
        vae = AutoencoderKL(**plain_fields(vae_config("full"))).eval()
        latents, audio = torch.empty(1, 8, 32, 32), torch.empty(1, 50, 384)
        middle, step = torch.empty(1, 4, 32, 32), torch.zeros(1)

    def operations(call: object) -> float:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            call()  # type: ignore[operator]
        return counter.get_total_flops() / 1e9

    before = operations(lambda: (unet(latents, step, audio), vae.decode(middle)))
    folded = torch.nn.ModuleList((FoldedUNetOnMeta(unet), PatchDecoder(vae)))
    after = operations(lambda: (folded[0](latents, audio), folded[1](middle)))
    assert before == pytest.approx(800, rel=0.01)
    assert after == pytest.approx(0.867 * before, rel=0.005)

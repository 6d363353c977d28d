"""Triton's kernels in its interpreter on the processor, beside float64. `test_triton_kernels.py` runs this file in a process of its
own, because Triton's library is interpreted or compiled for a whole process: `TRITON_INTERPRET=1`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from musetalk_agent.engines.musetalk import fused_operations, triton_kernels


def values(*shape: int, seed: int, mean: float = 0.0) -> Any:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + mean
    return made.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else made


SHAPES = [
    (2, 320, 8, 8, 32, 0.0),  # ten channels a group: a tile has empty places
    (1, 32, 5, 7, 8, 40.0),  # rows that do not fill a tile
    (1, 640, 4, 4, 16, 40.0),  # forty channels a group, as 1280 in 32
    (1, 128, 46, 47, 32, 10.0),  # many pieces, two tiles in each, the last of them cut
    (1, 24, 3, 3, 12, 0.0),  # groups that do not fill a tile
]
"""The last is the mean: the sum of squares loses a large one's variance where it is not taken off first."""


@pytest.mark.parametrize(("images", "channels", "height", "width", "groups", "mean"), SHAPES)
def test_sum_and_group_norm_with_silu_are_float64s_to_1e_5(
    images: int, channels: int, height: int, width: int, groups: int, mean: float
) -> None:
    shape = (images, channels, height, width)
    x, y, bias = values(*shape, seed=1, mean=mean), values(*shape, seed=2), values(channels, seed=3)
    gain, offset = values(channels, seed=4), values(channels, seed=5)
    summed, moments = triton_kernels.add(x, y, bias, groups, stores=True)
    assert torch.equal(summed, x + y + bias[:, None, None])
    made = triton_kernels.normalize(summed, None, moments, gain, offset, 1e-5, silu=True)
    normed = torch.nn.functional.group_norm(summed.double(), groups, gain.double(), offset.double(), 1e-5)
    assert (made - torch.nn.functional.silu(normed)).abs().max() < 1e-5
    assert made.is_contiguous(memory_format=torch.channels_last)


def test_a_bias_that_is_added_while_reading_is_the_same_as_one_added_before() -> None:
    x, bias, gain, offset = values(2, 64, 9, 5, seed=1), *(values(64, seed=seed) for seed in (2, 3, 4))
    kept, moments = triton_kernels.add(x, None, bias, 32, stores=False)
    assert kept is x
    made = triton_kernels.normalize(x, bias, moments, gain, offset, 1e-6, silu=False)
    wanted = torch.nn.functional.group_norm(
        (x + bias[:, None, None]).double(), 32, gain.double(), offset.double(), 1e-6
    )
    assert (made - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    x, y = (values(1, 64, 6, 6, seed=seed).to(dtype) for seed in (1, 2))
    gain, offset = values(64, seed=3).to(dtype), values(64, seed=4).to(dtype)
    summed, moments = triton_kernels.add(x, y, None, 32, stores=True)
    _rounded(summed, x.double() + y.double())
    made = triton_kernels.normalize(summed, None, moments, gain, offset, 1e-5, silu=True)
    normed = torch.nn.functional.group_norm(summed.double(), 32, gain.double(), offset.double(), 1e-5)
    _rounded(made, torch.nn.functional.silu(normed))


def _rounded(made: torch.Tensor, exact: torch.Tensor) -> None:
    """Half a step for float16; the interpreter cuts bfloat16 off instead, a whole step."""
    half = 0.5 if made.dtype == torch.float16 else 1.0
    assert ((made - exact).abs() <= half * torch.finfo(made.dtype).eps * exact.abs() + 1e-6).all()


def test_geglu_and_the_sum_with_layer_norm() -> None:
    x = values(2, 5, 2 * 320, seed=1)
    value, gate = x.chunk(2, -1)
    assert (triton_kernels.geglu(x) - value * torch.nn.functional.gelu(gate)).abs().max() < 1e-6
    tokens, more = values(2, 7, 320, seed=2, mean=20.0), values(2, 7, 320, seed=3)
    gain, offset = values(320, seed=4), values(320, seed=5)
    summed, normed = triton_kernels.add_norm(tokens, more, gain, offset, 1e-5)
    assert torch.equal(summed, tokens + more)
    wanted = torch.nn.functional.layer_norm(summed.double(), (320,), gain.double(), offset.double(), 1e-5)
    assert (normed - wanted).abs().max() < 1e-5


def test_what_torch_does_in_their_place_without_a_card_is_the_same() -> None:
    x, y, bias = values(2, 64, 6, 8, seed=1), values(2, 64, 6, 8, seed=2), values(64, seed=3)
    gain, offset = values(64, seed=4), values(64, seed=5)
    theirs, found = triton_kernels.add(x, y, bias, 32, stores=True)
    ours, moments = fused_operations.add(x, y, bias, 32)
    assert torch.equal(ours, theirs)
    assert found.shape[1] == 1 and torch.allclose(moments, found, rtol=1e-5, atol=1e-5)
    arguments = (bias, moments, gain, offset, 1e-5, True)
    assert (
        fused_operations.normalize(x, *arguments) - triton_kernels.normalize(x, *arguments[:-1], silu=True)
    ).abs().max() < 1e-5
    wide = values(3, 128, seed=6)
    assert (fused_operations.geglu(wide) - triton_kernels.geglu(wide)).abs().max() < 1e-6
    pairs = zip(
        fused_operations.add_norm(wide, wide, gain.repeat(2), offset.repeat(2), 1e-5),
        triton_kernels.add_norm(wide, wide, gain.repeat(2), offset.repeat(2), 1e-5),
        strict=True,
    )
    assert all((one - other).abs().max() < 1e-5 for one, other in pairs)

"""The operations between convolutions, fused, as operations of torch: Triton's kernels on a card, plain torch elsewhere.

The plain ones say what the others compute, and let a network of fused operations run and be counted without a card.
Moments are float32 `[B, pieces, groups, 2]`: mean and sum of squared deviations of each group in each piece of a picture.
Pictures are `[B, C, h, w]` with their channels together in memory (channels last).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op
from torch.nn import functional

_CHANNELS_LAST = torch.channels_last


@custom_op("musetalk::moments", mutates_args=())
def moments(x: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """The moments of `x + bias`."""
    return _moments(_biased(x, bias), groups)


@custom_op("musetalk::add", mutates_args=())
def add(x: Tensor, y: Tensor, bias: Tensor | None, groups: int) -> tuple[Tensor, Tensor]:
    """`x + y + bias`, rounded to the pictures' dtype once, and the moments of that."""
    made = _biased(x.float() + y.float(), bias).to(x.dtype)
    return made, _moments(made.float(), groups)


@custom_op("musetalk::normalize", mutates_args=())
def normalize(
    x: Tensor, bias: Tensor | None, found: Tensor, gain: Tensor, offset: Tensor, eps: float, silu: bool
) -> Tensor:
    """Group norm of `x + bias`, whose moments were `found`, and SiLU behind it if asked for; rounded once."""
    groups, count = found.shape[2], x[0].numel() // found.shape[2]
    pieces = found.shape[1]
    if pieces != 1:
        raise ValueError("plain torch takes a picture's moments in one piece")
    mean, deviation = found[:, 0, :, :1], (found[:, 0, :, 1:] / count + eps).sqrt()
    value = (_biased(x, bias).reshape(len(x), groups, count) - mean) / deviation
    value = value.reshape(x.shape) * gain.float()[:, None, None] + offset.float()[:, None, None]
    made = functional.silu(value) if silu else value
    return made.to(x.dtype).contiguous(memory_format=_CHANNELS_LAST)


@custom_op("musetalk::geglu", mutates_args=())
def geglu(x: Tensor) -> Tensor:
    """`[…, 2n]` to `[…, n]`: the first half times the exact GELU of the second, rounded once."""
    value, gate = x.float().chunk(2, -1)
    return (value * functional.gelu(gate)).to(x.dtype)


@custom_op("musetalk::add_norm", mutates_args=())
def add_norm(x: Tensor, y: Tensor, gain: Tensor, offset: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`x + y` over tokens `[…, C]`, rounded once, and the layer norm of that."""
    summed = (x.float() + y.float()).to(x.dtype)
    made = functional.layer_norm(summed.float(), gain.shape, gain.float(), offset.float(), eps)
    return summed, made.to(x.dtype)


def _biased(x: Tensor, bias: Tensor | None) -> Tensor:
    return x.float() if bias is None else x.float() + bias.float()[:, None, None]


def _moments(value: Tensor, groups: int) -> Tensor:
    grouped = value.reshape(len(value), groups, -1)
    mean = grouped.mean(2)
    return torch.stack([mean, (grouped - mean[..., None]).square().sum(2)], 2)[:, None]


@moments.register_kernel("cuda")
def _(x: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    from musetalk_agent.engines.musetalk import triton_kernels

    return triton_kernels.add(_laid(x), None, bias, groups, stores=False)[1]


@add.register_kernel("cuda")
def _(x: Tensor, y: Tensor, bias: Tensor | None, groups: int) -> tuple[Tensor, Tensor]:
    from musetalk_agent.engines.musetalk import triton_kernels

    return triton_kernels.add(_laid(x), _laid(y), bias, groups, stores=True)


@normalize.register_kernel("cuda")
def _(x: Tensor, bias: Tensor | None, found: Tensor, gain: Tensor, offset: Tensor, eps: float, silu: bool) -> Tensor:
    from musetalk_agent.engines.musetalk import triton_kernels

    return triton_kernels.normalize(_laid(x), bias, found, gain, offset, eps, silu=silu)


@geglu.register_kernel("cuda")
def _(x: Tensor) -> Tensor:
    from musetalk_agent.engines.musetalk import triton_kernels

    return triton_kernels.geglu(x.contiguous())


@add_norm.register_kernel("cuda")
def _(x: Tensor, y: Tensor, gain: Tensor, offset: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    from musetalk_agent.engines.musetalk import triton_kernels

    return triton_kernels.add_norm(x.contiguous(), y.contiguous(), gain, offset, eps)


def _laid(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=_CHANNELS_LAST)


@moments.register_fake
def _(x: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    return x.new_empty((len(x), 1, groups, 2), dtype=torch.float32)


@add.register_fake
def _(x: Tensor, y: Tensor, bias: Tensor | None, groups: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty((len(x), 1, groups, 2), dtype=torch.float32)


@normalize.register_fake
def _(x: Tensor, bias: Tensor | None, found: Tensor, gain: Tensor, offset: Tensor, eps: float, silu: bool) -> Tensor:
    return torch.empty_like(x)


@geglu.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


@add_norm.register_fake
def _(x: Tensor, y: Tensor, gain: Tensor, offset: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)

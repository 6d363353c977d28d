"""Triton kernels over pictures whose channels lie together (NHWC): group norm with SiLU, sums of residual layers, GEGLU.

A group's mean and squared deviations are first found for each of at most 64 pieces of the picture and then put together by the
rule of Chan, Golub and LeVeque, so that nothing is lost to cancellation however far the mean is from zero. Everything is float32
between reading and writing. Imported where Triton is there and only then.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 4096
"""Elements of a tile: 32 registers for each of 128 threads."""
_WIDTH = 128
"""Channels of a tile, where groups are not larger: 256 bytes of half precision, two lines of a card's cache."""
_MOST_PIECES = 64
"""Pieces of a picture: enough programs for a large card, and few enough partial moments for every program to read them again."""


@triton.jit
def _merged(count, mean, squares, count_b, mean_b, squares_b):
    total = tl.maximum(count + count_b, 1.0)
    apart = mean_b - mean
    return (
        count + count_b,
        mean + apart * count_b / total,
        squares + squares_b + apart * apart * count * count_b / total,
    )


@triton.jit
def _spread(of_groups, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """`[groups]` to `[groups * width]`, each value to all channels of its group."""
    return tl.reshape(tl.broadcast_to(of_groups[:, None], [GROUPS, WIDTH]), [GROUPS * WIDTH])


@triton.jit
def _tile_moments(value, inside, count, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """Mean and squared deviations of each group of a tile `[rows, groups * width]`."""
    mean = tl.sum(tl.reshape(tl.sum(value, 0), [GROUPS, WIDTH]), 1) / tl.maximum(count, 1.0)
    apart = tl.where(inside, value - _spread(mean, GROUPS, WIDTH)[None, :], 0.0)
    return mean, tl.sum(tl.reshape(tl.sum(apart * apart, 0), [GROUPS, WIDTH]), 1)


@triton.jit
def _channels(groups, width, GROUPS: tl.constexpr, WIDTH: tl.constexpr, EVEN: tl.constexpr):
    """A tile's channels, and which of its places hold one. Where EVEN none is left out, and they are read many at a time."""
    place = tl.arange(0, GROUPS * WIDTH)
    group = tl.program_id(1) * GROUPS + place // WIDTH
    if EVEN:
        return tl.program_id(1) * (GROUPS * WIDTH) + place, group < groups
    return group * width + place % WIDTH, (group < groups) & (place % WIDTH < width)


@triton.jit
def _add_kernel(
    x, y, bias, made, moments, rows, steps, channels, groups, width,
    HAS_Y: tl.constexpr, HAS_BIAS: tl.constexpr, STORES: tl.constexpr,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """`made = x + y + bias` where STORES, and the moments of what was, or would have been, stored."""
    piece, image = tl.program_id(0), tl.program_id(2)
    channel, valid = _channels(groups, width, GROUPS, WIDTH, EVEN)
    added = tl.zeros([GROUPS * WIDTH], tl.float32)
    if HAS_BIAS:
        added = tl.load(bias + channel, mask=valid, other=0.0).to(tl.float32)
    count = 0.0
    mean = tl.zeros([GROUPS], tl.float32)
    squares = tl.zeros([GROUPS], tl.float32)
    for step in range(steps):
        row = (piece * steps + step) * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & valid[None, :]
        at = (image.to(tl.int64) * rows + row)[:, None] * channels + channel[None, :]
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        if HAS_Y:
            value += tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
        value = tl.where(inside, value + added[None, :], 0.0)
        if STORES:
            kept = value.to(made.dtype.element_ty)
            tl.store(made + at, kept, mask=inside)
            value = kept.to(tl.float32)
        left = tl.minimum(tl.maximum(rows - (piece * steps + step) * ROWS, 0), ROWS)
        tile_count = left.to(tl.float32) * width
        tile_mean, tile_squares = _tile_moments(value, inside, tile_count, GROUPS, WIDTH)
        count, mean, squares = _merged(count, mean, squares, tile_count, tile_mean, tile_squares)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    place = moments + ((image * tl.num_programs(0) + piece) * groups + group) * 2
    tl.store(place, mean, mask=group < groups)
    tl.store(place + 1, squares, mask=group < groups)


@triton.jit
def _normalize_kernel(
    x, bias, moments, gain, offset, made, rows, steps, channels, groups, width, eps,
    HAS_BIAS: tl.constexpr, SILU: tl.constexpr, PIECES: tl.constexpr,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """`made = activation((x + bias - mean) / deviation * gain + offset)`."""
    piece, pieces, image = tl.program_id(0), tl.num_programs(0), tl.program_id(2)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    # all pieces at once: one after the other each would wait for its own load
    other = tl.arange(0, PIECES)
    known = (other < pieces)[:, None] & (group < groups)[None, :]
    place = moments + ((image * pieces + other)[:, None] * groups + group[None, :]) * 2
    piece_rows = tl.maximum(tl.minimum(rows - other * steps * ROWS, steps * ROWS), 0)
    counts = piece_rows.to(tl.float32)[:, None] * width
    means = tl.load(place, mask=known, other=0.0)
    count = tl.sum(counts, 0)
    mean = tl.sum(means * counts, 0) / count
    apart = tl.where(known, means - mean[None, :], 0.0)
    squares = tl.sum(tl.load(place + 1, mask=known, other=0.0) + apart * apart * counts, 0)
    channel, valid = _channels(groups, width, GROUPS, WIDTH, EVEN)
    scale = _spread(1.0 / tl.sqrt(squares / count + eps), GROUPS, WIDTH)
    by = tl.load(gain + channel, mask=valid, other=0.0).to(tl.float32) * scale
    middle = _spread(mean, GROUPS, WIDTH)
    if HAS_BIAS:
        middle -= tl.load(bias + channel, mask=valid, other=0.0).to(tl.float32)
    plus = tl.load(offset + channel, mask=valid, other=0.0).to(tl.float32)
    for step in range(steps):
        row = (piece * steps + step) * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & valid[None, :]
        at = (image.to(tl.int64) * rows + row)[:, None] * channels + channel[None, :]
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        value = (value - middle[None, :]) * by[None, :] + plus[None, :]
        if SILU:
            value = value / (1.0 + tl.exp(-value))
        tl.store(made + at, value.to(made.dtype.element_ty), mask=inside)


@triton.jit
def _geglu_kernel(x, made, width, total, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < total
    place = at // width * (2 * width) + at % width
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(x + place + width, mask=inside, other=0.0).to(tl.float32)
    opened = value * gate * 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
    tl.store(made + at, opened.to(made.dtype.element_ty), mask=inside)


@triton.jit
def _add_norm_kernel(x, y, gain, offset, summed, made, width, eps, BLOCK: tl.constexpr):
    """One token: `summed = x + y` and the layer norm of that."""
    channel = tl.arange(0, BLOCK)
    inside = channel < width
    at = tl.program_id(0).to(tl.int64) * width + channel
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + tl.load(y + at, mask=inside, other=0.0).to(
        tl.float32
    )
    kept = value.to(summed.dtype.element_ty)
    tl.store(summed + at, kept, mask=inside)
    value = kept.to(tl.float32)
    apart = tl.where(inside, value - tl.sum(value, 0) / width, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(apart * apart, 0) / width + eps)
    by = tl.load(gain + channel, mask=inside, other=0.0).to(tl.float32)
    plus = tl.load(offset + channel, mask=inside, other=0.0).to(tl.float32)
    tl.store(made + at, (apart * scale * by + plus).to(made.dtype.element_ty), mask=inside)


def _cut(x: Tensor, groups: int) -> tuple[tuple[int, int, int], dict[str, Any], tuple[int, int, int, int, int]]:
    """Grid, sizes of a tile, and the sizes of a picture `[B, C, h, w]` as the kernels take them."""
    images, channels, rows = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    width = channels // groups
    padded = triton.next_power_of_2(width)
    across = min(triton.next_power_of_2(groups), max(1, _WIDTH // padded))
    down = max(1, _TILE // (across * padded))
    steps = triton.cdiv(triton.cdiv(rows, down), _MOST_PIECES)
    pieces = triton.cdiv(rows, down * steps)
    grid = (pieces, triton.cdiv(groups, across), images)
    even = padded == width and groups % across == 0
    return grid, {"ROWS": down, "GROUPS": across, "WIDTH": padded, "EVEN": even}, (rows, steps, channels, groups, width)


def pieces(x: Tensor, groups: int) -> int:
    """In how many pieces the moments of a picture `[B, C, h, w]` are found."""
    return _cut(x, groups)[0][0]


def add(x: Tensor, y: Tensor | None, bias: Tensor | None, groups: int, *, stores: bool) -> tuple[Tensor, Tensor]:
    """`x + y + bias` in the picture's dtype, and the moments of its groups, float32 `[B, pieces, groups, 2]`: mean and the sum
    of squared deviations. Without `stores` only the moments, and `x` in place of the sum.

    Pictures are `[B, C, h, w]`, channels last.
    """
    grid, tile, sizes = _cut(x, groups)
    made = torch.empty_like(x) if stores else x
    moments = torch.empty(x.shape[0], grid[0], groups, 2, dtype=torch.float32, device=x.device)
    launch: Any = _add_kernel[grid]
    launch(
        x, x if y is None else y, x if bias is None else bias, made, moments, *sizes,
        HAS_Y=y is not None, HAS_BIAS=bias is not None, STORES=stores, **tile,
    )  # fmt: skip
    return made, moments


def normalize(
    x: Tensor, bias: Tensor | None, moments: Tensor, gain: Tensor, offset: Tensor, eps: float, *, silu: bool
) -> Tensor:
    """Group norm of `x + bias` by the moments that `add` found of it, with SiLU behind it or not. As `x` in shape and dtype."""
    grid, tile, sizes = _cut(x, moments.shape[2])
    made = torch.empty_like(x)
    launch: Any = _normalize_kernel[grid]
    launch(
        x, x if bias is None else bias, moments, gain, offset, made, *sizes, eps,
        HAS_BIAS=bias is not None, SILU=silu, PIECES=triton.next_power_of_2(grid[0]), **tile,
    )  # fmt: skip
    return made


def geglu(x: Tensor) -> Tensor:
    """`[…, 2n]`, contiguous, to `[…, n]`: the first half times the exact GELU of the second."""
    width = x.shape[-1] // 2
    made = x.new_empty(*x.shape[:-1], width)
    launch: Any = _geglu_kernel[(triton.cdiv(made.numel(), 1024),)]
    launch(x, made, width, made.numel(), BLOCK=1024)
    return made


def add_norm(x: Tensor, y: Tensor, gain: Tensor, offset: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`x + y` over contiguous tokens `[…, C]`, and its layer norm; both as `x` in shape and dtype."""
    summed, made = torch.empty_like(x), torch.empty_like(x)
    width = x.shape[-1]
    launch: Any = _add_norm_kernel[(x.numel() // width,)]
    launch(x, y, gain, offset, summed, made, width, eps, BLOCK=triton.next_power_of_2(width))
    return summed, made

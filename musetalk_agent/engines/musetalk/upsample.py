"""Doubling the side and a 3×3 convolution behind it as one transposed convolution, which multiplies four times where they do nine.

A pixel of the doubled image sees two rows of the original: an even one the kernel's first row on the row before, and the sum of
the other two on its own row; an odd one is the mirror image of that. Those are the rows of a transposed convolution of side 4 and
step 2 with the kernel `[w2, w1+w2, w0+w1, w0]`. Columns likewise, and a border of zeros stays one. So it is equal up to rounding,
and the doubled image is never written.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

_SIDE, _STEP, _BORDER = 4, 2, 1
"""Of the transposed convolution: it doubles the side, as the original with its border of one pixel does."""


@torch.no_grad()
def upsampling_convolution(convolution: nn.Conv2d) -> nn.ConvTranspose2d:
    """A layer equal to nearest-neighbour doubling followed by `convolution`.

    `[B, C, h, w]` to `[B, D, 2h, 2w]`, in the convolution's dtype and on its device. The sums are made in float32.
    Raises ValueError for a convolution that is not 3×3 with step 1 and a border of one zero.
    """
    plain = convolution.groups == 1 and convolution.padding_mode == "zeros"
    if not plain or (convolution.kernel_size, convolution.stride, convolution.padding) != ((3, 3), (1, 1), (1, 1)):
        raise ValueError(f"{convolution} is not 3×3 with step 1 and a border of one zero")
    weight = convolution.weight
    folded = _folded(_folded(weight.float(), 2), 3).transpose(0, 1).to(weight.dtype)
    made = nn.ConvTranspose2d(
        convolution.in_channels,
        convolution.out_channels,
        _SIDE,
        _STEP,
        _BORDER,
        bias=convolution.bias is not None,
        device="meta",
    )
    made.weight = nn.Parameter(folded.contiguous(), requires_grad=False)
    made.bias = convolution.bias
    return made.train(convolution.training)


def _folded(weight: Tensor, dim: int) -> Tensor:
    first, second, third = weight.unbind(dim)
    return torch.stack([third, second + third, first + second, first], dim)


def fold_upsamplers(module: Any) -> None:
    """Replaces diffusers' upsamplers within `module` in place: those of the UNet and the VAE, and TAESD's pairs of layers."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Upsample2D) and isinstance(child.conv, nn.Conv2d):
                setattr(parent, name, upsampling_convolution(child.conv))
        if isinstance(parent, nn.Sequential):
            for at, (doubling, convolution) in enumerate(pairwise(list(parent))):
                if isinstance(doubling, nn.Upsample) and isinstance(convolution, nn.Conv2d):
                    # positions stay: the layer in front of the convolution passes its input on
                    parent[at], parent[at + 1] = nn.Identity(), upsampling_convolution(convolution)

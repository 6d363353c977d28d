"""BiSeNet, the face-parsing network whose weights upstream uses for its blend masks (`face-parse-bisent/79999_iter.pth`).

Module names are those of the published weights (zllrunning/face-parsing.PyTorch), so that they load strictly. Only the main
head is evaluated: the two others guide training. Licence of the weights: see `models/README.md`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from musetalk_agent.engines.musetalk.face_region import resize
from musetalk_agent.media_types import Pixels

CLASSES = 19
SIDE = 512
"""Pixels of a side of what the network looks at and of its class map."""
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)


class ConvBNReLU(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


class BasicBlock(nn.Module):
    """ResNet's block of two 3×3 convolutions around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu((x if self.downsample is None else self.downsample(x)) + residual)


class Resnet18(nn.Module):
    """The backbone; gives the maps at an eighth, a sixteenth and a thirty-second of the image's side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _layer(width, width, 1)
        self.layer2 = _layer(width, 2 * width, 2)
        self.layer3 = _layer(2 * width, 4 * width, 2)
        self.layer4 = _layer(4 * width, 8 * width, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = functional.relu(self.bn1(self.conv1(x)))
        eighth = self.layer2(self.layer1(functional.max_pool2d(x, 3, 2, 1)))
        sixteenth = self.layer3(eighth)
        return eighth, sixteenth, self.layer4(sixteenth)


class AttentionRefinementModule(nn.Module):
    """A map weighted per channel by its own mean."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = ConvBNReLU(inputs, outputs)
        self.conv_atten = nn.Conv2d(outputs, outputs, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.conv(x)
        weight = torch.sigmoid(self.bn_atten(self.conv_atten(functional.adaptive_avg_pool2d(features, 1))))
        return features * weight


class ContextPath(nn.Module):
    """The backbone and what is gathered from its deep maps; gives two maps at an eighth of the image's side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.resnet = Resnet18(width)
        self.arm16 = AttentionRefinementModule(4 * width, 2 * width)
        self.arm32 = AttentionRefinementModule(8 * width, 2 * width)
        self.conv_head32 = ConvBNReLU(2 * width, 2 * width)
        self.conv_head16 = ConvBNReLU(2 * width, 2 * width)
        self.conv_avg = ConvBNReLU(8 * width, 2 * width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        eighth, sixteenth, deep = self.resnet(x)
        deep_sum = self.arm32(deep) + self.conv_avg(functional.adaptive_avg_pool2d(deep, 1))
        up = self.conv_head32(functional.interpolate(deep_sum, sixteenth.shape[2:], mode="nearest"))
        up = functional.interpolate(self.arm16(sixteenth) + up, eighth.shape[2:], mode="nearest")
        return eighth, self.conv_head16(up)


class FeatureFusionModule(nn.Module):
    """Joins two maps and weights the result per channel."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convblk = ConvBNReLU(inputs, outputs, 1)
        self.conv1 = nn.Conv2d(outputs, outputs // 4, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs // 4, outputs, 1, bias=False)

    def forward(self, near: Tensor, context: Tensor) -> Tensor:
        features: Tensor = self.convblk(torch.cat([near, context], dim=1))
        weight = functional.relu(self.conv1(functional.adaptive_avg_pool2d(features, 1)))
        return features * torch.sigmoid(self.conv2(weight)) + features


class BiSeNetOutput(nn.Module):
    """A head: class scores from a map."""

    def __init__(self, inputs: int, middle: int, classes: int) -> None:
        super().__init__()
        self.conv = ConvBNReLU(inputs, middle)
        self.conv_out = nn.Conv2d(middle, classes, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.conv_out(self.conv(x))
        return scores


class BiSeNet(nn.Module):
    """The network. `width` is the channels of its first layer: 64 in the published weights, less in tests."""

    def __init__(self, classes: int = CLASSES, width: int = 64) -> None:
        super().__init__()
        self.cp = ContextPath(width)
        self.ffm = FeatureFusionModule(4 * width, 4 * width)
        self.conv_out = BiSeNetOutput(4 * width, 4 * width, classes)
        self.conv_out16 = BiSeNetOutput(2 * width, width, classes)
        self.conv_out32 = BiSeNetOutput(2 * width, width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores `[b, classes, h, w]` of normalised RGB `[b, 3, h, w]`, by the main head."""
        scores = self.conv_out(self.ffm(*self.cp(x)))
        return functional.interpolate(scores, x.shape[2:], mode="bilinear", align_corners=True)


class Parser:
    """Class maps of crops, as upstream asks the network for them.

    Args:
        network: its weights loaded, in float32, on the device that it is to run on; put into evaluation mode here.
    """

    def __init__(self, network: BiSeNet) -> None:
        self._network = network.eval().requires_grad_(False)
        parameter = next(network.parameters())
        self._mean = torch.tensor(_MEAN, device=parameter.device).view(1, 3, 1, 1)
        self._deviation = torch.tensor(_DEVIATION, device=parameter.device).view(1, 3, 1, 1)

    @torch.inference_mode()
    def __call__(self, crops: Pixels) -> Pixels:
        """uint8 BGR `[b, n, n, 3]` → uint8 `[b, 512, 512]`: 0 background, 1 skin, 10 nose, 11 mouth, 12 and 13 lips, 14 neck …

        Each crop is resized as Pillow does it (bilinear, antialiased), scaled to 0 … 1 and normalised with ImageNet's mean and
        deviation. Crops that are 512×512 already are taken as they are.
        """
        sized = [resize(crop, SIDE, "bilinear") for crop in crops]
        images = torch.stack([torch.from_numpy(np.ascontiguousarray(crop)) for crop in sized]).to(self._mean.device)
        rgb = images.flip(3).permute(0, 3, 1, 2).float().div(255)
        classes: Pixels = self._network((rgb - self._mean) / self._deviation).argmax(1).to(torch.uint8).cpu().numpy()
        return classes


def _layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1))

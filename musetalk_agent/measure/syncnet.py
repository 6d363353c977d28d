"""SyncNet v2 (Chung and Zisserman, "Out of time: automated lip sync in the wild", 2016): frames of lips and audio, in one space.

Layers, names of weights and the form of the inputs are those of joonson/syncnet_python (`SyncNetModel.py`, `SyncNetInstance.py`),
by whose weights LSE-C and LSE-D are defined. Needs the extra [musetalk]; imported only where the weights are.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from musetalk_agent.engines.musetalk import loading
from musetalk_agent.measure.lip_measures import Cepstra
from musetalk_agent.media_types import Pixels

WINDOW_FRAMES = 5
CEPSTRA_A_FRAME = 4
DIMENSIONS = 1024
Embeddings = NDArray[np.float32]

_BATCH = 16
_COUNTER = ".num_batches_tracked"


class SyncNet(nn.Module):
    """Both halves of the network; 1024 numbers for 0.2 s of either."""

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *_plane(1, 64, 3, padding=1),
            nn.MaxPool2d(1, 1),
            *_plane(64, 192, 3, padding=1),
            nn.MaxPool2d(3, (1, 2)),
            *_plane(192, 384, 3, padding=1),
            *_plane(384, 256, 3, padding=1),
            *_plane(256, 256, 3, padding=1),
            nn.MaxPool2d(3, 2),
            *_plane(256, 512, (5, 4)),
        )
        self.netfcaud = _head()
        self.netfclip = _head()
        self.netcnnlip = nn.Sequential(
            *_space(3, 96, (5, 7, 7), stride=(1, 2, 2)),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_space(96, 256, (1, 5, 5), stride=(1, 2, 2), padding=(0, 1, 1)),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            *_space(256, 256, (1, 3, 3), padding=(0, 1, 1)),
            *_space(256, 256, (1, 3, 3), padding=(0, 1, 1)),
            *_space(256, 256, (1, 3, 3), padding=(0, 1, 1)),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_space(256, 512, (1, 6, 6)),
        )

    def voice(self, cepstra: Tensor) -> Tensor:
        """float32 `[b, 1, 13, 20]` (coefficients, hundredths of a second) to `[b, 1024]`."""
        found: Tensor = self.netfcaud(self.netcnnaud(cepstra).flatten(1))
        return found

    def lips(self, frames: Tensor) -> Tensor:
        """float32 `[3, n, 224, 224]`, BGR 0 … 255, 25 frames a second, to `[n - 4, 1024]`: one for every five neighbours.

        Only the first layer looks along time, and without padding: a run of frames gives what its windows give one by one.
        """
        found: Tensor = self.netfclip(self.netcnnlip(frames[None])[0, :, :, 0, 0].T)
        return found


def load(path: Path) -> SyncNet:
    """The network with its weights, on the CPU, fp32, for inference.

    Raises:
        WeightsInvalid: the file is damaged, holds more than tensors, or is of another network.
        OSError: it cannot be read.
    """
    with torch.device("meta"):
        net = SyncNet()
    state = loading.read_tensors(path)
    for key in net.state_dict():
        if key.endswith(_COUNTER):  # only training counts batches, and PyTorch before 0.4 did not
            state.setdefault(key, torch.tensor(0))
    loading.check_fits(net, state, path)
    loading.assign_weights(net, state, torch.device("cpu"), torch.float32)
    return net


@torch.inference_mode()
def embed_voice(net: SyncNet, cepstra: Cepstra, count: int) -> Embeddings:
    """float32 `[count, 1024]`: of the 20 rows of `cepstra` (float64 `[n, 13]`) that begin with each of the first frames."""
    rows = torch.from_numpy(cepstra.astype(np.float32))
    windows = rows.unfold(0, WINDOW_FRAMES * CEPSTRA_A_FRAME, CEPSTRA_A_FRAME)[:count, None]
    parts = [net.voice(windows[at : at + _BATCH]).numpy() for at in range(0, len(windows), _BATCH)]
    return np.concatenate([np.empty((0, DIMENSIONS), np.float32), *parts])


@torch.inference_mode()
def embed_lips(net: SyncNet, faces: Iterable[Pixels]) -> Embeddings:
    """float32 `[n - 4, 1024]` of n frames, uint8 BGR `[224, 224, 3]`, which are taken one by one: a video may be long."""
    parts = [np.empty((0, DIMENSIONS), np.float32)]
    held: list[Pixels] = []
    for face in faces:
        held.append(face)
        if len(held) == _BATCH + WINDOW_FRAMES - 1:
            parts.append(_lips(net, held))
            held = held[_BATCH:]
    if len(held) >= WINDOW_FRAMES:
        parts.append(_lips(net, held))
    return np.concatenate(parts)


def _lips(net: SyncNet, faces: list[Pixels]) -> Embeddings:
    frames = torch.from_numpy(np.stack(faces)).permute(3, 0, 1, 2).float()
    return np.asarray(net.lips(frames).numpy(), np.float32)


def _plane(inner: int, outer: int, kernel: int | tuple[int, int], padding: int = 0) -> list[nn.Module]:
    return [nn.Conv2d(inner, outer, kernel, padding=padding), nn.BatchNorm2d(outer), nn.ReLU(inplace=True)]


def _space(
    inner: int,
    outer: int,
    kernel: tuple[int, int, int],
    stride: tuple[int, int, int] = (1, 1, 1),
    padding: tuple[int, int, int] = (0, 0, 0),
) -> list[nn.Module]:
    return [nn.Conv3d(inner, outer, kernel, stride, padding), nn.BatchNorm3d(outer), nn.ReLU(inplace=True)]


def _head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, DIMENSIONS))

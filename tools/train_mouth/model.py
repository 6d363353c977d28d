"""The trunk in torch, laid out as `musetalk_agent.features.mouth_network` runs it; the mouth on it is in `lips.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from musetalk_agent.features import mouth_network
from musetalk_agent.features.mouth_network import DILATIONS, HEADS, WIDTH
from musetalk_agent.features.phonemes import CLASSES

OPENING = 48
_SILENT_INPUT = -1.75  # what `mouth_network.network_input` makes of digital silence


class Mouth(nn.Module):
    """[b, 2·t, 40] → logits [b, t, 28] (phonemes, speech, closure, tuck) and openings [b, t, heads]; closure and openings only
    teach the trunk.
    """

    def __init__(self, openings: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(mouth_network.BANDS, WIDTH, 4, stride=2)
        self.res = nn.ModuleList(nn.Conv1d(WIDTH, WIDTH, 3, dilation=d) for d in DILATIONS)
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, HEADS)
        self.open1 = nn.ModuleList(nn.Linear(WIDTH, OPENING) for _ in range(openings))
        self.open2 = nn.ModuleList(nn.Linear(OPENING, 1) for _ in range(openings))

    def trunk(self, mels: Tensor) -> Tensor:
        """[b, 2·t, 40] → [b, t, 128]."""
        x = functional.pad(mels.transpose(1, 2), (2, 0), value=_SILENT_INPUT)
        x = functional.relu(self.conv(x))
        for conv, dilation in zip(self.res, DILATIONS, strict=True):
            x = x + functional.relu(conv(functional.pad(x, (2 * dilation, 0))))
        out, _ = self.gru(x.transpose(1, 2))
        return out  # type: ignore[no-any-return]

    def opening(self, memory: Tensor, head: int) -> Tensor:
        """[b, t, 128] → opening [b, t], not limited to 0..1."""
        out: Tensor = self.open2[head](functional.relu(self.open1[head](memory)))[..., 0]
        return out

    def forward(self, mels: Tensor) -> tuple[Tensor, Tensor]:
        """Everything at once, for the first training."""
        memory = self.trunk(mels)
        still = memory.detach()
        openings = [self.opening(memory if i == 0 else still, i) for i in range(len(self.open1))]
        return self.head(memory), torch.stack(openings, -1)


SPEECH, CLOSURE, TUCK = len(CLASSES), len(CLASSES) + 1, len(CLASSES) + 2


def export(model: Mouth, path: Path) -> None:
    """Writes the trunk as the runtime reads it, float16."""
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}

    def by_time(weight: np.ndarray) -> np.ndarray:
        return weight.transpose(0, 2, 1).reshape(len(weight), -1)

    arrays = {"conv.w": by_time(state["conv.weight"]), "conv.b": state["conv.bias"]}
    for i in range(len(DILATIONS)):
        arrays |= {f"res{i}.w": by_time(state[f"res.{i}.weight"]), f"res{i}.b": state[f"res.{i}.bias"]}
    arrays |= {"gru.wi": state["gru.weight_ih_l0"], "gru.wh": state["gru.weight_hh_l0"]}
    arrays |= {"gru.bi": state["gru.bias_ih_l0"], "gru.bh": state["gru.bias_hh_l0"]}
    arrays |= {"head.w": state["head.weight"], "head.b": state["head.bias"]}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **{name: value.astype(np.float16) for name, value in arrays.items()})

"""The mouth's part of the network in torch: what the shipped trunk hears, and the second GRU with its heads on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from musetalk_agent.features.mouth_network import DILATIONS, WIDTH

_SILENT_INPUT = -1.75  # what `mouth_network.network_input` makes of digital silence
OUTPUTS = 5  # the sixth, `voice`, is learned by `finish.py`
NOW, SOON, CLOSURE, CLOSURE_SOON, GATE = range(OUTPUTS)
GATE_OFF, GATE_ON = 0.20, 0.60
CLOSURE_OFF, CLOSURE_ON = 0.50, 0.80  # the curves of `visemes.py`
LEARNED = 64  # hidden units of one seed; two more carry the linear fits
HEARD = ("conv", "res0", "res1", "res2", "gru", "head")  # layers that stay


def _loaded(path: Path) -> dict[str, NDArray[np.float32]]:
    with np.load(path) as stored:
        return {name: stored[name].astype(np.float32) for name in stored.files}


@torch.inference_mode()
def trunk(path: Path, mels: Tensor) -> NDArray[np.float16]:
    """What the stored convolutions and first GRU make of [b, 2·t, 40]: float16[b, t, 256], as `NetworkRun.step` remembers it."""
    a = {name: torch.from_numpy(value) for name, value in _loaded(path).items()}
    gru = nn.GRU(WIDTH, WIDTH, batch_first=True)
    names = {"weight_ih_l0": "gru.wi", "weight_hh_l0": "gru.wh", "bias_ih_l0": "gru.bi", "bias_hh_l0": "gru.bh"}
    gru.load_state_dict({here: a[there] for here, there in names.items()})
    out = []
    for part in mels.split(32):
        x = functional.pad(part.transpose(1, 2), (2, 0), value=_SILENT_INPUT)
        x = functional.relu(functional.conv1d(x, _by_channel(a["conv.w"], 4), a["conv.b"], stride=2))
        for i, dilation in enumerate(DILATIONS):
            padded = functional.pad(x, (2 * dilation, 0))
            x = x + functional.relu(
                functional.conv1d(padded, _by_channel(a[f"res{i}.w"], 3), a[f"res{i}.b"], dilation=dilation)
            )
        x = x.transpose(1, 2)
        out.append(torch.cat([x, gru(x)[0]], -1).numpy().astype(np.float16))
    return np.concatenate(out)


def _by_channel(weight: Tensor, taps: int) -> Tensor:
    return weight.reshape(len(weight), taps, -1).transpose(1, 2).contiguous()


def roughened(mels: Tensor) -> Tensor:
    """Other microphones and throats on log-mels (20 dB a unit): tilt, noise floor, bands moved up or down, holes."""
    count, length, bands = mels.shape
    tilt = torch.randn(count, 1, 1) * 0.25 * torch.linspace(-1, 1, bands)
    bend = torch.randn(count, 1, 1) * 0.15 * torch.cos(torch.linspace(0, 6.28, bands) + 6.28 * torch.rand(count, 1, 1))
    place = (torch.arange(bands) * (1 + 0.04 * torch.randn(count, 1)) + 0.6 * torch.randn(count, 1)).clamp(
        0, bands - 1.001
    )
    low = place.floor().long()
    part = (place - low)[:, None]
    index = low[:, None].expand(-1, length, -1)
    moved = mels.gather(2, index) * (1 - part) + mels.gather(2, index + 1) * part
    floor = -1.6 + 1.2 * torch.rand(count, 1, 1) ** 2 - 0.5 * torch.linspace(0, 1, bands)
    out = torch.logaddexp((moved + tilt + bend) * 4.6, (floor + 0.1 * torch.randn_like(mels)) * 4.6) / 4.6
    at, wide = torch.randint(0, bands - 5, (count,)), torch.randint(0, 5, (count,))
    band = torch.arange(bands)[None, :]
    hole = (band >= at[:, None]) & (band < (at + wide)[:, None])
    return torch.where(hole[:, None], out.mean((1, 2), keepdim=True), out)


class Lips(nn.Module):
    """[b, t, 256] → [b, t, 5]: openings (not limited) of now and soon, logits of closure now and soon, logit of the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(2 * WIDTH, WIDTH, batch_first=True)
        self.one = nn.Linear(3 * WIDTH, LEARNED)
        self.two = nn.Linear(LEARNED, OUTPUTS)

    def forward(self, heard: Tensor, dropout: float = 0.0) -> Tensor:
        """With dropout on what is heard (whole channels of a clip) and on what is remembered."""
        if dropout:
            heard = heard * functional.dropout(torch.ones_like(heard[:, :1]), 0.5 * dropout)
        memory = torch.cat([heard, self.gru(heard)[0]], -1)
        hidden = functional.relu(self.one(functional.dropout(memory, dropout, self.training)))
        out: Tensor = self.two(functional.dropout(hidden, 0.5 * dropout, self.training))
        return out


def drawn(out: Tensor, soon: bool = False) -> Tensor:
    """The aperture that is drawn [b, t], as `visemes.py` decides it."""
    gate = torch.clamp((torch.sigmoid(out[..., GATE]) - GATE_OFF) / (GATE_ON - GATE_OFF), 0, 1)
    closure = torch.sigmoid(out[..., CLOSURE_SOON if soon else CLOSURE])
    pressed = torch.clamp((closure - CLOSURE_OFF) / (CLOSURE_ON - CLOSURE_OFF), 0, 1)
    return out[..., SOON if soon else NOW] * gate * (1 - pressed)


def export(
    model: Lips, fits: NDArray[np.float64], share: NDArray[np.float64], gain: float, start: Path, path: Path
) -> None:
    """Writes the layers of `start` that stay, and these, as the runtime reads them: float16.

    `fits` [2, 257] are linear readings of the opening, now and soon, from what is heard, the constant last. The opening that is
    written is `gain` · (what the model says / 2 + `share` · fit), never below 0.
    """
    arrays = {name: value for name, value in _loaded(start).items() if name.split(".")[0] in HEARD}
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    names = {"weight_ih_l0": "wi", "weight_hh_l0": "wh", "bias_ih_l0": "bi", "bias_hh_l0": "bh"}
    arrays |= {f"lips.{there}": state[f"gru.{here}"] for here, there in names.items()}
    fitted = np.pad(fits[:, :-1], ((0, 0), (0, WIDTH)))
    arrays["lips1.w"] = np.concatenate([state["one.weight"], fitted])
    arrays["lips1.b"] = np.concatenate([state["one.bias"], fits[:, -1]])
    scale = np.array([gain / 2, gain / 2, 1, 1, 1])
    mixed = np.zeros((OUTPUTS, 2))
    mixed[NOW, 0], mixed[SOON, 1] = gain * share
    arrays["lips2.w"] = np.concatenate([state["two.weight"] * scale[:, None], mixed], 1)
    arrays["lips2.b"] = state["two.bias"] * scale
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **{name: value.astype(np.float16) for name, value in arrays.items()})

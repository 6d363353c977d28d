"""Weights out of files into modules: memory-mapped, strictly by key and shape, never by running what a file says."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from musetalk_agent.errors import WeightsInvalid

_TOLD = 3
_POINTER = b"version https://git-lfs"
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_VAE_ATTENTION = ".mid_block.attentions.0."


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or a bare `torch.save` of a state dict, on the CPU.

    Files are mapped into memory where their format allows it (all but the pickles of before 2020): nothing is read until it
    is used, and pages can be given back. Only tensors are unpickled (`weights_only`).

    Raises:
        WeightsInvalid: the file is damaged, cut off, holds code or other objects, or is no file of weights at all.
        OSError: it cannot be read.
    """
    name = f"{path.parent.name}/{path.name}"
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise WeightsInvalid(
                f"{name} is a Git LFS pointer, not the weights; fetch them with `musetalk-agent fetch-models`.",
                value=name,
            )
    try:
        if path.suffix == ".safetensors":
            state: object = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise WeightsInvalid(
            f"{name} holds more than tensors, or is damaged; it was not loaded: {_first_line(error)}", value=name
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise WeightsInvalid(f"{name} is damaged or cut off: {_first_line(error)}", value=name) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsInvalid(f"{name} is not a bare state dict: names with tensors.", value=name)
    return dict(state)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def vae_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A VAE's state with today's names. Checkpoints of 2022 call the projections of their middle attention query, key, value and
    proj_attn, and some keep them as 1×1 convolutions `[C, C, 1, 1]` (numerics §1)."""
    return {_vae_name(name): _as_linear(name, value) for name, value in state.items()}


def _vae_name(name: str) -> str:
    stem, attention, rest = name.partition(_VAE_ATTENTION)
    projection, _, kind = rest.rpartition(".")
    if not attention or projection not in _OLD_ATTENTION:
        return name
    return f"{stem}{attention}{_OLD_ATTENTION[projection]}.{kind}"


def _as_linear(name: str, value: Tensor) -> Tensor:
    attention = _VAE_ATTENTION in name and name.endswith(".weight")
    return value[:, :, 0, 0] if attention and value.ndim == 4 and value.shape[2:] == (1, 1) else value


def encoder_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's part of a Whisper checkpoint, whether of the whole model (`model.encoder.…`) or of the body (`encoder.…`)."""
    for prefix in ("model.encoder.", "encoder."):
        if found := {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}:
            return found
    return dict(state)


def difference(expected: Mapping[str, torch.Size], found: Mapping[str, torch.Size]) -> str | None:
    """What distinguishes two sets of keys and shapes, in one sentence without its subject; None when nothing does."""
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    shapes = [
        f"{key} is {list(found[key])} instead of {list(shape)}"
        for key, shape in expected.items()
        if key in found and found[key] != shape
    ]
    told = [
        f"{len(names)} {what}: {_some(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    return "; ".join(told) or None


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_TOLD]) + (", …" if len(names) > _TOLD else "")


def check(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Raises WeightsInvalid, with the difference, unless the state has exactly the module's keys and shapes."""
    expected = {key: value.shape for key, value in module.state_dict().items()}
    if told := difference(expected, {key: value.shape for key, value in state.items()}):
        name = f"{path.parent.name}/{path.name}"
        raise WeightsInvalid(f"{name} does not fit the model its configuration describes. {told}.", value=name)


def fill(module: nn.Module, state: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype) -> None:
    """Gives a module that was built on the meta device its weights and makes it ready for inference.

    Tensors that need no conversion are taken as they are, still mapped; others are converted one at a time on the target device, so
    that no second copy of the model ever exists.

    Raises:
        RuntimeError: keys or shapes differ (`check` tells it better), or the module has buffers that no file holds.
    """
    placed = {key: _placed(value, device, dtype) for key, value in state.items()}
    module.load_state_dict(placed, strict=True, assign=True)
    left = [name for name, value in (*module.named_parameters(), *module.named_buffers()) if value.is_meta]
    if left:
        raise RuntimeError(f"nothing was loaded for {_some(left)}")
    module.eval().requires_grad_(False)


def _placed(value: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    # Upload first: the card converts faster than the processor.
    placed = value.to(device)
    return placed.to(dtype) if placed.is_floating_point() else placed

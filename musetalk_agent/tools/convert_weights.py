"""`musetalk-agent convert-weights`: half-precision copies of MuseTalk's weights, which are half as big and load by memory map."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from musetalk_agent.agent_settings import offline_settings
from musetalk_agent.engines.musetalk import weights_files
from musetalk_agent.engines.musetalk.weights_files import HALVES, MARK, Half, Part, copy_path, fingerprint, problem_of
from musetalk_agent.errors import AgentError, WeightsInvalid, WeightsMissing
from musetalk_agent.weights import sha256_of

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = {"fp16": "F16", "bf16": "BF16"}
_ALIGNED = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", choices=HALVES, default="fp16", help="precision of the copies (default: fp16)")
    parser.add_argument(
        "--models-dir",
        type=Path,
        default=None,
        help="where the weights are (default: MODELS_DIR, else the folder in use)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Runs the command: 0 when every copy is there and fits, 1 when one could not be made."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "diffusers", "transformers", "safetensors")):
        print("convert-weights: install the extra [musetalk] first", file=sys.stderr)
        return 1
    folder = args.models_dir or offline_settings().models_dir
    try:
        for part in weights_files.CONVERTED:
            print(f"convert-weights: {convert(folder, part, args.dtype, quiet=args.quiet)}")
    except (AgentError, OSError) as error:
        print(f"convert-weights: {error}", file=sys.stderr)
        return 1
    return 0


def convert(folder: Path, part: Part, half: Half, *, quiet: bool = False) -> str:
    """Writes one part's copy beside it, unless one that fits is there; returns what was done, in words.

    The copy appears whole or not at all, whatever interrupts; memory for one tensor is needed.

    Raises:
        WeightsMissing: the weights or their configuration are not there.
        WeightsInvalid: they do not fit the configuration, or hold numbers that the precision cannot.
        OSError: the copy cannot be written.
    """
    # Here, because torch takes seconds to import and the command line is built with every command.
    from musetalk_agent.engines.musetalk import loading

    source = weights_files.find_original(folder, part)
    if source is None:
        name = weights_files.name_of(part)
        raise WeightsMissing(
            f"The model file {name} is missing from {folder}; run `musetalk-agent fetch-models musetalk`.", value=name
        )
    target = copy_path(source, half)
    shown = target.relative_to(folder)
    if target.is_file() and problem_of(target, source) is None:
        return f"{shown} is there and fits"
    state = loading.read_part(source, part)
    loading.check_fits(loading.BUILDERS[part](folder), state, source)
    size = source.stat().st_size
    elements = sum(value.numel() for value in state.values())
    with tqdm(total=size + 2 * elements, unit="B", unit_scale=True, desc=str(shown), disable=quiet) as bar:
        notes = {
            "mark": MARK,
            "source": source.name,
            "source_size": str(size),
            "source_fingerprint": fingerprint(source),
            "source_sha256": sha256_of(source, bar.update),
        }
        _write(target, state, half, notes, bar)
    return f"{shown} written, {target.stat().st_size / 1e6:.0f} MB"


def _write(target: Path, state: Mapping[str, Tensor], half: Half, notes: Mapping[str, str], bar: tqdm[Any]) -> None:
    """safetensors' format by hand, tensor after tensor: its own writer wants all of them in memory at once."""
    import torch

    from musetalk_agent.engines.musetalk.loading import DTYPES

    header: dict[str, Any] = {"__metadata__": dict(notes)}
    end = 0
    for name, value in state.items():
        start, end = end, end + 2 * value.numel()
        header[name] = {"dtype": _NAMES[half], "shape": list(value.shape), "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    head += b" " * (-(8 + len(head)) % _ALIGNED)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            for name, value in state.items():
                made = value.to(DTYPES[half])
                if not bool(made.isfinite().all()):
                    raise WeightsInvalid(f"{name} has numbers that {half} cannot hold; try --dtype bf16.", value=name)
                file.write(made.contiguous().view(-1).view(torch.uint8).numpy().data)
                bar.update(2 * value.numel())
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)

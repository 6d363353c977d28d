"""Half-precision copies of weights: their names, and whether one belongs to the weights beside it. Imports no torch.

A copy is a safetensors file whose header says what it was made from: size, sha256 and a fingerprint that takes milliseconds to
compare. Without the original a copy is trusted by its header; beside an original that does not fit, it is stale.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

Half = Literal["fp16", "bf16"]
HALVES: tuple[Half, ...] = ("fp16", "bf16")
MARK = "musetalk-livekit/1"
"""Format of the copies; one of another mark is not read."""
HEADER_LIMIT = 100_000_000
"""Bytes; safetensors' own limit."""

_SAMPLES = 64
_SAMPLE_BYTES = 1 << 16


def copy_path(source: Path, half: Half) -> Path:
    """Where the copy of a file of weights lies: `unet.pth` becomes `unet.fp16.safetensors`."""
    return source.with_name(f"{source.stem}.{half}.safetensors")


def fingerprint(path: Path) -> str:
    """Tells apart files of weights without reading them whole: sha256 over the size and 64 evenly spaced stretches of 64 KiB, the
    last of which holds the checksums that a `torch.save` archive keeps of all its members. Raises OSError."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    step = max(1, (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
    with path.open("rb") as file:
        for number in range(_SAMPLES - 1):
            file.seek(number * step)
            digest.update(file.read(_SAMPLE_BYTES))
        file.seek(max(0, size - _SAMPLE_BYTES))
        digest.update(file.read())
    return digest.hexdigest()


def notes_of(path: Path) -> dict[str, str]:
    """The notes in a safetensors file's header, empty where there are none.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a whole safetensors file.
    """
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= HEADER_LIMIT:
            raise ValueError("it has no safetensors header")
        header = json.loads(file.read(length))
    notes = header.pop("__metadata__", {})
    end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if end != path.stat().st_size:
        raise ValueError(f"it has {path.stat().st_size} bytes instead of {end}")
    return {str(key): str(value) for key, value in notes.items()}


def problem_of(copy: Path, original: Path | None) -> str | None:
    """Why a copy must not be used in place of an original (None: not there), or None when it may."""
    try:
        notes = notes_of(copy)
        if notes.get("mark") != MARK:
            return "it was not written by convert-weights"
        if original is None:
            return None
        if notes.get("source_size") != str(original.stat().st_size):
            return f"{original.name} has another size than what it was made from"
        if notes.get("source_fingerprint") != fingerprint(original):
            return f"{original.name} is not what it was made from"
    except OSError as error:
        return str(error)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its header is broken: {error}"
    return None

"""Which files of the models folder MuseTalk uses, under any of the names that upstream users have; and their half-precision copies.

    musetalkV15/   unet.pth  musetalk.json
    sd-vae/        diffusion_pytorch_model.bin (or .safetensors)  config.json      sd-vae-ft-mse/ is the same by its older name
    whisper/       pytorch_model.bin (or model.safetensors)  config.json
    face-parse-bisent/79999_iter.pth      optional: upstream's blend mask
    taesd/         diffusion_pytorch_model.safetensors  config.json                optional: the profile `fast`

Beside each of the first three may lie a half-precision copy of it, which loads faster and suffices alone: a safetensors file whose
header says what it was made from (size, sha256 and a fingerprint that takes milliseconds to compare). Without the original a copy
is trusted by its header; a copy that does not fit the original beside it is stale. Imports no torch.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from musetalk_agent.protocol.http import FileState
from musetalk_agent.weights import ModelStore

log = logging.getLogger(__name__)

Half = Literal["fp16", "bf16"]
HALVES: tuple[Half, ...] = ("fp16", "bf16")
MARK = "musetalk-livekit/1"
"""Format of the copies; one of another mark is not read."""
HEADER_LIMIT = 100_000_000
"""Bytes; safetensors' own limit."""

_SAMPLES = 64
_SAMPLE_BYTES = 1 << 16

Part = Literal["unet", "vae", "whisper", "parsing", "taesd"]

UNET_CONFIG = "musetalkV15/musetalk.json"
WHISPER_CONFIG = "whisper/config.json"
TAESD_CONFIG = "taesd/config.json"
_VAE_FOLDERS = ("sd-vae", "sd-vae-ft-mse")
_WEIGHTS: dict[Part, tuple[str, ...]] = {
    "unet": ("musetalkV15/unet.pth",),
    "vae": tuple(
        f"{folder}/diffusion_pytorch_model.{kind}" for folder in _VAE_FOLDERS for kind in ("bin", "safetensors")
    ),
    "whisper": ("whisper/pytorch_model.bin", "whisper/model.safetensors"),
    "parsing": ("face-parse-bisent/79999_iter.pth",),
    "taesd": ("taesd/diffusion_pytorch_model.safetensors",),
}
CONVERTED: tuple[Part, ...] = ("unet", "vae", "whisper")
"""Parts that `convert-weights` writes half-precision copies of; the others are small."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A file to read weights from.

    Args:
        path: the file.
        half: what it was converted to, None for a file as published.
    """

    path: Path
    half: Half | None = None


def name_of(part: Part) -> str:
    """The manifest's name of a part's weights."""
    return _WEIGHTS[part][0]


def vae_config_path(folder: Path) -> Path:
    """Where the VAE's configuration lies, or would lie."""
    paths = [folder / name / "config.json" for name in _VAE_FOLDERS]
    return next((path for path in paths if path.is_file()), paths[0])


def find_original(folder: Path, part: Part) -> Path | None:
    """A part's weights as published, None where they are not there."""
    return next((folder / name for name in _WEIGHTS[part] if (folder / name).is_file()), None)


def find(folder: Path, part: Part, half: Half | None) -> Checkpoint | None:
    """The file to read a part's weights from, None where there is none.

    A copy of the wanted precision comes first, then the weights as published, then a copy of another precision. A copy that is
    broken or was made from other weights than those beside it is passed over with a warning.
    """
    copies: list[Checkpoint] = []
    for name in _WEIGHTS[part]:
        for kind in HALVES:
            path = copy_path(folder / name, kind)
            if not path.is_file() or any(path == known.path for known in copies):
                continue
            if problem := problem_of(path, find_original(folder, part)):
                log.warning("a converted weight file is not used", extra={"file": str(path), "reason": problem})
            else:
                copies.append(Checkpoint(path, kind))
    for copy in copies:
        if copy.half == half:
            return copy
    if original := find_original(folder, part):
        return Checkpoint(original)
    return copies[0] if copies else None


def copies_state(folder: Path) -> dict[str, FileState]:
    """The half-precision copies in a models folder, as `ModelStore.state` does for the manifest's files: `verified` is whether one
    is whole and made from the weights beside it."""
    found: dict[str, FileState] = {}
    for part in CONVERTED:
        for name in _WEIGHTS[part]:
            for half in HALVES:
                path = copy_path(folder / name, half)
                if path.is_file():
                    fits = problem_of(path, find_original(folder, part)) is None
                    state = FileState(exists=True, bytes=path.stat().st_size, verified=fits)
                    found[str(path.relative_to(folder))] = state
    return found


def musetalk_state(store: ModelStore) -> list[str]:
    """The manifest's names of required files that are not there; empty when MuseTalk can be loaded.

    A folder of another name, another format or a converted copy stands for a file. Contents are not looked at: loading does.
    """
    folder = store.directory
    configs: dict[Part, tuple[str, Path]] = {
        "unet": (UNET_CONFIG, folder / UNET_CONFIG),
        "vae": ("sd-vae/config.json", vae_config_path(folder)),
        "whisper": (WHISPER_CONFIG, folder / WHISPER_CONFIG),
    }
    missing: list[str] = []
    for part, (config, path) in configs.items():
        if not path.is_file():
            missing.append(config)
        if find(folder, part, None) is None:
            missing.append(name_of(part))
    return missing


def copy_path(source: Path, half: Half) -> Path:
    """Where the copy of a file of weights lies: `unet.pth` becomes `unet.fp16.safetensors`."""
    return source.with_name(f"{source.stem}.{half}.safetensors")


def fingerprint(path: Path) -> str:
    """Distinguishes files of weights without reading them whole: sha256 over the size and 64 evenly spaced stretches of 64 KiB, the
    last of which holds the checksums that a `torch.save` archive keeps of all its members. Raises OSError.

    A file is read once in a process, unless it was replaced or written to: on a network's volume the stretches take seconds.
    """
    state = path.stat()
    return _sampled(path, state.st_size, state.st_mtime_ns, state.st_ino)


@functools.lru_cache(maxsize=32)
def _sampled(path: Path, size: int, _modified: int, _inode: int) -> str:
    step = max(1, (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for number in range(_SAMPLES - 1):
            file.seek(number * step)
            digest.update(file.read(_SAMPLE_BYTES))
        file.seek(max(0, size - _SAMPLE_BYTES))
        digest.update(file.read())
    return digest.hexdigest()


def files_state(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of change of every file in the folders of a models folder: differs when weights came or were replaced."""
    found = []
    for path in sorted(folder.glob("*/*")):
        with contextlib.suppress(OSError):  # it went away
            state = path.stat()
            found.append((str(path.relative_to(folder)), state.st_size, state.st_mtime_ns))
    return tuple(found)


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

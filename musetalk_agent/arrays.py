"""Saves and loads numpy arrays: written whole or not at all, and read whole or refused with one error, whatever the damage."""

from __future__ import annotations

import os
import struct
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    SyntaxError,  # a header is parsed as Python
    tokenize.TokenError,
    RuntimeError,  # zipfile's for a flag or a version of a zip that it does not know
    MemoryError,  # numpy's for a shape that was damaged
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)
"""What numpy and zipfile raise over damaged files, and what their readers raise where arrays do not fit together."""


_PARSES = 3
_Array = TypeVar("_Array")


class DamagedArrays(ValueError):
    """A file is not what was written; it is to be made again."""


@contextmanager
def damage_errors(name: str) -> Iterator[None]:
    """Raises `DamagedArrays`, with `name` and the reason, for whatever comes of a damaged file that is read within.

    A file that is not there stays `FileNotFoundError`.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except _DAMAGE as error:
        raise DamagedArrays(f"{name}: {type(error).__name__}: {error}") from error


def load_array(path: Path) -> NDArray[Any]:
    """An `.npy`. Raises what numpy raises."""
    return _parsed(lambda: np.load(path, allow_pickle=False))


def map_array(path: Path) -> np.memmap[Any, Any]:
    """An `.npy` by memory map, read-only. Raises what numpy raises."""
    return _parsed(lambda: np.load(path, mmap_mode="r", allow_pickle=False))


def _parsed(load: Callable[[], _Array]) -> _Array:
    """numpy parses an array's header as Python, which in CPython 3.11 fails now and then where two threads do it at the same time
    (python/cpython#106905): it is parsed again then.
    """
    for _ in range(_PARSES):
        with suppress(SystemError):
            return load()
    return load()


@contextmanager
def open_arrays(path: Path) -> Iterator[Mapping[str, NDArray[Any]]]:
    """What `save_arrays` wrote, while the context lasts.

    Raises:
        FileNotFoundError: there is nothing.
        DamagedArrays: it is not whole, or the caller raised an error over what it holds.
    """
    with damage_errors(path.name), path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        yield stored


def save_arrays(path: Path, arrays: Mapping[str, ArrayLike]) -> None:
    """Writes them as `path`, an `.npz`, whole or not at all; what lay there is replaced. Raises OSError."""
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **dict[str, Any](arrays))
        Path(name).replace(path)
    finally:  # no partial file stays; one that was whole has been moved
        Path(name).unlink(missing_ok=True)

"""Imports that wait for the first test that needs them.

    with late_imports("torch", "diffusers"):
        import torch
        from musetalk_agent.engines.musetalk.engine import MuseTalkEngine

Every worker imports every test file, whose tests run elsewhere for the most part, and torch, diffusers and transformers take
four CPU seconds or more. Until `settle` the names hold placeholders: what a decorator, a default or a parameter needs is
imported as ever, or said in words.
"""

from __future__ import annotations

import builtins
import gc
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

_waiting: list[dict[str, Any]] = []
"""The globals of the files with placeholders."""


class _Name:
    """Stands for a name of a module."""

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def real(self) -> Any:
        module = importlib.import_module(self._module)
        if hasattr(module, self._name):
            return getattr(module, self._name)
        return importlib.import_module(f"{self._module}.{self._name}")


class _Module:
    """Stands for a module, whose names are placeholders too."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> _Name:
        return _Name(self._module, name)

    def real(self) -> Any:
        return importlib.import_module(self._module)


@contextmanager
def late_imports(*needed: str) -> Iterator[None]:
    """Imports within the block, of a file's own level, wait for `settle`. A file whose `needed` packages are missing is skipped."""
    for package in needed:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed", allow_module_level=True)
    own = sys._getframe(2).f_globals
    real = builtins.__import__

    def placeholder(
        name: str,
        given: Mapping[str, object] | None = None,
        local: Mapping[str, object] | None = None,
        wanted: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        if given is not own:
            return real(name, given, local, wanted or (), level)
        return _Module(name if wanted else name.partition(".")[0])

    builtins.__import__ = placeholder
    try:
        yield
    finally:
        builtins.__import__ = real
    _waiting.append(own)


def settle(module: object) -> None:
    """Puts the real things into all files, where this one has placeholders."""
    if all(vars(module) is not own for own in _waiting):
        return
    while _waiting:
        own = _waiting.pop()
        for name, value in own.items():
            if isinstance(value, (_Name, _Module)):
                own[name] = value.real()
    gc.collect()  # of what the tests before left
    gc.freeze()  # a session that ends has all objects looked at, and these are a million

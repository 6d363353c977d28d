"""`modal_app.py`, imported as Modal's command line does, with everything it asked for written down."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from modal._functions import _Function
from modal._utils.async_utils import synchronizer

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "modal_app.py"


@dataclass
class Inspected:
    """The module, and what `modal` was asked for by name: servers and functions."""

    module: ModuleType
    asked: dict[str, dict[str, Any]]

    def steps(self, name: str) -> list[Any]:
        """Enter and exit methods of a server's class, as plain functions by name."""
        kind = synchronizer._translate_in(getattr(self.module, name))._user_cls
        return [kind, *(synchronizer._translate_in(kind.__dict__[step]) for step in ("start", "stop"))]

    def environment(self, name: str) -> dict[str, str]:
        """What `env=` was."""
        return dict(self.asked[name]["given_env"])


def inspected(monkeypatch: pytest.MonkeyPatch, file: Path = FILE, **variables: str) -> Inspected:
    """Imports it afresh under these variables."""
    asked: dict[str, dict[str, Any]] = {}
    real, real_secret = _Function._from_local, _dicts(monkeypatch)

    def spy(info: Any, app: Any, **settings: Any) -> Any:
        asked[info.function_name] = {"app": app.name, **settings, "given_env": real_secret[-1] if real_secret else {}}
        return real(info, app, **settings)

    for name in list(os.environ):
        if name.startswith(("MODAL_", "ROUTING_", "SCALEDOWN_", "WITH_", "PUBLIC_URL")):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(_Function, "_from_local", staticmethod(spy))
    spec = importlib.util.spec_from_file_location("modal_app", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Inspected(module, asked)


def _dicts(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The dictionaries that became secrets, in order: `env=` is one."""
    from modal.secret import _Secret

    made: list[dict[str, str]] = []
    real = _Secret.from_dict

    def spy(env_dict: dict[str, str] | None = None, *rest: Any) -> Any:
        made.append(dict(env_dict or {}))
        return real(env_dict or {}, *rest)

    monkeypatch.setattr(_Secret, "from_dict", staticmethod(spy))
    return made

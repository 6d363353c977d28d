"""Modal as renders see it: a volume of which each container has a copy, a dictionary, and calls that nobody waits for.

Its methods have the names and arguments of the package's; `tests/modal/test_renders.py` holds them against the real ones.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

HERE: ContextVar[Path] = ContextVar("HERE")
"""The container's copy of the volume."""


class Cloud:
    """What is shared by all containers: files as they were published, decisions, and calls that wait."""

    def __init__(self, app: str) -> None:
        self.app = app
        self.files: dict[str, bytes] = {}
        self.folders: set[str] = set()
        self.decided: dict[Any, Any] = {}
        self.calls: list[tuple[str, int | None]] = []
        self._seen: dict[Path, dict[str, bytes]] = {}
        self._lock = threading.Lock()

    # --- the volume

    def commit(self) -> None:
        """Only what was written, and what was deleted, since this copy was made: the last one wins. Then it tries to reload."""
        self._publish()
        self._refuse_open_files()

    def _publish(self) -> None:
        with self._lock:
            root = HERE.get()
            now, before = _files(root), self._seen.get(root, {})
            self.files.update({name: data for name, data in now.items() if before.get(name) != data})
            for name in before.keys() - now.keys():
                self.files.pop(name, None)
            self.folders |= {str(path.relative_to(root)) for path in root.rglob("*") if path.is_dir()}
            self._seen[root] = now

    def reload(self) -> None:
        root = HERE.get()
        self._refuse_open_files()
        self._publish()
        with self._lock:
            for name in _files(root).keys() - self.files.keys():
                (root / name).unlink()
            for folder in self.folders:
                (root / folder).mkdir(parents=True, exist_ok=True)
            for name, data in self.files.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(data)
            self._seen[root] = dict(self.files)

    def _refuse_open_files(self) -> None:
        if any(Path(file.path).is_relative_to(HERE.get()) for file in psutil.Process().open_files()):
            raise RuntimeError("there are open files preventing the operation")

    # --- the dictionary

    def put(self, key: Any, value: Any, *, skip_if_exists: bool = False) -> bool:
        with self._lock:
            if skip_if_exists and key in self.decided:
                return False
            self.decided[key] = value
            return True

    def get(self, key: Any, default: Any = None) -> Any:
        return self.decided.get(key, default)

    def contains(self, key: Any) -> bool:
        return key in self.decided

    # --- the class of workers

    def worker(self) -> Any:
        """What calling the class gives: `do.spawn` keeps the call."""

        def spawn(render_id: str, span: int | None) -> None:
            self.calls.append((render_id, span))

        return SimpleNamespace(do=SimpleNamespace(spawn=spawn))


def container(tmp_path: Path, name: str) -> Path:
    """A new container's copy of the volume."""
    folder = tmp_path / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def modal_cloud(monkeypatch: pytest.MonkeyPatch, app: str) -> Cloud:
    """Puts it in the package's place."""
    made = Cloud(app)

    def known(expected: str, found: Any) -> Callable[..., Any]:
        def from_name(*names: str, create_if_missing: bool = False) -> Any:
            assert "/".join(names) == expected
            return found

        return from_name

    monkeypatch.setattr("modal.Volume.from_name", known(f"{app}-renders", made))
    monkeypatch.setattr("modal.Dict.from_name", known(f"{app}-renders", made))
    monkeypatch.setattr("modal.Cls.from_name", known(f"{app}/Renderer", made.worker))
    return made


def _files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

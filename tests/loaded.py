"""What an import brings along, seen in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from tests.waiting import NEVER_S


def loaded_by(module: str, looked_for: Sequence[str]) -> list[str]:
    """Which of the modules that are `looked_for` are loaded once `module` is imported. Raises AssertionError when it cannot be."""
    code = f"import sys, {module}; print(*[name for name in {list(looked_for)!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=NEVER_S)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()

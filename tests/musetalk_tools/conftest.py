from __future__ import annotations

from tests.orchestrator.conftest import running

__all__ = ["running"]

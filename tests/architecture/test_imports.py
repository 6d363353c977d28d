"""What may be loaded where, and how large things may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import NEVER_S

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("orchestrator", "musetalk_agent", "musetalk_tools")
PRODUCT = sorted(p for folder in (*PACKAGES, "tools") for p in (ROOT / folder).rglob("*.py"))


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
        ("musetalk_agent.service.agent_app", ("torch", "onnxruntime", "piper", "orchestrator")),
    ],
)
def test_importing_loads_no_more_than_it_should(module: str, forbidden: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([m for m in {forbidden!r} if m in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=NEVER_S, check=True
    ).stdout
    assert loaded.strip() == "[]"


MOST_LINES, USUAL_LINES = 600, 400


def test_nine_files_of_ten_are_short() -> None:
    """One idea may need more lines; a line limit must not cut it in two."""
    longer = [path for path in PRODUCT if path.read_text("utf-8").count("\n") > USUAL_LINES]
    assert len(longer) <= len(PRODUCT) / 10, longer


@pytest.mark.parametrize("path", PRODUCT, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.count("\n") <= MOST_LINES
    long = [
        f"{node.name}: {(node.end_lineno or 0) - node.lineno + 1}"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno >= 60
    ]
    assert long == []


def test_the_package_root_stays_empty() -> None:
    for name in PACKAGES:
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

"""Triton's kernels: interpreted on the processor beside float64, and compiled for every card that the wheels serve."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.late import late_imports

with late_imports("torch", "triton"):
    import triton

    from musetalk_agent.engines.musetalk import triton_kernels

CHECKS = Path(__file__).with_name("interpreted_kernels.py")


def test_what_the_kernels_compute_in_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", str(CHECKS)],
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "10 passed" in done.stdout


@pytest.mark.parametrize("capability", [75, 80, 90, 120])
def test_the_kernels_compile_for_cards_that_are_not_here(
    capability: int, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as machine code, by the assembler that Triton brings; and nothing of a tile is spilled to memory."""
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # its default today; Triton warns that it will change
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
    tile = {"ROWS": 32, "GROUPS": 8, "WIDTH": 16, "EVEN": True}
    small = {**tile, "GROUPS": 1, "WIDTH": 128, "EVEN": False, "steps": 1}  # Triton compiles a 1 in
    for kernel, constants in (
        (triton_kernels._add_kernel, {"HAS_Y": True, "HAS_BIAS": True, "STORES": True, **tile}),
        (triton_kernels._normalize_kernel, {"HAS_BIAS": True, "SILU": True, "PIECES": 64, **tile}),
        (triton_kernels._normalize_kernel, {"HAS_BIAS": False, "SILU": False, "PIECES": 2, **small}),
        (triton_kernels._add_kernel, {"HAS_Y": False, "HAS_BIAS": False, "STORES": False, **small}),
        (triton_kernels._geglu_kernel, {"BLOCK": 1024}),
        (triton_kernels._add_norm_kernel, {"BLOCK": 2048}),
    ):
        assembly = compiled(kernel, constants, capability)
        assert assembly["cubin"]
        assert ".local" not in assembly["ptx"]


def compiled(kernel: Any, constants: dict[str, Any], capability: int) -> dict[str, Any]:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kinds = {"moments": "*fp32", "eps": "fp32"} | dict.fromkeys(
        ("rows", "steps", "channels", "groups", "width", "total"), "i32"
    )
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: "constexpr" if name in constants else kinds.get(name, "*fp16") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
    )
    made: dict[str, Any] = triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm
    return made

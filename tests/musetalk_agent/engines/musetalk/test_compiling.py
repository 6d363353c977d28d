"""Machines on which no kernel can be compiled: what is said, and that the network runs all the same."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest

from musetalk_agent.engines.musetalk import compiling
from musetalk_agent.engines.musetalk.compiling import compiler_fault
from musetalk_agent.engines.musetalk.profiles import Options
from tests.fakes.weights import write_models
from tests.late import late_imports

with late_imports():
    from musetalk_agent.engines.musetalk.engine import MuseTalkEngine


@pytest.fixture(autouse=True)
def whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine that has all that is needed."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.setattr(compiling.shutil, "which", lambda name: f"/usr/bin/{name}" if name == "gcc" else None)
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "Python.h").write_text("")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "include"))


def test_a_whole_machine_has_no_fault(tmp_path: Path) -> None:
    assert compiler_fault(tmp_path / "kernels") is None and compiler_fault(None) is None


def test_no_compiler_and_one_that_is_named_and_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "icc")
    assert "CC is 'icc'" in (compiler_fault(None) or "")
    monkeypatch.delenv("CC")
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    assert "no C compiler" in (compiler_fault(None) or "") and "MUSETALK_FUSE=off" in (compiler_fault(None) or "")


def test_no_headers(tmp_path: Path) -> None:
    (tmp_path / "include" / "Python.h").unlink()
    assert "python3-dev" in (compiler_fault(None) or "")


def test_a_folder_that_cannot_be_written_or_run_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    assert "KERNELS_DIR" in (compiler_fault(tmp_path / "file" / "kernels") or "")
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_NOEXEC))
    assert "noexec" in (compiler_fault(tmp_path) or "")


def test_an_engine_that_is_to_compile_says_why_it_does_not_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = write_models(tmp_path / "models", scale="tiny")
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    engine = MuseTalkEngine(models, Options(fuse="compile"))
    try:
        engine.warmup()
        reported = engine.stats()
        assert (
            reported["fused"] == "off"
            and "no C compiler" in reported["fused_note"]
            and reported["frames_per_second"] > 0
        )
    finally:
        engine.close()

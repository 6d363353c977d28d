"""Whether kernels can be compiled on this machine: Triton and `torch.compile` build a small C library for each and load it."""

from __future__ import annotations

import os
import shutil
import sysconfig
import tempfile
from pathlib import Path

_COMPILERS = ("cc", "gcc", "clang")
_NO_EXEC: int = getattr(os, "ST_NOEXEC", 0)


def compiler_fault(kernels_dir: Path | None) -> str | None:
    """Why no kernel can be compiled here and what to do, a sentence; None where nothing is known against it.

    Args:
        kernels_dir: where compiled kernels are kept unless `TRITON_CACHE_DIR` says otherwise; None for the system's folder for
            short-lived files.
    """
    named = os.environ.get("CC")
    if shutil.which(named) is None if named else not any(map(shutil.which, _COMPILERS)):
        missing = (
            f"CC is {named!r}, which is not there" if named else f"there is no C compiler ({', '.join(_COMPILERS)})"
        )
        return f"Kernels cannot be compiled: {missing}. Install gcc with the C library's headers, or set MUSETALK_FUSE=off."
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if not headers.is_file():
        return f"Kernels cannot be compiled: {headers} is missing. Install python3-dev, or set MUSETALK_FUSE=off."
    folder = Path(os.environ.get("TRITON_CACHE_DIR") or kernels_dir or tempfile.gettempdir())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        no_exec = bool(_NO_EXEC and os.statvfs(folder).f_flag & _NO_EXEC)
    except OSError as error:
        return f"Compiled kernels cannot be kept in {folder} ({error.strerror}). Set KERNELS_DIR to a folder that can be written."
    if no_exec:
        return (
            f"Compiled kernels cannot be loaded from {folder}: it is mounted noexec. Set KERNELS_DIR to another folder."
        )
    return None

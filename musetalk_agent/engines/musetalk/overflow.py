"""Detects faces that half precision spoils: when too many are unfit to be shown, the networks are built again in a wider type."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

Part = Literal["decoder", "networks"]
"""What is built again: the decoder alone, which is where float16 overflows first, or all networks of a frame."""

LOOKED_AT = 200
"""Faces looked at together: eight seconds of one session."""
UNFIT_SHARE = 0.2
"""More unfit faces than this share of `LOOKED_AT` are no accident of a single frame."""


class UnfitFaces:
    """Counts faces in runs of `LOOKED_AT`. One thread may call `add`."""

    def __init__(self) -> None:
        self._seen = self._unfit = 0

    def add(self, *, good: bool) -> bool:
        """Counts one face; whether the run's share of unfit faces passes `UNFIT_SHARE` with it. True once in a run."""
        self._seen += 1
        self._unfit += not good
        passes = not good and self._unfit == int(UNFIT_SHARE * LOOKED_AT) + 1
        if self._seen == LOOKED_AT:
            self._seen = self._unfit = 0
        return passes


class WideDecoder(nn.Module):
    """A decoder in another type than the network before it.

    Args:
        decoder: latents `[B, 4, 32, 32]` to RGB, its weights of `dtype`.
    """

    def __init__(self, decoder: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.decoder, self.dtype = decoder, dtype

    def forward(self, latents: Tensor) -> Tensor:
        """As the decoder's own, in its type."""
        decoded: Tensor = self.decoder(latents.to(self.dtype))
        return decoded


class OverflowGuard:
    """Has a part built again when too many faces are unfit, in a thread of its own, while frames go on as idle ones.

    Args:
        narrow: type of the weights now; only float16 has a remedy, for the others have float32's range.
        wide: what to build in instead.
        rebuild: does it. What it raises is logged, and all stays as it is.
    """

    def __init__(self, narrow: torch.dtype, wide: torch.dtype, rebuild: Callable[[Part, torch.dtype], None]) -> None:
        self._wide, self._rebuild, self._unfit = wide, rebuild, UnfitFaces()
        self._left: list[Part] = ["decoder", "networks"] if narrow == torch.float16 else []
        self._working: threading.Thread | None = None

    def add(self, *, good: bool) -> None:
        """Counts one face. One thread may call it."""
        if not self._unfit.add(good=good) or (self._working is not None and self._working.is_alive()):
            return
        if not self._left:
            log.error("most faces are unfit to be shown, and no other precision is left to try: are the weights whole?")
            return
        self._working = threading.Thread(target=self._run, args=(self._left.pop(0),), name="musetalk-mend", daemon=True)
        self._working.start()

    def _run(self, part: Part) -> None:
        fields = {"part": part, "precision": str(self._wide).removeprefix("torch.")}
        log.warning("float16 overflows: a part is built again in a wider type", extra=fields)
        try:
            self._rebuild(part, self._wide)
        except Exception:  # the thread's boundary: drivers raise anything, and the old network is still there
            log.exception("the part was not built again", extra=fields)

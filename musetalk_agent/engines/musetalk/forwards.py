"""Which of the network's forwards a card runs: plain torch, Triton's fused kernels, or what `torch.compile` makes of the plain one.

All compute the same picture. Which is fastest depends on the card and on versions, so it is timed at start. Findings are kept in a
file: `torch.compile` takes minutes, so that `auto` tries it only where it was asked for once and won; and kernels that broke a
process are not tried again, so that a supervisor's next start comes up.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from musetalk_agent.engines.musetalk.network import Network
from musetalk_agent.engines.musetalk.profiles import Fuse
from musetalk_agent.errors import EngineFailed
from musetalk_agent.media_types import Pixels

log = logging.getLogger(__name__)

Kind = Literal["off", "triton", "compile"]
STEPS_APART = 3.0
"""Most steps of a byte by which 99.9 % of a fused forward's pixels may differ: half precision's own bar."""
_TRYING = "trying"


@dataclass(frozen=True, slots=True)
class Forward:
    """A network as it is run, and how."""

    kind: Kind
    network: Network


class Findings:
    """Milliseconds a frame by forward, or in words why there are none, for one card, versions, precision and profile.

    Args:
        folder: where they are kept, or None; made when first written. A file that cannot be read or written counts as empty.
        key: what they hold for.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self._path, self._key = folder and folder / "forwards.json", key

    def read(self) -> dict[str, float | str]:
        """By forward."""
        found = self._all().get(self._key, {})
        return found if isinstance(found, dict) else {}

    def note(self, kind: Kind, found: float | str) -> None:
        """Keeps one."""
        if self._path is None:
            return
        everything = self._all()
        everything[self._key] = self.read() | {kind: found}
        part = self._path.with_suffix(f".{os.getpid()}")
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(everything, indent=1) + "\n")
            part.replace(self._path)
        except OSError as error:
            log.warning("how fast the network's forwards are is not kept", extra={"reason": str(error)})

    def _all(self) -> dict[str, Any]:
        if self._path is None:
            return {}
        try:
            found = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def forward_of(kind: Kind, network: Network) -> Forward | None:
    """The network with that forward, its weights shared; None where there is nothing of it that Triton's kernels could fuse."""
    if kind == "off":
        return Forward(kind, network)
    if kind == "triton":
        from musetalk_agent.engines.musetalk.fused_network import fused

        made = fused(network)
        return None if (made.unet, made.decoder) == (network.unet, network.decoder) else Forward(kind, made)
    copy = Network(network.encoder, network.unet, network.decoder, network.dtype)
    copy.to(network.positions.device).eval().requires_grad_(False)
    copy.compile(dynamic=False)
    return Forward(kind, copy)


def chosen(
    asked: Fuse,
    network: Network,
    seconds: Callable[[Forward], float],
    faces: Callable[[Forward], Pixels],
    findings: Findings,
) -> Forward:
    """The forward that was asked for where it works here, else the plain one; with `auto` the fastest of those that work.

    Args:
        network: the plain one.
        seconds: times one, seconds a frame. May raise anything.
        faces: some faces as one makes them, uint8.
        findings: what earlier starts found.

    Raises:
        EngineFailed: the card failed; nothing can be run on it in this process.
    """
    plain = Forward("off", network)
    if asked == "off":
        return plain
    if asked != "auto":
        try:
            forward = forward_of(asked, network) or plain
            findings.note(forward.kind, round(1000 * seconds(forward), 4))
        except EngineFailed:
            raise
        except Exception as error:  # noqa: BLE001 - compilers raise anything; plain torch serves on
            log.warning(
                "the forward that was asked for does not work here", extra={"forward": asked, "reason": _why(error)}
            )
            findings.note(asked, _why(error))
            return plain
        return forward
    known = findings.read()
    found = {plain: seconds(plain)}
    findings.note("off", round(1000 * found[plain], 4))
    for kind in _others(known):
        findings.note(kind, _TRYING)
        try:
            other = forward_of(kind, network)
            if other is None:
                findings.note(kind, "nothing to fuse")
                continue
            _check(faces(plain), faces(other))
            found[other] = seconds(other)
        except EngineFailed:
            raise  # what was noted stays, and the next start leaves it out
        except Exception as error:  # noqa: BLE001 - compilers raise anything: no C compiler, no folder, an old or full card
            log.warning("a forward does not work here", extra={"forward": kind, "reason": _why(error)})
            findings.note(kind, _why(error))
            continue
        findings.note(kind, round(1000 * found[other], 4))
    best = min(found, key=lambda forward: found[forward])
    log.info(
        "forward chosen",
        extra={"forward": best.kind, "ms": {one.kind: round(1000 * took, 3) for one, took in found.items()}},
    )
    return best


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:200]


def _others(known: dict[str, float | str]) -> list[Kind]:
    others: list[Kind] = []
    if known.get("triton") == _TRYING:
        log.warning("Triton's kernels ended the process that tried them last; they are left out")
    else:
        others.append("triton")
    timed = [took for took in known.values() if not isinstance(took, str)]
    if (compiled := known.get("compile")) is not None and compiled == min(timed, default=None):
        others.append("compile")
    return others


def _check(wanted: Pixels, made: Pixels) -> None:
    apart = float(np.percentile(np.abs(made.astype(np.int16) - wanted), 99.9))
    if apart > STEPS_APART:
        raise ValueError(f"its faces are {apart:.0f} steps from the plain ones")


def findings_key(device: torch.device, profile: str, dtype: torch.dtype) -> str:
    """What a timing holds for: the card, torch, and what it computes."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return f"{name}, torch {torch.__version__}, {profile}, {str(dtype).removeprefix('torch.')}"


def keep_kernels(folder: Path) -> None:
    """Lets compiled kernels lie in `folder` instead of the system's folder for short-lived files, unless the environment says
    otherwise. Before the first is compiled."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "torchinductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))

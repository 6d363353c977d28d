"""The engine's options, and the profiles: named trades of quality for speed, costs in docs/explanation/musetalk-engine.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from musetalk_agent.errors import EngineUnavailable

Fuse = Literal["auto", "triton", "compile", "off"]
LATENT_ROWS = 32
"""Rows of a latent; each is eight rows of the 256×256 face."""
SHOWN_FROM = 96
"""First row of the 256 that a mask can show: masks begin at the box's centre (row 128) and their blur reaches
`0.075·max(w, h)` of the box further up, 27 rows for a box 1.4 times as wide as high."""
BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16)
"""Batch sizes on a card. Between them a batch is padded, so the steps are small where padding would cost a third."""
COMPILED_BUCKETS = (1, 2, 4, 8, 16)
"""With `torch.compile`, which takes the better part of a minute for each."""


@dataclass(frozen=True, slots=True)
class Profile:
    """How frames are made.

    Args:
        name: what `--profile` and the settings say.
        decoder: `sd-vae`, upstream's; `taesd`, a small network that imitates it.
        first_row: latent row, 0 … 12, from which on the decoder works behind its mid block; rows above stay undecoded. Above 0 the
            decoder's group norms see other rows than upstream's, so colours shift a little.
    """

    name: str
    decoder: Literal["sd-vae", "taesd"]
    first_row: int = 0

    @property
    def rows(self) -> int:
        """Rows of the 256 that come out, from the bottom."""
        return 8 * (LATENT_ROWS - self.first_row)


PROFILES = MappingProxyType(
    {
        profile.name: profile
        for profile in (
            Profile("quality", "sd-vae"),
            Profile("lower", "sd-vae", first_row=8),
            Profile("fast", "taesd"),
        )
    }
)


def profile_named(name: str) -> Profile:
    """The profile of that name. Raises `EngineUnavailable` for another."""
    if name not in PROFILES:
        raise EngineUnavailable(
            f"There is no profile {name!r}; there are {', '.join(PROFILES)}.", field="profile", value=name
        )
    return PROFILES[name]


@dataclass(frozen=True, slots=True)
class Options:
    """How the engine works.

    Args:
        device: `cpu`, `cuda:0` …
        profile: a name of `profiles.PROFILES`.
        precision: of weights and activations; None for float16 on a card, float32 on the processor.
        lookahead_ms: audio past a frame's end that its feature waits for, 0 … 200.
        bbox_shift: upstream's, pixels of the frame; moves the line between upper and lower face.
        restore: `live` restores the faces that sessions speak with, where there are weights and time (`live_restoration`), `asked`
            those of sessions that ask for it, `off` none.
        buckets: batch sizes, ascending; None for those of the device.
        fuse: the forward: `triton`, `compile` (minutes at the first start on a machine, its cache then helps), `off`, or `auto`,
            which times them on a card (`forwards.chosen`) and is `off` on the processor.
        kernels_dir: where compiled kernels and their timings are kept; None for the folder of short-lived files.
    """

    device: str = "cpu"
    profile: str = "quality"
    precision: Literal["float16", "bfloat16", "float32"] | None = None
    lookahead_ms: int = 80
    bbox_shift: int = 0
    restore: Literal["off", "asked", "live"] = "off"
    buckets: tuple[int, ...] | None = None
    fuse: Fuse = "auto"
    kernels_dir: Path | None = None


def bucket_of(count: int, sizes: Sequence[int]) -> int:
    """The smallest of the ascending `sizes` that holds `count` frames; the largest when none does."""
    return next((size for size in sizes if size >= count), sizes[-1])

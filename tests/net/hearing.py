"""What a viewer heard and saw of coded speech, and figures that leave a namespace as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tests.bench.figures import Figure
from tests.net.coded import Seen, decode, strand
from tests.viewer import Viewer


def heard(viewer: Viewer, since: float = 0.0) -> list[Seen]:
    """The pieces of coded speech that a viewer heard, on all its tracks."""
    return [
        piece
        for blocks in list(viewer.strands.values())
        for begun, pcm in strand(blocks)
        for piece in decode(begun, pcm)
        if piece.at >= since
    ]


def smoothness(viewer: Viewer, begun: float, ended: float) -> tuple[float, float]:
    """Median pictures in a second, and the longest time without one, in seconds."""
    times = np.array([at for at, *_ in viewer.video if begun <= at <= ended])
    if len(times) < 2:
        return 0.0, ended - begun
    rates, _ = np.histogram(times, bins=np.arange(begun, ended, 1.0))
    return float(np.median(rates)), float(np.diff(times).max())


def lines(*figures: Figure) -> list[dict[str, Any]]:
    """Figures as JSON has them."""
    return [dataclasses.asdict(figure) for figure in figures]

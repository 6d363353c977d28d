"""The bars of reliability, with a network made bad on purpose: `python -m tests.bench.reliability --only NAME`.

Every bench runs in network namespaces of its own, with real processes; one JSON line a figure.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import sys
from typing import Any

import numpy as np

from tests.bench.figures import Figure, pairs, percentile
from tests.net.coded import Seen, account, coded, decode, strand
from tests.net.inside import inside, unavailable
from tests.net.stack import stack
from tests.net.world import World
from tests.viewer import Viewer

PATTERN = {"engine": "pattern"}


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


async def loss(world: World, seconds: int = 30, sfu_far: bool = False) -> list[dict[str, Any]]:
    """5 % loss, 80 ms RTT, 20 ms jitter, on the agent's way up; with `sfu_far` on the viewer's way down too."""
    async with stack(world, sfu_far=sfu_far) as running:
        await world.delay(40, 20)
        await world.lose(5)
        async with running.live(**PATTERN) as live:
            await asyncio.sleep(3)
            begun = asyncio.get_running_loop().time()
            await live.send(coded(seconds))
            await asyncio.sleep(2)
            viewer = live.viewer
            fps, gap = smoothness(viewer, begun + 1, begun + seconds)
            skews = [abs(1000 * (w - s)) for s, w in pairs(viewer.onsets(begun), viewer.whites(begun), 0.5)]
            told = account(heard(viewer, begun), seconds)
    where = "up and down" if sfu_far else "up"
    note = f"{len(skews)} of {seconds} bursts matched, longest gap between pictures {1000 * gap:.0f} ms"
    return _lines(
        Figure(f"5 % loss, 80 ms RTT, 20 ms jitter {where}: median rate", fps, "1/s", 22, at_least=True),
        Figure(f"5 % loss, 80 ms RTT, 20 ms jitter {where}: skew p95", percentile(skews, 95), "ms", 60, note=note),
        Figure(
            f"5 % loss, 80 ms RTT, 20 ms jitter {where}: speech not heard",
            told.lost_ms,
            "ms",
            note=f"of {seconds} s; median skew {np.median(skews) if skews else -1:.0f} ms",
        ),
    )


def _lines(*figures: Figure) -> list[dict[str, Any]]:
    return [dataclasses.asdict(figure) for figure in figures]


BENCHES: dict[str, tuple[str, dict[str, Any]]] = {
    "loss": ("loss", {}),
    "loss_both": ("loss", {"sfu_far": True}),
}


def main() -> int:
    """Runs the benches in order."""
    parser = argparse.ArgumentParser(prog="reliability", description=__doc__)
    parser.add_argument("--only", default="", help=f"names separated by commas: {', '.join(BENCHES)}")
    options = parser.parse_args()
    if unavailable():
        print(unavailable(), file=sys.stderr)
        return 1
    for name in [n for n in options.only.split(",") if n] or BENCHES:
        function, arguments = BENCHES[name]
        for line in asyncio.run(inside(f"tests.bench.reliability:{function}", within_s=1200, **arguments)):
            print(Figure(**line).line(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

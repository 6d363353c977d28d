"""The bars of reliability, with a network made bad on purpose: `python -m tests.bench.reliability --only NAME`.

Every bench runs in network namespaces of its own, with real processes; one JSON line a figure.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Any

import numpy as np

from tests.bench.figures import Figure, pairs, percentile
from tests.net.coded import account, coded
from tests.net.hearing import heard, lines, smoothness
from tests.net.inside import inside, unavailable
from tests.net.stack import stack
from tests.net.world import World

PATTERN = {"engine": "pattern"}


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
            reported = account(heard(viewer, begun), seconds)
    where = "up and down" if sfu_far else "up"
    note = f"{len(skews)} of {seconds} bursts matched, longest gap between pictures {1000 * gap:.0f} ms"
    return lines(
        Figure(f"5 % loss, 80 ms RTT, 20 ms jitter {where}: median rate", fps, "1/s", 22, at_least=True),
        Figure(f"5 % loss, 80 ms RTT, 20 ms jitter {where}: skew p95", percentile(skews, 95), "ms", 60, note=note),
        Figure(
            f"5 % loss, 80 ms RTT, 20 ms jitter {where}: speech not heard",
            reported.lost_ms,
            "ms",
            note=f"of {seconds} s; median skew {np.median(skews) if skews else -1:.0f} ms",
        ),
    )


_HERE, _FAILOVER = "tests.bench.reliability", "tests.bench.reliability_failover"
BENCHES: dict[str, tuple[str, dict[str, Any]]] = {
    "loss": (f"{_HERE}:loss", {}),
    "loss_both": (f"{_HERE}:loss", {"sfu_far": True}),
    "to_rtmp": (f"{_FAILOVER}:to_rtmp", {}),
    "to_ingress": (f"{_FAILOVER}:to_ingress", {}),
    "cut_1": (f"{_FAILOVER}:cut", {"length_s": 1}),
    "cut_10": (f"{_FAILOVER}:cut", {"length_s": 10}),
    "cut_60": (f"{_FAILOVER}:cut", {"length_s": 60}),
    "sfu_restart": (f"{_FAILOVER}:sfu_restart", {}),
    "agent_killed": ("tests.bench.reliability_agents:agent_lost", {"how": "killed"}),
    "agent_hung": ("tests.bench.reliability_agents:agent_lost", {"how": "hung"}),
    "recorded": ("tests.bench.recordings:recorded", {}),
    "soak": ("tests.bench.reliability_soak:soak", {}),
    "to_rtmp_udp": (f"{_FAILOVER}:to_rtmp", {"udp_only": True}),
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
        for line in asyncio.run(inside(function, within_s=1200, **arguments)):
            print(Figure(**line).line(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

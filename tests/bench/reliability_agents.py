"""An agent killed or hung in mid-sentence while another one is warm: who speaks on, and when."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from typing import Any

import httpx

from tests.bench.figures import Figure
from tests.bench.reliability_failover import PATTERN, finished
from tests.net.coded import account, coded
from tests.net.hearing import heard, lines
from tests.net.stack import Stack, stack
from tests.net.world import World
from tests.viewer import Viewer

_LEAD_S = 6.0


async def agent_lost(world: World, how: str = "killed", seconds: int = 25) -> list[dict[str, Any]]:
    """`how`: killed (SIGKILL) or hung (SIGSTOP)."""
    async with stack(world, agents=2) as running, running.live(**PATTERN) as live:
        await asyncio.sleep(2)
        begun = time.monotonic()
        sending = asyncio.create_task(live.send(coded(seconds)))
        await asyncio.sleep(_LEAD_S)
        child = running.agents[await _serving(running)]
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        lost = time.monotonic()
        viewer, path = live.viewer, f"/session/{live.started['session_id']}"
        await sending
        spoke = await finished(live, 40)
        await asyncio.sleep(2)
        reported = account(heard(viewer, begun), seconds)
        seen = _moves_again(viewer, lost)
        view = (await running.http.get(path)).json()
        voices = sorted({who.partition("-")[0] for who in viewer.owners.values()})
        if how != "killed":
            os.kill(child.pid, signal.SIGCONT)
    note = f"moves {view['moves']}; spoken by {voices}; gap {reported.gap_at - lost:.1f} s after"
    return lines(
        Figure(f"agent {how} in mid-sentence: the avatar moves again", seen, "s", 5, note=note),
        Figure(
            f"agent {how}: longest silence within speech", reported.longest_gap_s, "s", 1 if how == "killed" else None
        ),
        Figure(
            f"agent {how}: speech lost", reported.lost_ms, "ms", 0, note=f"pieces {reported.lost}; all spoken: {spoke}"
        ),
        Figure(f"agent {how}: speech heard twice", reported.doubled_ms, "ms", note=f"pieces {reported.doubled}"),
    )


def _moves_again(viewer: Viewer, lost: float) -> float:
    """When the longest time without a picture ended, seconds after the loss."""
    times = [at for at, *_ in viewer.video if at > lost - 0.5]
    ends = [(after - before, after - lost) for before, after in itertools.pairwise(times) if after > lost]
    return max(ends)[1] if ends else 99.0


async def _serving(running: Stack) -> int:
    async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
        reported = [(await http.get(f"{url}/health")).json() for url in running.agent_urls]
    return next(number for number, answer in enumerate(reported) if answer["capacity"]["sessions"])

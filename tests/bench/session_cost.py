"""What one session of 512 px costs in the agent: shares of a core while it is idle, silent, hears noise or hum, and speaks."""

from __future__ import annotations

import asyncio

import numpy as np
import psutil

from musetalk_agent.media_types import Pcm
from tests.bench.engine import speech
from tests.bench.figures import Figure
from tests.bench.reliability_failover import finished
from tests.bench.room import DEMO
from tests.bench.stack import Demo, demo
from tests.viewer import RATE

SECONDS = 8


async def session_cost(_: int) -> list[Figure]:
    """One session, one viewer; `SECONDS` of each, in turn. Neighbours on the machine make all of them dearer."""
    figures = []
    async with demo() as stack, stack.live(**DEMO) as live:
        agent = _agent(stack)
        assert await finished(live, 60)
        for name, pcm in _audio().items():
            before, begun = _cpu_s(agent), asyncio.get_running_loop().time()
            if pcm is None:
                await asyncio.sleep(SECONDS)
            else:
                await live.send(pcm)
            cores = (_cpu_s(agent) - before) / (asyncio.get_running_loop().time() - begun)
            figures.append(Figure(f"agent's CPU, one session of 512 px: {name}", cores, "cores"))
            assert await finished(live, 60)
    return figures


def _audio() -> dict[str, Pcm | None]:
    count = SECONDS * RATE
    seconds = np.arange(count) / RATE
    noise = np.random.default_rng(0).normal(0, 300, count)
    hum = 2_000 * np.sin(2 * np.pi * 100 * seconds) + 700 * np.sin(2 * np.pi * 200 * seconds)
    return {
        "idle": None,
        "zeros": np.zeros(count, np.int16),
        "noise": noise.astype(np.int16),
        "hum": hum.astype(np.int16),
        "speech": speech()[:count],
    }


def _agent(stack: Demo) -> psutil.Process:
    """The agent's own process: of those with its name the one that has worked most."""
    children = psutil.Process(stack.process.pid).children(recursive=True)
    return max((one for one in children if "musetalk_agent" in " ".join(one.cmdline())), key=_cpu_s)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)

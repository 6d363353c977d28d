"""Runs the printed example of livekit-agents as a worker of the real package, in that package's own environment.

`as_printed`, the example to the letter, is imported from the working folder. The voice that it leaves to the reader is two seconds
of a tone, said once the session has started.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import as_printed
import numpy as np
from livekit import rtc
from livekit.agents import AgentSession, JobExecutorType, WorkerOptions, cli

RATE = 24_000


async def _tone() -> AsyncIterator[rtc.AudioFrame]:
    block = RATE // 10
    for at in range(0, 2 * RATE, block):
        pcm = 9000 * np.sin(2 * np.pi * 440 * np.arange(at, at + block) / RATE)
        yield rtc.AudioFrame(pcm.astype("<i2").tobytes(), RATE, 1, block)


class Talking(AgentSession):  # type: ignore[type-arg]
    """An AgentSession with something to say."""

    async def start(self, *args: Any, **options: Any) -> Any:
        """See AgentSession."""
        started = await super().start(*args, **options)
        self.say("a tone", audio=_tone(), allow_interruptions=False)
        return started


as_printed.AgentSession = Talking

if __name__ == "__main__":
    cli.run_app(
        WorkerOptions(
            entrypoint_fnc=as_printed.entrypoint,
            job_executor_type=JobExecutorType.THREAD,
            num_idle_processes=0,
            load_fnc=lambda: 0.0,  # the tests' machine is busy
            host="127.0.0.1",
            port=0,
        )
    )

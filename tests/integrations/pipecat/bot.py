"""A Pipecat pipeline with the avatar in it, driven from standard input; runs in Pipecat's own environment.

One JSON object a line. In: `{"say": seconds, "rate"?, "channels"?}`, `{"interrupt": true}`, `{"hear": identity}`,
`{"end": true}`. Out: what left the service, as `{"down" | "up": frame, "at": seconds}`, and what its event handlers received.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import numpy as np
from loguru import logger
from musetalk_pipecat import MuseTalkVideoService
from pipecat.frames.frames import (
    EndFrame,
    ErrorFrame,
    Frame,
    InterruptionFrame,
    StartFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    UserAudioRawFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.workers.runner import WorkerRunner

BLOCK_S = 0.02


def report(**reported: Any) -> None:
    print(json.dumps({**reported, "at": time.monotonic()}), flush=True)


class Tap(FrameProcessor):
    """Tells of every frame that passes in one direction."""

    def __init__(self, direction: FrameDirection, name: str) -> None:
        super().__init__(enable_direct_mode=True)
        self._direction, self._word = direction, name

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if direction is self._direction:
            error = {"error": frame.error} if isinstance(frame, ErrorFrame) else {}
            if isinstance(frame, UserAudioRawFrame):
                error = {"user": frame.user_id}
            report(**{self._word: type(frame).__name__}, **error)
        await self.push_frame(frame, direction)


async def say(worker: PipelineWorker, seconds: float, rate: int = 24_000, channels: int = 1) -> None:
    """A ramp, so that every sample tells its place."""
    ramp = np.repeat(np.arange(round(seconds * rate)) % 30_000, channels).astype(np.int16)
    await worker.queue_frame(TTSStartedFrame())
    for block in np.split(ramp, range(round(BLOCK_S * rate) * channels, len(ramp), round(BLOCK_S * rate) * channels)):
        await worker.queue_frame(TTSAudioRawFrame(block.tobytes(), rate, channels))
    await worker.queue_frame(TTSStoppedFrame())


async def obey(worker: PipelineWorker, lines: asyncio.StreamReader) -> None:
    while line := await lines.readline():
        order = json.loads(line)
        if "say" in order:
            await say(worker, order.pop("say"), **order)
        elif "interrupt" in order:
            await worker.queue_frame(InterruptionFrame())
        elif "hear" in order:
            await worker.queue_frame(UserAudioRawFrame(b"\0\0", 16_000, 1, user_id=order["hear"]))
        elif "end" in order:
            await worker.queue_frame(EndFrame())


async def main(url: str, key: str) -> None:
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    service = MuseTalkVideoService(url=url, api_key=key, room="stage", more={"engine": "pattern"})
    report(own=[service.is_own(who) for who in ("avatar-ses_1", "voice-ses_1", "somebody")])
    taps = Tap(FrameDirection.UPSTREAM, "up"), Tap(FrameDirection.DOWNSTREAM, "down")
    pipeline = Pipeline([taps[0], service.without_avatar(), service, taps[1]])
    params = PipelineParams(audio_out_sample_rate=24_000, enable_metrics=True)
    worker = PipelineWorker(pipeline, cancel_on_idle_timeout=False, enable_rtvi=False, params=params)

    @service.event_handler("on_avatar_ready")
    async def ready(_: MuseTalkVideoService, session_id: str) -> None:
        report(ready=session_id, identities=sorted(service.identities))

    @service.event_handler("on_avatar_state")
    async def state(_: MuseTalkVideoService, state: str, reason: str | None) -> None:
        report(state=state, reason=reason)

    @worker.event_handler("on_pipeline_started")
    async def started(_: PipelineWorker, frame: StartFrame) -> None:
        report(started=True)

    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    orders = asyncio.create_task(obey(worker, lines))
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    try:
        await runner.run()
    finally:
        orders.cancel()
    ours = {"musetalk_agent", "musetalk_agent.protocol", "musetalk_agent.protocol.retries"}
    foreign = sorted(
        name
        for name in sys.modules
        if name.partition(".")[0] in ("musetalk_agent", "orchestrator", "livekit") and name not in ours
    )
    report(over=True, foreign=foreign, identities=sorted(service.identities))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

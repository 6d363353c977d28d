"""The example of the documentation as a bot that says one tone per text; runs in Pipecat's own environment.

Arguments: the file with the example, then those of its function. In, one JSON object a line: `{"say": text}`, `{"end": true}`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import numpy as np
from loguru import logger
from pipecat.frames.frames import EndFrame, Frame, TTSAudioRawFrame, TTSSpeakFrame
from pipecat.pipeline.worker import PipelineWorker
from pipecat.services.settings import TTSSettings
from pipecat.services.tts_service import TTSService
from pipecat.workers.runner import WorkerRunner

RATE = 24_000


class Tone(TTSService):
    """Half a second of 440 Hz for every text."""

    def __init__(self) -> None:
        settings = TTSSettings(model=None, voice=None, language=None)
        super().__init__(push_start_frame=True, push_stop_frames=True, stop_frame_timeout_s=0.3, settings=settings)

    async def run_tts(self, text: str, context_id: str) -> AsyncGenerator[Frame | None, None]:
        tone = 9000 * np.sin(2 * np.pi * 440 * np.arange(RATE // 2) / RATE)
        yield TTSAudioRawFrame(tone.astype(np.int16).tobytes(), RATE, 1, context_id=context_id)


async def main(example: str, *arguments: str) -> None:
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    names: dict[str, Any] = {}
    exec(compile(await asyncio.to_thread(Path(example).read_text), example, "exec"), names)
    pipeline = names["with_avatar"](*arguments, Tone())
    worker = PipelineWorker(pipeline, cancel_on_idle_timeout=False, enable_rtvi=False)

    @worker.event_handler("on_pipeline_started")
    async def started(_: PipelineWorker, frame: Frame) -> None:
        print(json.dumps({"started": True}), flush=True)

    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)

    async def obey() -> None:
        while line := await lines.readline():
            order = json.loads(line)
            await worker.queue_frame(TTSSpeakFrame(order["say"]) if "say" in order else EndFrame())

    orders = asyncio.create_task(obey())
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    try:
        await runner.run()
    finally:
        orders.cancel()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

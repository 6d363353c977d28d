"""The example of the documentation as a bot that says one tone per text; runs in Pipecat's own environment.

Arguments: the file with the example, then those of its function. In, one JSON object a line: `{"say": text}`,
`{"interrupt": true}`, `{"end": true}`. Out: when the pipeline runs, and at its end who was heard before and behind each processor.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import numpy as np
from loguru import logger
from pipecat.frames.frames import EndFrame, Frame, InterruptionFrame, TTSAudioRawFrame, TTSSpeakFrame, UserAudioRawFrame
from pipecat.observers.base_observer import BaseObserver, FramePushed
from pipecat.pipeline.worker import PipelineWorker
from pipecat.services.settings import TTSSettings
from pipecat.services.tts_service import TTSService
from pipecat.workers.runner import WorkerRunner

RATE = 24_000


class Tone(TTSService):
    """440 Hz, 0.1 s for every letter."""

    def __init__(self) -> None:
        settings = TTSSettings(model=None, voice=None, language=None)
        super().__init__(push_start_frame=True, push_stop_frames=True, stop_frame_timeout_s=0.3, settings=settings)

    async def run_tts(self, text: str, context_id: str) -> AsyncGenerator[Frame | None, None]:
        tone = 9000 * np.sin(2 * np.pi * 440 * np.arange(len(text) * RATE // 10) / RATE)
        yield TTSAudioRawFrame(tone.astype(np.int16).tobytes(), RATE, 1, context_id=context_id)


class Ears(BaseObserver):
    """Counts blocks of sound by the processor that passes them on and the kind of participant they came from."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: Counter[str] = Counter()

    async def on_push_frame(self, data: FramePushed) -> None:
        if isinstance(data.frame, UserAudioRawFrame):
            self.heard[f"{type(data.source).__name__} {data.frame.user_id.partition('-')[0]}"] += 1


async def main(example: str, *arguments: str) -> None:
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    names: dict[str, Any] = {}
    exec(compile(await asyncio.to_thread(Path(example).read_text), example, "exec"), names)
    pipeline = names["with_avatar"](*arguments, Tone())
    ears = Ears()
    worker = PipelineWorker(pipeline, cancel_on_idle_timeout=False, enable_rtvi=False, observers=[ears])

    @worker.event_handler("on_pipeline_started")
    async def started(_: PipelineWorker, frame: Frame) -> None:
        print(json.dumps({"started": True}), flush=True)

    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)

    async def obey() -> None:
        while line := await lines.readline():
            order = json.loads(line)
            if "say" in order:
                await worker.queue_frame(TTSSpeakFrame(order["say"]))
            else:
                await worker.queue_frame(InterruptionFrame() if "interrupt" in order else EndFrame())

    orders = asyncio.create_task(obey())
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    try:
        await runner.run()
    finally:
        orders.cancel()
    print(json.dumps({"heard": ears.heard}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

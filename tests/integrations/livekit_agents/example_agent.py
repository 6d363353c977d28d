"""Runs the documentation's example in a real worker of livekit-agents until its input ends. Only the voice is replaced: tones."""

from __future__ import annotations

import asyncio
import importlib.util
import sys

from agent import Tones, report
from livekit.agents import AgentServer, JobExecutorType


async def main(example_path: str) -> None:
    spec = importlib.util.spec_from_file_location("example", example_path)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.VOICE = Tones()
    server = AgentServer(job_executor_type=JobExecutorType.THREAD, host="127.0.0.1", port=0, load_fnc=lambda: 0.0)
    server.rtc_session()(example.entrypoint)
    server.on("worker_registered", lambda *_: report("ready"))
    running = asyncio.create_task(server.run(devmode=True))
    await asyncio.to_thread(sys.stdin.read)
    await server.aclose()
    await running
    report("left")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))

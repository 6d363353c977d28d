"""How long it takes from the start of a process until frames can be made, and what that is made of."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time

from tests.bench.figures import Figure
from tests.bench.shop import Bench, why


async def startup(bench: Bench) -> list[Figure]:
    """From the start of a process to a warm engine, and of the whole agent, with weights as published and converted."""
    found = [await asyncio.to_thread(_start_of_engine, bench, "weights as published")]
    if not bench.tiny:
        convert = [
            sys.executable,
            "-m",
            "musetalk_agent",
            "convert-weights",
            "--models-dir",
            str(bench.models),
            "--quiet",
        ]
        await asyncio.to_thread(subprocess.run, convert, check=True, timeout=300)
        found.append(await asyncio.to_thread(_start_of_engine, bench, "weights converted to float16"))
    try:
        found.append(await asyncio.to_thread(_start_of_agent, bench))
    except Exception as error:  # noqa: BLE001 - a lent machine may lack what the whole agent needs
        found.append(Figure("agent process start to ready", None, "s", 20, note=why(error)))
    return found


def _start_of_engine(bench: Bench, kind: str) -> Figure:
    command = [
        sys.executable,
        "-m",
        "tests.bench.gpu",
        "--child",
        "--models",
        str(bench.models),
        "--device",
        bench.device,
    ]
    command += ["--profile", bench.profile, *(["--tiny"] if bench.tiny else [])]
    begun = time.time()
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    marks = json.loads(result.stdout.strip().splitlines()[-1])
    parts, last = [], begun
    for name, at in marks:
        parts.append(f"{name} {at - last:.2f}")
        last = at
    return Figure(f"process start to warm engine, {kind}", last - begun, "s", 20, note=", ".join(parts))


def child(bench: Bench) -> int:
    """In a process of its own: loads and warms an engine, and prints when it did what."""
    marks = [("python", time.time())]
    import torch

    marks.append(("torch", time.time()))
    import diffusers  # noqa: F401
    import transformers  # noqa: F401

    from musetalk_agent.engines.musetalk.engine import MuseTalkEngine

    marks.append(("other imports", time.time()))
    if bench.device != "cpu":
        torch.zeros(1, device=bench.device)
        torch.cuda.synchronize()
        marks.append(("CUDA context", time.time()))
    engine = MuseTalkEngine(bench.models, bench.options())
    marks.append(("weights", time.time()))
    engine.warmup()
    marks.append(("graphs and measuring", time.time()))
    print(json.dumps(marks))
    return 0


def _start_of_agent(bench: Bench) -> Figure:
    import socket
    import urllib.request

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "AGENT_API_KEY": "bench",
        "AGENT_ENGINE": "musetalk",
        "MUSETALK_DEVICE": bench.device,
        "MUSETALK_PROFILE": bench.profile,
        "MODELS_DIR": str(bench.models),
        "AVATAR_CACHE_DIR": str(bench.folder / "cache"),
    }
    command = [sys.executable, "-m", "musetalk_agent", "serve", "--port", str(port)]
    begun = time.perf_counter()
    log = bench.folder / "agent.log"
    with log.open("wb") as out:
        agent = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
        try:
            while time.perf_counter() - begun < 180 and agent.poll() is None:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
                        health = json.load(answer)
                    took = time.perf_counter() - begun
                    note = f"health: {json.dumps(health['capacity'])}"
                    return Figure("agent process start to ready (newest weights on disk)", took, "s", 20, note=note)
                except OSError:
                    time.sleep(0.02)
            raise RuntimeError(f"the agent did not become ready: {log.read_text()[-800:]}")
        finally:
            agent.terminate()
            agent.wait(20)

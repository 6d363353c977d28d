"""A hundred sessions that come and go, eight at a time, while agents are killed, links cut and the SFU started again."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
import uuid
from collections import Counter
from typing import Any

import httpx
import numpy as np
import websockets

from tests.bench.figures import Figure
from tests.net.coded import coded
from tests.net.hearing import lines
from tests.net.stack import Stack, stack
from tests.net.world import World

_AT_ONCE = 8
_BODY = {"engine": "pattern", "width": 128, "height": 128}
_STUCK_S = 60.0
_SAMPLE_S = 5.0


async def soak(world: World, sessions: int = 100, every_s: float = 45.0) -> list[dict[str, Any]]:
    """Starts and stops `sessions`; every `every_s` something breaks."""
    outcomes: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    memory: list[tuple[float, dict[str, float]]] = []
    async with stack(world, agents=3) as running:
        async with asyncio.TaskGroup() as tasks:
            others = [
                tasks.create_task(_break(running, every_s, faults)),
                tasks.create_task(_weigh(running, memory)),
            ]
            gate = asyncio.Semaphore(_AT_ONCE)
            lives = [tasks.create_task(_life(running, number, gate, outcomes)) for number in range(sessions)]
            await asyncio.wait(lives)
            for task in others:
                task.cancel()
        await world.drop()
        await asyncio.sleep(30)  # an avatar whose agent was killed leaves by time-out
        leaked, notes = await _left_over(running)
    watched = [name for name in memory[-1][1] if name.startswith(("orchestrator", "agent 0"))]
    slopes = {name: _slope([(at, sizes.get(name)) for at, sizes in memory]) for name in watched}
    took = (memory[-1][0] - memory[0][0]) / 60
    note = f"{dict(outcomes)}; faults {dict(faults)}; {took:.1f} min"
    return lines(
        Figure(f"{sessions} sessions, faults injected: stuck", outcomes["stuck"], "", 0, note=note),
        Figure(f"{sessions} sessions, faults injected: leaked", leaked, "", 0, note=str(notes)),
        *(
            Figure(
                f"{sessions} sessions: memory slope of {name} after warm-up",
                slope,
                "MB/min",
                1,
                note=f"{slope * took / sessions * 1000:.0f} kB a session; {' '.join(_course(memory, name))} MB",
            )
            for name, slope in slopes.items()
        ),
    )


async def _life(running: Stack, number: int, gate: asyncio.Semaphore, outcomes: Counter[str]) -> None:
    """One session: an utterance or two, then it is stopped."""
    async with gate:
        dice = random.Random(number)
        try:
            async with asyncio.timeout(_STUCK_S + 60):
                outcomes[await _talk(running, dice)] += 1
        except TimeoutError:
            outcomes["stuck"] += 1


async def _talk(running: Stack, dice: random.Random) -> str:
    answer = None
    for _ in range(5):
        try:
            answer = await running.http.post("/session/start", json={"room": f"soak-{uuid.uuid4().hex[:8]}", **_BODY})
        except httpx.TransportError:
            return "no answer"
        if answer.is_success:
            break
        await asyncio.sleep(2)
    assert answer is not None
    if not answer.is_success:
        return f"not started: {answer.json()['code']}"
    started = answer.json()
    try:
        return await _speak(started["audio_url"], dice)
    finally:
        path = f"/session/{started['session_id']}"
        await running.http.post(f"{path}/stop")
        assert (await running.http.get(path)).json()["state"] in ("stopped", "failed")


async def _speak(url: str, dice: random.Random) -> str:
    """Whether all utterances were heard to their ends, or how the session ended."""
    utterances, done = dice.randint(1, 2), 0
    try:
        async with websockets.connect(url, max_queue=None) as socket:
            for _ in range(utterances):
                await socket.send(json.dumps({"type": "audio.start"}))
                pcm = coded(dice.randint(8, 16))
                for at in range(0, len(pcm), 3200):
                    await socket.send(pcm[at : at + 3200].tobytes())
                await socket.send(json.dumps({"type": "audio.end"}))
                async for text in socket:
                    if json.loads(text)["type"] == "playback.finished":
                        done += 1
                        break
    except websockets.ConnectionClosed as closed:
        return f"closed: {closed.rcvd.reason if closed.rcvd else 'without a word'}"
    return "spoken" if done == utterances else "cut short"


async def _break(running: Stack, every_s: float, faults: Counter[str]) -> None:
    dice = random.Random(7)
    kinds = [_kill_agent, _cut_link, _restart_sfu, _hang_agent]
    for turn in range(10_000):
        await asyncio.sleep(every_s)
        kind = kinds[turn % len(kinds)]
        faults[kind.__name__.strip("_")] += 1
        await kind(running, dice)


async def _kill_agent(running: Stack, dice: random.Random) -> None:
    """Never the first one, whose memory is watched."""
    number = dice.randint(1, len(running.agents) - 1)
    agent = running.agents[number]
    assert agent.pid is not None
    os.kill(agent.pid, signal.SIGKILL)
    await agent.ended()
    await agent.start()
    await agent.ready(f"{running.agent_urls[number]}/health", 60)


async def _hang_agent(running: Stack, dice: random.Random) -> None:
    pid = running.agents[dice.randint(1, len(running.agents) - 1)].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(8)
    os.kill(pid, signal.SIGCONT)


async def _cut_link(running: Stack, dice: random.Random) -> None:
    await running.make_webrtc_impossible()
    await asyncio.sleep(dice.choice((1, 4, 8)))
    await running.world.drop()


async def _restart_sfu(running: Stack, dice: random.Random) -> None:
    child = running.server.child
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    await child.ended()
    await asyncio.sleep(dice.choice((0.5, 2)))
    await running.server.start()


async def _weigh(running: Stack, memory: list[tuple[float, dict[str, float]]]) -> None:
    while True:
        memory.append((time.monotonic(), await asyncio.to_thread(running.memory_mb)))
        await asyncio.sleep(_SAMPLE_S)


def _slope(points: list[tuple[float, float | None]]) -> float:
    """Megabytes a minute over the last two thirds."""
    known = [(at, size) for at, size in points if size is not None]
    known = known[len(known) // 3 :]
    if len(known) < 3:
        return 0.0
    at, size = np.array(known).T
    return float(np.polyfit((at - at[0]) / 60, size, 1)[0])


def _course(memory: list[tuple[float, dict[str, float]]], name: str) -> list[str]:
    return [f"{sizes.get(name, 0):.0f}" for _, sizes in memory[:: max(1, len(memory) // 8)]]


async def _left_over(running: Stack) -> tuple[int, dict[str, Any]]:
    """What there should be none of: sessions at agents, avatars in rooms, sessions that have not ended."""
    async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
        reported = [(await http.get(f"{url}/health")).json() for url in running.agent_urls]
    busy = [answer["capacity"]["sessions"] for answer in reported]
    avatars = await running.avatars()
    listed = (await running.http.get("/sessions")).json()["sessions"]
    unended = [session["session_id"] for session in listed if session["state"] not in ("stopped", "failed")]
    return sum(busy) + len(avatars) + len(unended), {"at agents": busy, "in rooms": avatars, "unended": unended}

"""A person behind the face: from a participant's microphone to the avatar's sound at a viewer, and where the time goes."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from livekit import rtc

from musetalk_agent.publishers.livekit.detached_connect import leave
from tests.bench.engine import speech
from tests.bench.figures import Figure, pairs, percentile
from tests.bench.stack import Demo, demo
from tests.viewer import RATE, Viewer

PRESENTER = "presenter"
BLOCK = RATE // 100
BAR_MS = 200
COUNTS = ("spoken", "dropped", "held", "skew_ms", "underruns", "margin_ms")


@dataclass
class Presenter:
    """A participant whose microphone hears what it is given: silence between. `spoken` are blocks and when they ended."""

    room: rtc.Room = field(default_factory=rtc.Room)
    spoken: list[tuple[float, np.ndarray]] = field(default_factory=list)
    _next: list[np.ndarray] = field(default_factory=list)
    _task: asyncio.Task[None] | None = None

    async def join(self, url: str, token: str) -> Presenter:
        await self.room.connect(url, token, rtc.RoomOptions(auto_subscribe=False))
        source = rtc.AudioSource(RATE, 1, queue_size_ms=0)  # what it hears is sent at once, as a device's is
        track = rtc.LocalAudioTrack.create_audio_track("microphone", source)
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
        await self.room.local_participant.publish_track(track, options)
        self._task = asyncio.create_task(self._hear(source))
        return self

    async def _hear(self, source: rtc.AudioSource) -> None:
        loop = asyncio.get_running_loop()
        begun, count = loop.time(), 0
        while True:
            count += 1
            await asyncio.sleep(max(0.0, begun + count * BLOCK / RATE - loop.time()))
            block = self._next.pop(0) if self._next else np.zeros(BLOCK, np.int16)
            self.spoken.append((loop.time(), block))
            await source.capture_frame(rtc.AudioFrame(block.tobytes(), RATE, 1, len(block)))

    async def say(self, pcm: np.ndarray) -> None:
        """Returns when all of it was spoken."""
        self._next += [pcm[at : at + BLOCK].astype(np.int16) for at in range(0, len(pcm) // BLOCK * BLOCK, BLOCK)]
        while self._next:  # noqa: ASYNC110 - what is spoken goes by the clock
            await asyncio.sleep(0.05)

    async def leave(self) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await leave(self.room)


@asynccontextmanager
async def presented(stack: Demo, **body: Any) -> AsyncIterator[tuple[Presenter, Viewer, dict[str, Any]]]:
    """A session that says a presenter's microphone, with one viewer, who hears the microphone itself as well."""
    room = f"bench-{uuid.uuid4().hex[:8]}"

    async def token(identity: str, *publish: str) -> str:
        asked = {"room": room, "identity": identity, "publish": publish}
        made: str = (await stack.http.post("/token", json=asked)).raise_for_status().json()["token"]
        return made

    viewer = await Viewer().join(stack.info["livekit_url"], await token("viewer"))
    presenter = await Presenter().join(stack.info["livekit_url"], await token(PRESENTER, "microphone"))
    try:
        answer = await stack.http.post(
            "/session/start", json={"room": room, "audio_source": {"participant": PRESENTER}, **body}
        )
        assert answer.is_success, answer.text
        started = answer.json()
        try:
            assert await viewer.until(20, lambda: viewer.video), "no picture within 20 s"
            yield presenter, viewer, started
        finally:
            await stack.http.post(f"/session/{started['session_id']}/stop")
    finally:
        await presenter.leave()
        await viewer.leave()


def _envelope(sound: list[tuple[float, np.ndarray]], begin: float, seconds: float) -> np.ndarray:
    """Mean level of each millisecond from `begin` on."""
    step = RATE // 1000
    made = np.zeros(round(seconds * 1000) + 1)
    for at, block in sound:
        level = np.abs(block[: len(block) // step * step].astype(float)).reshape(-1, step).mean(axis=1)
        first = round(1000 * (at - begin) - len(block) / step)
        for index, value in enumerate(level, first):
            if 0 <= index < len(made):
                made[index] = value
    return made


def delays_ms(
    spoken: list[tuple[float, np.ndarray]], heard: list[tuple[float, np.ndarray]], begin: float, end: float
) -> list[float]:
    """How much later than spoken it was heard, by the best match of each two seconds."""
    window, most = 2000, 800
    said, got = _envelope(spoken, begin, end - begin), _envelope(heard, begin, end - begin)
    found = []
    for at in range(0, len(said) - window - most, window // 2):
        part = said[at : at + window]
        if part.max() < 500:
            continue
        part = part - part.mean()
        scores = [float(part @ got[at + lag : at + lag + window]) for lag in range(most)]
        found.append(float(np.argmax(scores)))
    return found


async def _measured(stack: Demo, engine: str, seconds: int) -> list[Figure]:
    """Speech with pauses from the presenter's microphone."""
    loop = asyncio.get_running_loop()
    body: dict[str, Any] = {"engine": engine} if engine == "pattern" else {"engine": engine, "avatar_id": "demo"}
    async with presented(stack, **body) as (presenter, viewer, started):
        await asyncio.sleep(2)
        pause = np.zeros(RATE * 7 // 10, np.int16)
        said = np.concatenate([np.concatenate([part, pause]) for part in np.array_split(speech(), 5)])
        begun, waits = loop.time(), []

        async def look() -> None:
            while True:
                view = (await stack.http.get(f"/session/{started['session_id']}")).json()
                waits.append(view["microphone"].get("delay_ms", 0))
                await asyncio.sleep(0.7)

        looking = asyncio.create_task(look())
        await presenter.say(np.tile(said, -(-seconds * RATE // len(said)))[: seconds * RATE])
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        await asyncio.sleep(1)
        end = loop.time()
        strands = {viewer.owners[sid]: strand for sid, strand in viewer.strands.items()}
        whole = delays_ms(presenter.spoken, strands[started["avatar_identity"]], begun, end)
        hop = delays_ms(presenter.spoken, strands[PRESENTER], begun, end)
        view = (await stack.http.get(f"/session/{started['session_id']}")).json()
        microphone = view["microphone"]
        statistics = await stack.statistics(started["session_id"])
    median, to_room, waited = float(np.median(whole)), float(np.median(hop)), float(np.median(waits))
    note = (
        f"median {median:.0f}, of {len(whole)}; to another participant {to_room:.0f}, waits at the agent {waited:.0f} "
        f"(35 of them between agent and viewer), rest of the path to the viewer {median - to_room - waited:.0f}; "
        f"left out {microphone['left_out_ms']}, stretched {microphone['stretched_ms']}, late {microphone['late_ms']} ms; "
        f"frames {', '.join(f'{name} {statistics[name]}' for name in COUNTS)}"
    )
    return [
        Figure(
            f"microphone to the avatar's sound at a viewer, {engine}, p95",
            percentile(whole, 95),
            "ms",
            BAR_MS,
            note=note,
        )
    ]


async def _in_step(stack: Demo, seconds: int) -> list[Figure]:
    """Bursts: white seen against sound heard."""
    loop = asyncio.get_running_loop()
    async with presented(stack, engine="pattern") as (presenter, viewer, started):
        await asyncio.sleep(2)
        burst = (16_000 * np.sin(2 * np.pi * 440 * np.arange(RATE // 5) / RATE)).astype(np.int16)
        begun = loop.time()
        await presenter.say(np.tile(np.concatenate([burst, np.zeros(RATE * 4 // 5, np.int16)]), seconds))
        await asyncio.sleep(1)
        heard = Viewer(
            sound=next(s for sid, s in viewer.strands.items() if viewer.owners[sid] == started["avatar_identity"])
        )
        skews = [1000 * (white - sound) for sound, white in pairs(heard.onsets(begun), viewer.whites(begun), 0.4)]
    return [
        Figure(
            "microphone: A/V skew at the viewer, |median|",
            abs(float(np.median(skews))),
            "ms",
            20,
            note=f"{np.median(skews):+.0f} (lips after the voice are positive), of {len(skews)} bursts",
        ),
        Figure("microphone: A/V skew at the viewer, p95", percentile(np.abs(skews).tolist(), 95), "ms", 40),
    ]


async def microphone(seconds: int) -> list[Figure]:
    """Both engines that a CPU runs."""
    async with demo() as stack:
        found = [figure for engine in ("pattern", "warp") for figure in await _measured(stack, engine, seconds)]
        return [*found, *await _in_step(stack, seconds)]

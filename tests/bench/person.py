"""A synthetic person in a room: speaks our own voice into a real track with a microphone's noise, and listens to the avatar."""

from __future__ import annotations

import asyncio
import itertools
import time
from bisect import bisect_left
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from livekit import rtc
from livekit.rtc._proto.room_pb2 import AudioEncoding

from orchestrator.tts.voices import Voices
from tests.bench.session_events import SessionEvents
from tests.bench.stack import Demo
from tests.viewer import Viewer
from tests.waiting import NEVER_S, until

RATE = 24_000
_BLOCK_MS, _AHEAD_MS = 60, 120
"""Sound is handed over in such pieces, and is so far ahead at most. In pieces of 10 ms ten persons took half a core of the machine
that they measure."""
_BITRATE = 72_000
"""From here on Opus encodes noise as music, with half of the processor time of speech."""
_BLOCK = RATE * _BLOCK_MS // 1000
NOISE = 10.0
"""Standard deviation of the microphone's noise, of 32768: no microphone is digitally silent."""
LOUD = 700
"""Of 32768: the avatar's voice is louder, and what the codec makes of silence is not."""
QUIET_S = 1.0


async def speech(texts: list[str], voice: str) -> list[np.ndarray]:
    """Each text as int16 at `RATE`, without the silence before and after it."""
    voices, made = Voices(), []
    await voices.open()
    try:
        for text in texts:
            chunks = [chunk async for chunk in voices.speak(text, voice)]
            pcm = np.frombuffer(b"".join(chunk.pcm for chunk in chunks), "<i2").astype(float)
            at = np.arange(0, len(pcm), chunks[0].sample_rate / RATE)
            pcm = np.interp(at, np.arange(len(pcm)), pcm).astype(np.int16)
            loud = np.flatnonzero(np.abs(pcm.astype(int)) > 300)
            made.append(pcm[loud[0] : loud[-1] + 1])
    finally:
        await voices.aclose()
    return made


@dataclass
class Person:
    """Joined, with an open microphone."""

    demo: Demo
    started: dict[str, Any]
    viewer: Viewer
    source: rtc.AudioSource
    events: SessionEvents
    marks: dict[str, list[float]] = field(default_factory=dict)
    """Of each turn: seconds from the end of the question to an event."""
    turns: list[tuple[float, float]] = field(default_factory=list)
    """Of each turn with an answer: end of the question, first sound of the answer (monotonic)."""
    _loud: dict[str, tuple[int, list[float]]] = field(default_factory=dict)
    """Of each track: blocks looked at, and when a loud one came."""
    _saying: list[np.ndarray] = field(default_factory=list)
    _said_at: float = 0.0

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The session's events of one type."""
        return self.events.of(kind)

    async def say(self, pcm: np.ndarray) -> float:
        """Speaks, and returns the moment at which the last sample leaves the microphone (monotonic)."""
        self._saying.append(pcm)
        await until(lambda: not self._saying)
        return self._said_at

    def loud(self, since: float) -> list[float]:
        """When loud audio of the avatar came, to the sample: the first of each block."""
        found: list[float] = []
        for sid, strand in list(self.viewer.strands.items()):
            if self.viewer.owners.get(sid) != self.started["avatar_identity"]:
                continue
            seen, times = self._loud.get(
                sid, (0, [])
            )  # ten persons ask a hundred times a second: each block is looked at once
            for at, block in strand[seen:]:
                above = np.flatnonzero(np.abs(block.astype(int)) > LOUD)
                if len(above):
                    times.append(at - (len(block) - int(above[0])) / 16_000)
            self._loud[sid] = len(strand), times
            found += times[bisect_left(times, since) :]
        return sorted(found)

    @property
    def answering(self) -> bool:
        """The avatar has more to say, or thinks about it: it may be silent within an answer, between two sentences."""
        states = self.of("conversation.state")
        return bool(states) and states[-1]["state"] != "listening"

    async def quiet(self) -> None:
        """Returns when the avatar has no more to say, and has said nothing for a second."""
        await until(lambda: not self.answering and not self.loud(time.monotonic() - QUIET_S))

    async def turn(self, pcm: np.ndarray) -> float | None:
        """Says it, waits for the answer, and returns the seconds in between; None when it began before the end, or none came: what
        happened then is printed.
        """
        await self.quiet()
        begun = time.monotonic()
        ended = await self.say(pcm)
        try:
            await until(lambda: self.loud(begun + 0.2), within_s=20.0)
        except AssertionError:
            self._tell(begun, ended, "no answer")
            return None
        sounded = self.loud(begun + 0.2)[0]
        wait_s = sounded - ended
        for kind in ("user.transcript", "reply.started"):
            first = next((event["at"] for event in self.of(kind) if event["at"] > ended), None)
            if first is not None:
                self.marks.setdefault(kind, []).append(first - ended)
        if wait_s <= 0:
            self._tell(begun, ended, "the answer came before the question's end")
            return None
        self.turns.append((ended, sounded))
        return wait_s

    def holes(self) -> list[float]:
        """Of each answer that is over, seconds: the longest silence within it."""
        found = []
        for started, finished in zip(self.of("reply.started"), self.of("reply.finished"), strict=False):
            heard = [at for at in self.loud(started["at"] - 0.5) if at < finished["at"] + 0.5]
            found.append(float(max(np.diff(heard), default=0.0)))
        return found

    def _tell(self, begun: float, ended: float, what: str) -> None:
        sounds = [round(at - ended, 2) for at in self.loud(begun)[:5]]
        what = (
            f"{what}: seconds from the question's end, it began at {begun - ended:.2f}, sound of the avatar at {sounds}"
        )
        self.events.report(what, begun - 3.0, ended)

    async def microphone(self) -> None:
        """Noise, and speech where there is some, in real time; never returns."""
        noise = np.clip(np.random.default_rng(1).normal(0, NOISE, (83, _BLOCK)), -100, 100)  # of 5 s, again and again
        rest = np.zeros(0, np.int16)
        leaves_at = 0.0  # the last sample that was handed over
        for number in itertools.count():
            if not len(rest) and self._saying:
                rest = self._saying[0]
            block = noise[number % len(noise)].copy()
            part, rest = rest[:_BLOCK], rest[_BLOCK:]
            block[: len(part)] += part
            begins_at = max(leaves_at, time.monotonic())
            await self.source.capture_frame(rtc.AudioFrame(block.astype("<i2").tobytes(), RATE, 1, _BLOCK))
            leaves_at = begins_at + _BLOCK / RATE
            if len(part) and not len(rest):
                self._said_at = begins_at + len(part) / RATE
                self._saying.pop(0)


@asynccontextmanager
async def person(demo: Demo, *, watches: bool = True, **body: Any) -> AsyncIterator[Person]:
    """Starts a session with a conversation and joins its room with a microphone; its worker hears it once this is entered.

    One that does not watch takes the avatar's audio alone: ten decoders would take the machine from what is measured.
    """
    async with AsyncExitStack() as exits:
        answer = await demo.http.post("/session/start", json=body, timeout=httpx.Timeout(NEVER_S))
        assert answer.is_success, answer.text
        started = answer.json()
        exits.push_async_callback(demo.http.post, f"/session/{started['session_id']}/stop")
        viewer = await Viewer(watches=watches, block_ms=None if watches else _BLOCK_MS).join(
            started["livekit_url"], started["viewer_token"]
        )
        exits.push_async_callback(viewer.leave)
        source = rtc.AudioSource(RATE, 1, queue_size_ms=_AHEAD_MS)
        track = rtc.LocalAudioTrack.create_audio_track("microphone", source)
        options = rtc.TrackPublishOptions(
            source=rtc.TrackSource.SOURCE_MICROPHONE, audio_encoding=AudioEncoding(max_bitrate=_BITRATE)
        )
        await viewer.room.local_participant.publish_track(track, options)
        made = Person(demo, started, viewer, source, SessionEvents(demo.http, started["session_id"]))
        for work in (made.microphone(), made.events.follow()):
            task = asyncio.create_task(work)
            exits.push_async_callback(ended, task)
        await until(lambda: _heard(demo, started["session_id"]))
        yield made


async def _heard(demo: Demo, session_id: str) -> bool:
    sessions = (await demo.http.get("/debug/audio")).json()["sessions"]
    found = next(each["conversation"] for each in sessions if each["session_id"] == session_id)
    return found is not None and found["microphone"] == "heard" and found["state"] == "listening"


async def ended(task: asyncio.Task[None]) -> None:
    """Cancels it, and returns when it is over."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

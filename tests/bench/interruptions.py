"""`python -m tests.bench.interruptions`: a person, a cough, keys, "mhm" and the own echo while the avatar speaks.

A real worker in a real room; the microphone's sounds are made, its speech is espeak-ng's, the avatar's is piper's.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from livekit import rtc

from musetalk_agent.resample import Resampler
from orchestrator.tts.voices import Voices
from tests.bench.figures import Figure
from tests.bench.person import ended
from tests.bench.session_events import SessionEvents
from tests.bench.stack import Demo, demo, environment
from tests.fakes.openai_models import KEY, FakeModels
from tests.fakes.serving import plain_config, serving
from tests.viewer import RATE, Viewer
from tests.waiting import NEVER_S, until

Sound = npt.NDArray[np.int16]
BLOCK = RATE // 100
SILENT_RMS = 60.0
"""Of a block of 10 ms at the viewer."""
SILENCE_S = 0.25
"""The avatar's voice has stopped when nothing came for so long; pauses between its words are shorter."""
LEAST_S = 0.1
"""A voice that is silent sooner after the onset was so by itself: the sound has not been through the room and back."""
PERSON = (
    "Stop please, I have another question.",
    "Wait a moment, that is not what I meant.",
    "Can you tell me something else instead?",
    "Hold on, I do not understand this at all.",
    "My name is Peter and I would like to know more.",
)
STORY = (
    "The harbour was quiet that morning and the boats lay still in the grey light while an old man walked along the pier with a "
    "small dog and told me that the weather would change before noon and that the fishing had been poor all week and then he "
    "laughed and pointed at the lighthouse and asked whether I had ever climbed its two hundred steps to see the islands far "
    "out in the bay where the seals rest on the rocks when the tide is low and the wind comes from the west. "
)


@dataclass
class Microphone:
    """Sends 10 ms after 10 ms: a quiet room, what is said into it, and with `echo` what the viewer's loudspeaker plays."""

    source: rtc.AudioSource
    here: Room
    echo_db: float | None = None
    echo_delay_s: float = 0.15
    waiting: list[Sound] = field(default_factory=list)
    onset_at: float | None = None
    _noise: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))

    async def run(self) -> None:
        """Until cancelled."""
        response = _room(3)
        tail = np.zeros(len(response) - 1)
        saying, at = np.zeros(0, np.int16), 0
        begun, blocks = time.monotonic(), 0
        while True:
            if at >= len(saying) and self.waiting:
                saying, at, self.onset_at = self.waiting.pop(0), 0, None
            block = self._noise.normal(0, 10, BLOCK)
            piece = saying[at : at + BLOCK].astype(np.float64)
            block[: len(piece)] += piece
            if self.onset_at is None and len(piece) and np.sqrt(np.mean(piece**2)) > 300:
                self.onset_at = time.monotonic()
            at += BLOCK
            if self.echo_db is not None:
                played = self._played(BLOCK)
                wet = np.convolve(np.concatenate([tail, played]), response, "valid")
                tail = np.concatenate([tail, played])[-len(tail) :]
                block += wet * 10 ** (self.echo_db / 20)
            await self.source.capture_frame(
                rtc.AudioFrame(block.clip(-32768, 32767).astype(np.int16).tobytes(), RATE, 1, BLOCK)
            )
            blocks += 1
            await asyncio.sleep(max(0.0, begun + blocks * 0.01 - time.monotonic()))

    def _played(self, samples: int) -> npt.NDArray[np.float64]:
        """What came to the viewer `echo_delay_s` ago."""
        until_s = time.monotonic() - self.echo_delay_s
        wanted = round(until_s * RATE)
        out = np.zeros(samples)
        for came_at, block in avatar_sound(self.here)[-60:]:
            end = round(came_at * RATE)
            numbers = np.arange(end - len(block), end) - (wanted - samples)
            inside = (numbers >= 0) & (numbers < samples)
            out[numbers[inside]] = block[inside]
        return out


def _room(seed: int) -> npt.NDArray[np.float64]:
    """A loudspeaker and 0.3 s of reverberation, of unit energy."""
    draw, t = np.random.default_rng(seed), np.arange(round(0.3 * RATE)) / RATE
    response = 0.2 * draw.normal(0, 1, len(t)) * 10 ** (-3 * t / 0.3)
    response[0] = 1.0
    return np.asarray(response / np.sqrt(np.sum(response**2)))


def cough(seed: int) -> Sound:
    """One to three bursts of noise through a throat, each with a little voice at its end."""
    draw = np.random.default_rng(seed)
    parts = []
    for _ in range(1 + seed % 3):
        length = round(draw.uniform(0.2, 0.35) * RATE)
        t, spectrum = np.arange(length) / RATE, np.fft.rfft(draw.normal(0, 1, length))
        frequencies = np.fft.rfftfreq(length, 1 / RATE)
        throat = sum(
            gain / (1 + ((frequencies - centre) / width) ** 2)
            for gain, centre, width in ((1, 500, 250), (0.8, 1300, 300), (0.5, 2600, 600), (0.2, 4500, 1500))
        )
        noise = np.fft.irfft(spectrum * throat, length)
        late = np.exp(-(((t - 0.15) / 0.06) ** 2))
        burst = 6000 * noise / noise.std() * (np.exp(-t / 0.035) + 0.25 * late)
        parts += [
            burst + 1500 * late * np.sign(np.sin(2 * np.pi * 140 * t)),
            np.zeros(round(draw.uniform(0.1, 0.3) * RATE)),
        ]
    return np.concatenate(parts).clip(-32000, 32000).astype(np.int16)


def keys(seed: int) -> Sound:
    """Eight keys in a second: clicks of 5 ms."""
    draw = np.random.default_rng(seed)
    out = np.zeros(RATE)
    for at in range(8):
        begin = at * RATE // 8 + int(draw.integers(0, 800))
        out[begin : begin + 80] += draw.normal(0, 5000, 80) * np.hanning(80)
    return out.clip(-32000, 32000).astype(np.int16)


async def said(voices: Voices, text: str, voice: str) -> Sound:
    """A text as 16 kHz, without the silence before and after it."""
    chunks = [chunk async for chunk in voices.speak(text, voice)]
    resampler = Resampler(chunks[0].sample_rate, RATE)
    parts = [resampler.push(np.frombuffer(chunk.pcm, np.int16)) for chunk in chunks]
    sound = np.concatenate([*parts, resampler.flush()])
    loud = np.flatnonzero(np.abs(sound) > 300)
    return np.asarray(sound[loud[0] : loud[-1]], np.int16)


@dataclass
class Room:
    """A conversation in the demo, which runs in processes of its own, and one who is in its room."""

    stack: Demo
    started: dict[str, Any]
    viewer: Viewer
    events: SessionEvents

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The session's events of one type."""
        return self.events.of(kind)

    async def chat(self, text: str) -> None:
        """Says it in writing."""
        answer = await self.stack.http.post(f"/session/{self.started['session_id']}/chat", json={"text": text})
        answer.raise_for_status()


@asynccontextmanager
async def listening_room(models: FakeModels) -> AsyncIterator[tuple[Room, Microphone]]:
    """A conversation, and a viewer with a microphone in its room. The voice is the demo's own."""
    async with AsyncExitStack() as exits:
        url = await exits.enter_async_context(serving(plain_config(models.app))) + "/v1"
        exits.enter_context(
            environment(LLM_BASE_URL=url, LLM_API_KEY=KEY, LLM_MODEL="stand-in", STT_BASE_URL=url, STT_API_KEY=KEY)
        )
        stack = await exits.enter_async_context(demo("--engine", "pattern"))
        body = {"room": "interruptions", "avatar_id": "demo", "conversation": {"instructions": "Be brief."}}
        answer = await stack.http.post("/session/start", json=body, timeout=NEVER_S)
        assert answer.is_success, answer.text
        started = answer.json()
        viewer = await Viewer(watches=False).join(started["livekit_url"], started["viewer_token"])
        exits.push_async_callback(viewer.leave)
        source = rtc.AudioSource(RATE, 1, queue_size_ms=20)
        track = rtc.LocalAudioTrack.create_audio_track("microphone", source)
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
        await viewer.room.local_participant.publish_track(track, options)
        here = Room(stack, started, viewer, SessionEvents(stack.http, started["session_id"]))
        microphone = Microphone(source, here)
        for work in (microphone.run(), here.events.follow()):
            exits.push_async_callback(ended, asyncio.create_task(work))
        yield here, microphone


def avatar_sound(here: Room) -> list[tuple[float, Sound]]:
    """What the viewer got of the avatar: when each block came."""
    viewer, avatar = here.viewer, here.started["avatar_identity"]
    return next((strand for sid, strand in viewer.strands.items() if viewer.owners.get(sid) == avatar), [])


def silent_since(here: Room) -> float | None:
    """When the avatar's voice was last heard, if it is silent now; None while it speaks."""
    now = time.monotonic()
    for came_at, block in reversed(avatar_sound(here)):
        if np.sqrt(np.mean(block.astype(np.float64) ** 2)) > SILENT_RMS:
            return came_at if now - came_at > SILENCE_S else None
    return 0.0


async def spoken_to(here: Room, text: str, seconds: float) -> None:
    """A text makes the avatar speak; returns when it has done so for this long."""
    count = len(here.of("reply.started"))
    await here.chat(text)
    await until(lambda: len(here.of("reply.started")) > count)
    await until(lambda: silent_since(here) is None)
    await asyncio.sleep(seconds)


async def persons(count: int, sounds: list[Sound]) -> list[float]:
    """Seconds from the onset of each person's speech until the avatar's voice is silent at the viewer."""
    models = FakeModels(replies=[3 * STORY], transcripts=["Stop please."])
    waits = []
    async with listening_room(models) as (here, microphone):
        while len(waits) < count:
            number = len(waits)
            await spoken_to(here, f"Tell story {number}.", 1.5 + 0.13 * (number % 7))
            microphone.onset_at = None
            microphone.waiting.append(sounds[number % len(sounds)])
            await until(lambda: microphone.onset_at is not None)
            begun = microphone.onset_at
            assert begun is not None
            last = await until(lambda begun=begun: silent_since(here) if time.monotonic() - begun > 0.2 else None)
            if last < begun + LEAST_S:
                print("a person began in a pause of the avatar: once more", file=sys.stderr, flush=True)
                continue
            waits.append(last - begun)
            print(f"person {number}: {1000 * waits[-1]:.0f} ms", file=sys.stderr, flush=True)
    return waits


async def others(sounds: list[Sound], heard: str, echo_db: float | None) -> tuple[int, list[float]]:
    """Sounds that are no turn: how many replies they broke, and how long each held the voice, in seconds."""
    models = FakeModels(replies=[8 * STORY], transcripts=[heard])
    broken, holds = 0, []
    async with listening_room(models) as (here, microphone):
        microphone.echo_db = echo_db
        await spoken_to(here, "Tell a story.", 2.0)
        broken += len(here.of("reply.finished"))  # in its first seconds
        for sound in sounds:
            finished = len(here.of("reply.finished"))
            microphone.waiting.append(sound)
            begun, loud = time.monotonic(), time.monotonic()
            longest = 0.0
            while time.monotonic() - begun < len(sound) / RATE + 2.5:
                await asyncio.sleep(0.02)
                since = silent_since(here)
                if since is None:
                    loud = time.monotonic()
                longest = max(longest, time.monotonic() - loud)
            holds.append(longest)
            if len(here.of("reply.finished")) > finished:
                broken += 1
                here.events.report(f"a reply is over, by sound {len(holds) - 1}", begun - 0.5, begun)
                await spoken_to(here, "Tell another story.", 1.0)
    return broken, holds


async def measure(count: int, only: str) -> list[Figure]:
    """All of it, or one part."""
    voices, figures = Voices(), []
    await voices.open()
    speech = [await said(voices, text, "espeak:en-us") for text in PERSON]
    hums = [await said(voices, text, voice) for text in ("Mhm.", "Mm-hmm.") for voice in ("piper:joe", "espeak:en-us")]
    await voices.aclose()
    if only in ("", "person"):
        waits = 1000 * np.array(await persons(count, speech))
        figures.append(Figure("interruption_median_ms", float(np.median(waits)), "ms"))
        figures.append(Figure("interruption_p95_ms", float(np.percentile(waits, 95)), "ms", 500.0))
    parts: dict[str, tuple[list[Sound], str, float | None]] = {
        "cough": ([cough(n) if n % 2 else keys(n) for n in range(count)], "", None),
        "mhm": ([hums[n % len(hums)] for n in range(count)], "Mhm.", None),
        "echo": ([np.zeros(RATE, np.int16)] * count, "The harbour was quiet.", -12.0),
    }
    for name, (sounds, heard, echo_db) in parts.items():
        if only in ("", name):
            broken, holds = await others(sounds, heard, echo_db)
            print(name, "holds:", [round(hold, 2) for hold in holds], file=sys.stderr)
            figures.append(Figure(f"false_interruptions_{name}", float(broken), "replies", 0.0))
            figures.append(Figure(f"held_by_{name}_median_s", float(np.median(holds)), "s"))
    return figures


def main() -> int:
    """Prints one JSON line a figure."""
    parser = argparse.ArgumentParser(prog="bench.interruptions", description=__doc__)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--only", choices=("person", "cough", "mhm", "echo"), default="")
    options = parser.parse_args()
    for figure in asyncio.run(measure(options.count, options.only)):
        print(figure.line(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

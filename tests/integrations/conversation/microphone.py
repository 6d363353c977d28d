"""A person in a conversation's room, with a microphone that is muted, closed and opened again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from livekit import rtc

from musetalk_agent.publishers.livekit.detached_connect import leave
from orchestrator.tts.worker.espeak import EspeakEngine
from orchestrator.tts.worker.synthesis import PLAIN
from tests.integrations.conversation.test_talk import Talk
from tests.waiting import until

RATE = 22_050
_STEP = RATE // 100
Sound = npt.NDArray[np.int16]


@cache
def spoken(text: str) -> Sound:
    """The text in a voice of espeak-ng. No worker is started for it: that takes two CPU seconds."""
    said = EspeakEngine().speak(text, "en-us", PLAIN)
    assert said.sample_rate == RATE
    return said.pcm


class Microphone:
    """A participant whose open microphone has a little noise, and what is said into it."""

    def __init__(self, here: Talk, room: rtc.Room) -> None:
        self.here, self.room = here, room
        self.track: rtc.LocalAudioTrack | None = None
        self._publication: rtc.LocalTrackPublication | None = None
        self._playing: asyncio.Task[None] | None = None
        self._saying: list[Sound] = []

    @property
    def identity(self) -> str:
        return self.room.local_participant.identity

    async def open(self) -> None:
        """Publishes it. Returns when the worker hears a microphone: what is said before is lost."""
        source = rtc.AudioSource(RATE, 1, queue_size_ms=40)
        self.track = rtc.LocalAudioTrack.create_audio_track("microphone", source)
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
        self._publication = await self.room.local_participant.publish_track(self.track, options)
        self._playing = asyncio.create_task(self._play(source))
        await until(self._heard)

    async def is_listened_to(self) -> bool:
        """Whether what is said into it is heard."""
        return bool((await self._conversation()).get("listening_to") == self.identity)

    async def _heard(self) -> bool:
        return bool((await self._conversation()).get("microphone") == "heard")

    async def _conversation(self) -> dict[str, Any]:
        (session,) = (await self.here.running.stage.http.get("/debug/audio")).json()["sessions"]
        found: dict[str, Any] | None = session["conversation"]
        return found or {}  # it begins a moment after the session

    async def close(self) -> None:
        """Unpublishes it; what has not been said yet is not said."""
        if self._publication is not None:
            await self.room.local_participant.unpublish_track(self._publication.sid)
        await self.aclose()

    async def aclose(self) -> None:
        playing, self._playing = self._playing, None
        self._saying.clear()
        if playing is not None:
            playing.cancel()
            await asyncio.gather(playing, return_exceptions=True)

    async def say(self, text: str) -> None:
        """Returns when all of it has been said."""
        self.begin(spoken(text))
        await until(lambda: not self._saying)

    def begin(self, sound: Sound) -> None:
        """Says it, after what is being said."""
        self._saying.append(sound)

    async def _play(self, source: rtc.AudioSource) -> None:
        noise, rest = np.random.default_rng(1), np.zeros(0, np.int16)
        try:
            while True:
                if not len(rest) and self._saying:
                    rest = self._saying[0]
                block = np.clip(noise.normal(0, 10, _STEP), -100, 100)
                part, rest = rest[:_STEP], rest[_STEP:]
                block[: len(part)] += part
                await source.capture_frame(
                    rtc.AudioFrame(np.clip(block, -32768, 32767).astype("<i2").tobytes(), RATE, 1, _STEP)
                )
                if len(part) and not len(rest):
                    self._saying.pop(0)
        finally:
            await source.aclose()


@asynccontextmanager
async def person(here: Talk, identity: str | None = None) -> AsyncIterator[Microphone]:
    """In the room, without a microphone yet; has left afterwards. It is the viewer of the session's answer, or `identity`."""
    token = here.started["viewer_token"]
    if identity is not None:
        answer = await here.running.stage.http.post(
            "/token", json={"room": here.started["room"], "identity": identity, "publish": ["microphone"]}
        )
        assert answer.is_success, answer.text
        token = answer.json()["token"]
    async with AsyncExitStack() as exits:
        room = rtc.Room()
        exits.push_async_callback(leave, room)
        await room.connect(here.started["livekit_url"], token)
        made = Microphone(here, room)
        exits.push_async_callback(made.aclose)
        yield made

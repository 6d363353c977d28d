"""A real conversation worker on livekit-agents, in a real room with a real agent; the models are stand-ins."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from livekit import rtc

from musetalk_agent.protocol.messages import CaptionWord
from musetalk_agent.publishers.livekit.detached_connect import leave
from musetalk_tools.livekit_server import LiveKitAccess
from orchestrator.conversation.conversations import find_python
from orchestrator.tts.synthesizer import SpeechChunk, SpeechOptions, Synthesizer, VoiceInfo
from orchestrator.tts.voices import Voices
from tests.fakes.openai_models import KEY, FakeModels
from tests.fakes.serving import plain_config, serving
from tests.fakes.stage import Stage
from tests.integrations.conversation import lasting_agent, warm_python
from tests.integrations.conversation.room_lines import follow_captions
from tests.orchestrator.voice.stack import Stack, stack
from tests.viewer import RATE
from tests.waiting import until

pytestmark = [
    pytest.mark.livekit,
    pytest.mark.skipif(
        find_python() is None, reason="no environment for conversations: run `tools/setup conversation`"
    ),
]
LONG = " ".join(f"word{n}" for n in range(60)) + "."


class SineVoice:
    """A synthesizer: 200 ms of 440 Hz a word."""

    async def open(self) -> None: ...

    async def aclose(self) -> None: ...

    def names(self) -> list[VoiceInfo]:
        return [VoiceInfo("sine:one", "en", "sine", RATE)]

    async def speak(self, text: str, voice: str, options: SpeechOptions) -> AsyncGenerator[SpeechChunk, None]:
        samples = RATE // 5
        for n, word in enumerate(text.split()):
            t = np.arange(n * samples, (n + 1) * samples) / RATE
            pcm = (6000 * np.sin(2 * np.pi * 440 * t)).astype("<i2").tobytes()
            yield SpeechChunk(pcm, RATE, (), (CaptionWord(text=word + " ", start=n * samples, end=(n + 1) * samples),))
            await asyncio.sleep(0)


@dataclass
class Talk:
    """A conversation, its models, and the session's events so far."""

    running: Stack
    models: FakeModels
    started: dict[str, Any]
    events: list[dict[str, Any]] = field(default_factory=list)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]

    async def chat(self, text: str) -> str:
        address = f"/session/{self.started['session_id']}/chat"
        answer = await self.running.stage.http.post(address, json={"text": text})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["message_id"])

    async def messages(self) -> list[tuple[str, str, bool]]:
        address = f"/session/{self.started['session_id']}/messages"
        listed = (await self.running.stage.http.get(address)).json()["messages"]
        return [(each["role"], each["text"].strip(), each["interrupted"]) for each in listed]

    async def follow(self) -> None:
        address = f"/session/{self.started['session_id']}/events"
        async with self.running.stage.http.stream("GET", address, timeout=None) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data:"):
                    self.events.append(json.loads(line[5:]))


@asynccontextmanager
async def talk(
    access: LiveKitAccess,
    models: FakeModels,
    *,
    speaks: Synthesizer | None = None,
    webhook_secret: str | None = None,
    settings: dict[str, Any] | None = None,
    prepare: Callable[[Stage], Awaitable[dict[str, Any]]] | None = None,
    **conversation: Any,
) -> AsyncIterator[Talk]:
    """`prepare` is called before the session is started, and returns further fields of its start."""
    speaker = speaks or SineVoice()
    known = speaker.names()
    named = known[0].name if known else "piper:joe"  # the embedded voices are known once they are open
    async with AsyncExitStack() as exits:
        url = await exits.enter_async_context(serving(plain_config(models.app)))
        running = await exits.enter_async_context(
            stack(
                access,
                agents=0,
                lasting=lasting_agent.address(),
                watches=False,
                **{
                    "voice_standby": "off",
                    "conversation_python": warm_python.path(),
                    "voices": Voices(named, synthesizers=[speaker]),
                    "llm_base_url": url + "/v1",
                    "llm_api_key": KEY,
                    "stt_base_url": url + "/v1",
                    "allow_private_urls": True,
                    **(settings or {}),
                },
            )
        )
        given = {"instructions": "Be brief.", **conversation}
        small = {"width": 128, "height": 128}  # nobody looks
        more = await prepare(running.stage) if prepare is not None else {}
        started = await running.stage.start(conversation=given, webhook_secret=webhook_secret, **small, **more)
        made = Talk(running, models, started)
        following = asyncio.create_task(made.follow())
        try:
            yield made
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


async def ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.network
async def test_it_greets_answers_a_text_and_remembers(livekit_server: LiveKitAccess) -> None:
    models = FakeModels(replies=["My name is Ada.", "You said hello."])
    async with talk(livekit_server, models, greeting="Good morning.") as here:
        private: list[str] = []
        here.running.ears.room.register_byte_stream_handler("lk.agent.session", lambda reader, who: private.append(who))
        await until(lambda: [event["text"] for event in here.of("reply.finished")] == ["Good morning."])
        message_id = await here.chat("Hello. What is your name?")
        await until(lambda: len(here.of("reply.finished")) == 2)
        assert models.asked[0][0] == ("system", "Be brief.") and models.asked[0][-1][1] == "Hello. What is your name?"
        (said,) = here.of("user.transcript")
        assert (said["text"], said["final"], said["message_id"]) == ("Hello. What is your name?", True, message_id)
        assert here.of("reply.finished")[1]["text"].strip() == "My name is Ada."
        await here.chat("What did I say?")
        await until(lambda: len(here.of("reply.finished")) == 3)
        assert ("assistant", "My name is Ada.") in [(role, text.strip()) for role, text in models.asked[1]]
        assert await here.messages() == [
            ("assistant", "Good morning.", False),
            ("user", "Hello. What is your name?", False),
            ("assistant", "My name is Ada.", False),
            ("user", "What did I say?", False),
            ("assistant", "You said hello.", False),
        ]
        assert len(here.running.ears.heard(0.0)) > 100, "the answers were heard in the room"
        assert private == [], (
            "livekit-agents' remote control gives the room the instructions, and takes texts without a limit"
        )


@pytest.mark.network
async def test_a_text_interrupts_and_the_history_has_no_more_than_was_said(livekit_server: LiveKitAccess) -> None:
    models = FakeModels(replies=[LONG, "Very well."])
    async with talk(livekit_server, models) as here:
        await here.chat("Tell me a long story.")
        await until(lambda: here.of("reply.started"))
        heard = len(here.running.ears.heard(0.0))
        await until(lambda: len(here.running.ears.heard(0.0)) > heard + 100)
        await here.chat("Stop.")
        await until(lambda: len(here.of("reply.finished")) == 2)
        first, second = here.of("reply.finished")
        assert first["interrupted"] and LONG.startswith(first["text"].strip() + " ")
        assert not second["interrupted"] and second["text"].strip() == "Very well."
        assert [(role, cut) for role, _, cut in await here.messages()] == [
            ("user", False),
            ("assistant", True),
            ("user", False),
            ("assistant", False),
        ]
        known = [text.strip() for role, text in models.asked[1] if role == "assistant"]
        assert known == [first["text"].strip()], "the model knows the same"


@pytest.mark.network
async def test_a_killed_worker_comes_back_and_remembers(livekit_server: LiveKitAccess) -> None:
    models = FakeModels(replies=["My name is Ada.", "It is Ada."])
    async with talk(livekit_server, models) as here:
        await here.chat("What is your name?")
        await until(lambda: here.of("reply.finished"))
        os.kill(here.running.stage.app.state.context.conversations.worker.pid, signal.SIGKILL)
        await here.chat("And again?")
        await until(lambda: len(here.of("reply.finished")) == 2)
        assert [text.strip() for _, text in models.asked[1]][1:] == [
            "What is your name?",
            "My name is Ada.",
            "And again?",
        ]
        session = (await here.running.stage.http.get(f"/session/{here.started['session_id']}")).json()
        assert session["state"] in ("ready", "speaking") and session["moves"] == 0


async def test_a_worker_killed_in_mid_sentence_leaves_what_the_avatar_had_and_the_avatar_goes_on(
    livekit_server: LiveKitAccess,
) -> None:
    models = FakeModels(replies=[LONG, "Very well."])
    async with talk(livekit_server, models) as here:
        await here.chat("Tell me a long story.")
        await until(lambda: here.of("reply.started"))
        heard = len(here.running.ears.heard(0.0))
        await until(lambda: len(here.running.ears.heard(0.0)) > heard + 50)
        os.kill(here.running.stage.app.state.context.conversations.worker.pid, signal.SIGKILL)
        await until(lambda: here.of("reply.finished"))
        (broken,) = here.of("reply.finished")
        assert broken["interrupted"] and LONG.startswith(broken["text"]) and broken["text"]
        await here.chat("Are you there?")
        await until(lambda: len(here.of("reply.finished")) == 2)
        assert await here.messages() == [
            ("user", "Tell me a long story.", False),
            ("assistant", broken["text"], True),
            ("user", "Are you there?", False),
            ("assistant", "Very well.", False),
        ]
        session = (await here.running.stage.http.get(f"/session/{here.started['session_id']}")).json()
        assert session["state"] in ("ready", "speaking") and session["moves"] == 0


@pytest.mark.network
@pytest.mark.voice
async def test_a_microphone_is_heard_and_interrupts(livekit_server: LiveKitAccess) -> None:
    models = FakeModels(replies=[LONG, "Very well."], transcripts=["Tell me a story.", "Please stop now."])
    voices = Voices()
    await voices.open()
    chunks = [chunk async for chunk in voices.speak("Tell me a very long story please.", "espeak:en-us")]
    await voices.aclose()
    spoken, rate = b"".join(chunk.pcm for chunk in chunks), chunks[0].sample_rate
    async with AsyncExitStack() as exits:
        here = await exits.enter_async_context(talk(livekit_server, models))
        lines: list[tuple[str, dict[str, str], str]] = []
        follow_captions(here.running.ears.room, lines)
        room = rtc.Room()
        exits.push_async_callback(leave, room)
        await room.connect(here.started["livekit_url"], here.started["viewer_token"])
        source = rtc.AudioSource(rate, 1, queue_size_ms=40)
        track = rtc.LocalAudioTrack.create_audio_track("microphone", source)
        options = rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
        await room.local_participant.publish_track(track, options)

        async def say(pcm: bytes) -> None:
            step = 2 * (rate // 100)
            for at in range(0, len(pcm) - step + 1, step):
                await source.capture_frame(rtc.AudioFrame(pcm[at : at + step], rate, 1, rate // 100))

        quiet = np.random.default_rng(1).normal(0, 10, 2 * rate).astype("<i2").tobytes()
        while not here.of("user.started"):  # what is said before the worker has the microphone's track is lost
            await say(quiet + spoken)
        talking = asyncio.create_task(say(50 * quiet))  # a microphone is never digitally silent
        exits.push_async_callback(ended, talking)
        await until(lambda: here.of("reply.started"))
        assert here.of("user.started") and here.of("user.transcript")[0]["text"] == "Tell me a story."
        assert models.heard_s[0] > 0.3, "and a recording of it was recognised"
        await ended(talking)
        talking = asyncio.create_task(
            say(spoken + 50 * quiet)
        )  # in the avatar's first second, when an echo is not known yet
        exits.push_async_callback(ended, talking)
        await until(lambda: here.of("reply.finished") and not here.of("reply.finished")[-1]["interrupted"])
        assert here.of("reply.finished")[0]["interrupted"]  # a busy machine may cut what is said in two
        await until(lambda: any(text for _, line, text in lines if line.get("lk.transcribed_track_id") == track.sid))
        users = [line for line in lines if line[1].get("lk.transcribed_track_id") == track.sid]
        assert {who for who, _, _ in users} == {room.local_participant.identity}, (
            "the user's words under the user's name"
        )
        assert users[0][2] == "Tell me a story."
        turn = here.of("turn")[-1]
        assert turn["heard_ms"] >= 0 and turn["thought_ms"] >= 0 and turn["spoke_ms"] >= 0

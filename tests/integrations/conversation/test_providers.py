"""A real conversation worker with models of other dialects and at other places."""

from __future__ import annotations

from contextlib import AsyncExitStack

import jwt
import numpy as np
import pytest
from livekit import rtc

from musetalk_agent.publishers.livekit.detached_connect import leave
from musetalk_tools.livekit_server import LiveKitAccess
from orchestrator.tts.elevenlabs import ElevenLabs, ElevenLabsOptions
from orchestrator.tts.voices import Voices
from tests.fakes.elevenlabs import KEY as ELEVENLABS_KEY
from tests.fakes.elevenlabs import FakeElevenLabs
from tests.fakes.hook_receiver import receiving
from tests.fakes.livekit_inference import FakeInference
from tests.fakes.openai_models import FakeModels
from tests.fakes.openai_realtime import RATE, FakeRealtime
from tests.fakes.serving import plain_config, serving
from tests.integrations.conversation.test_talk import LONG, pytestmark, talk
from tests.waiting import until

__all__ = ["pytestmark"]
SECRET = "secret-of-a-cloud-project-0123456789"


async def test_livekit_inference_serves_all_three_parts(livekit_server: LiveKitAccess) -> None:
    gateway = FakeInference(FakeModels(replies=["My name is Ada."], key=None))
    async with AsyncExitStack() as exits:
        url = await exits.enter_async_context(serving(plain_config(gateway.app)))
        settings = {
            "llm_model": "livekit:openai/gpt-4o-mini",
            "tts_model": "livekit:cartesia/sonic-3:a-voice",
            "livekit_inference_url": url + "/v1",
            "livekit_inference_api_key": "cloud-key",
            "livekit_inference_api_secret": SECRET,
        }
        stt = {"provider": "livekit", "model": "deepgram/nova-3"}
        here = await exits.enter_async_context(talk(livekit_server, gateway.models, settings=settings, stt=stt))
        names = {"llm": "openai/gpt-4o-mini", "stt": "deepgram/nova-3", "tts": "cartesia/sonic-3:a-voice"}
        assert here.started["conversation"] == names
        await here.chat("What is your name?")
        await until(lambda: here.of("reply.finished"))
        assert gateway.models.asked[0][-1] == ("user", "What is your name?")
        assert gateway.spoken == ["My name is Ada."] and len(here.running.ears.heard(0.0)) > 20
        assert gateway.opened["llm"]["model"] == "openai/gpt-4o-mini"
        assert (gateway.opened["tts"]["model"], gateway.opened["tts"]["voice"]) == ("cartesia/sonic-3", "a-voice")
        for part in ("llm", "tts"):
            claims = jwt.decode(gateway.tokens[part], SECRET, algorithms=["HS256"])
            assert claims["iss"] == "cloud-key" and claims["inference"] == {"perform": True}
        answer = await here.running.stage.http.get(f"/session/{here.started['session_id']}")
        assert SECRET not in answer.text


@pytest.mark.network
async def test_the_voice_of_elevenlabs_is_one_of_the_orchestrators(livekit_server: LiveKitAccess) -> None:
    models = FakeModels(replies=["My name is Ada."])
    async with AsyncExitStack() as exits:
        provider = FakeElevenLabs(tone=True)
        url = await exits.enter_async_context(provider.serving())
        options = ElevenLabsOptions(ELEVENLABS_KEY, ("ada",), base_url=url)
        voices = Voices("elevenlabs:ada", synthesizers=[ElevenLabs(options)])
        here = await exits.enter_async_context(
            talk(livekit_server, models, settings={"voices": voices}, voice="elevenlabs:ada")
        )
        assert here.started["conversation"]["tts"] == "elevenlabs:ada"
        await here.chat("What is your name?")
        await until(lambda: here.of("reply.finished"))
        assert here.of("reply.finished")[0]["text"].strip() == "My name is Ada."
        (call,) = provider.calls
        assert call.voice == "ada" and call.spoken.strip() == "My name is Ada."


async def test_speech_comes_from_any_server_of_openais_dialect(livekit_server: LiveKitAccess) -> None:
    models = FakeModels(replies=["My name is Ada."])
    async with AsyncExitStack() as exits:
        url = await exits.enter_async_context(serving(plain_config(models.app)))
        tts = {"base_url": url + "/v1", "model": "a-voice-model", "api_key": "a-key"}
        here = await exits.enter_async_context(talk(livekit_server, models, tts=tts, voice="nova"))
        assert here.started["conversation"]["tts"] == "a-voice-model"
        await here.chat("What is your name?")
        await until(lambda: here.of("reply.finished"))
        assert models.spoken == [("My name is Ada.", "nova", "a-voice-model", "pcm")]
        assert len(here.running.ears.heard(0.0)) > 20


@pytest.mark.network
async def test_a_realtime_model_hears_and_speaks_itself(livekit_server: LiveKitAccess) -> None:
    model = FakeRealtime(replies=["Good morning.", LONG, "My name is Ada."])
    async with AsyncExitStack() as exits:
        url = await exits.enter_async_context(serving(plain_config(model.app)))
        realtime = {"base_url": url + "/v1", "model": "gpt-realtime", "voice": "marin", "api_key": "a-key"}
        here = await exits.enter_async_context(
            talk(livekit_server, FakeModels(), realtime=realtime, greeting="Good morning.")
        )
        assert here.started["conversation"] == dict.fromkeys(("llm", "stt", "tts"), "gpt-realtime")
        await until(lambda: here.of("reply.finished"))
        assert here.of("reply.finished")[0]["text"].strip() == "Good morning."
        assert (model.keys[0], model.models[0]) == ("a-key", "gpt-realtime")
        session = model.of("session.update")[0]["session"]
        assert session["audio"]["output"]["voice"] == "marin"
        assert any("Be brief." in event["session"].get("instructions", "") for event in model.of("session.update"))
        await here.chat("Tell me a story.")
        await until(lambda: len(here.of("reply.started")) == 2)
        heard = len(here.running.ears.heard(0.0))
        await until(lambda: len(here.running.ears.heard(0.0)) > heard + 50)
        await here.chat("What is your name?")
        await until(lambda: len(here.of("reply.finished")) == 3)
        story, answer = here.of("reply.finished")[1:]
        assert story["interrupted"] and LONG.startswith(story["text"].strip())
        assert (answer["text"].strip(), answer["interrupted"]) == ("My name is Ada.", False)
        (cut,) = model.of("conversation.item.truncate")
        assert 0 < cut["audio_end_ms"] < 12_000
        said = [
            part["text"]
            for event in model.of("conversation.item.create")
            if event["item"].get("role") == "user"
            for part in event["item"]["content"]
        ]
        assert said == ["Tell me a story.", "What is your name?"]


async def test_a_realtime_model_hears_the_microphone_and_calls_functions(livekit_server: LiveKitAccess) -> None:
    model = FakeRealtime(replies=[[("order", {"number": "A17"})], "It is on its way."], transcript="Where is my order?")
    async with AsyncExitStack() as exits:
        desk = await exits.enter_async_context(receiving(None))
        desk.content = b"on its way"
        url = await exits.enter_async_context(serving(plain_config(model.app)))
        settings = {"realtime_base_url": url + "/v1", "realtime_api_key": "a-key"}
        tools = [{"name": "order", "url": f"http://127.0.0.1:{desk.port}/"}]
        schema = {"type": "object", "properties": {"number": {"type": "string"}}}
        here = await exits.enter_async_context(
            talk(
                livekit_server,
                FakeModels(),
                settings={**settings, "llm_base_url": None, "stt_base_url": None},
                tools=[{**tools[0], "parameters": schema}],
            )
        )
        room = rtc.Room()
        exits.push_async_callback(leave, room)
        await room.connect(here.started["livekit_url"], here.started["viewer_token"])
        source = rtc.AudioSource(RATE, 1, queue_size_ms=40)
        track = rtc.LocalAudioTrack.create_audio_track("microphone", source)
        await room.local_participant.publish_track(
            track, rtc.TrackPublishOptions(source=rtc.TrackSource.SOURCE_MICROPHONE)
        )
        loud = (9000 * np.sin(2 * np.pi * 300 * np.arange(RATE // 100) / RATE)).astype("<i2").tobytes()

        async def say(blocks: int, pcm: bytes) -> None:
            for _ in range(blocks):
                await source.capture_frame(rtc.AudioFrame(pcm, RATE, 1, RATE // 100))

        while not model.heard_s:  # what is said before the worker has the track is lost
            await say(10, bytes(len(loud)))
        await say(60, loud)  # once: speech after it would take the answer that is meant for the function's result
        while not here.of("user.transcript"):
            await say(10, bytes(len(loud)))
        assert here.of("user.transcript")[0]["text"] == "Where is my order?"
        await until(lambda: any(event["text"].strip() == "It is on its way." for event in here.of("reply.finished")))
        assert desk.hooks[0].event["arguments"] == {"number": "A17"} and here.of("tool.finished")[0]["ok"]
        outputs = [event["item"] for event in model.of("conversation.item.create")]
        assert next(item["output"] for item in outputs if item["type"] == "function_call_output") == "on its way"
        assert ("user", "Where is my order?", False) in await here.messages()

"""A model that refuses, hangs or breaks off in a turn: a warning says which, no word is lost, and the next turn works."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_tools.livekit_server import LiveKitAccess
from orchestrator.tts.synthesizer import SpeechChunk, SpeechOptions
from tests.fakes.openai_models import FakeModels, Trouble
from tests.integrations.conversation.microphone import person
from tests.integrations.conversation.test_talk import LONG, SineVoice, Talk, pytestmark, talk
from tests.waiting import until

__all__ = ["pytestmark"]
TRIES = 4
"""livekit-agents' own: so many requests before it gives an answer up."""


class BrokenVoice(SineVoice):
    """Speaks as many words of the next text as `good` says, and fails; None: speaks all."""

    good: int | None = None

    async def speak(self, text: str, voice: str, options: SpeechOptions) -> AsyncGenerator[SpeechChunk, None]:
        good, self.good = self.good, None
        async for chunk in super().speak(text, voice, options):
            if good == 0:
                raise ProblemError(ErrorCode.TTS_FAILED, "The voice broke: try again.")
            good = None if good is None else good - 1
            yield chunk


def parts(here: Talk) -> set[str]:
    return {event["data"]["part"] for event in here.of("warning")}


async def answered(here: Talk, count: int = 1) -> list[str]:
    await until(lambda: len(here.of("reply.finished")) == count)
    return [event["text"].strip() for event in here.of("reply.finished")]


async def test_a_language_model_that_refuses_is_asked_again(livekit_server: LiveKitAccess) -> None:
    models = FakeModels(replies=["My name is Ada."], llm_troubles=["refuses"])
    async with talk(livekit_server, models) as here:
        await here.chat("What is your name?")
        assert await answered(here) == ["My name is Ada."]
        (warning,) = here.of("warning")
        assert (warning["data"]["code"], warning["data"]["part"]) == ("conversation_provider", "llm")


async def test_after_a_language_model_has_refused_to_answer_it_knows_the_question(
    livekit_server: LiveKitAccess,
) -> None:
    models = FakeModels(replies=["My name is Ada."], llm_troubles=["refuses"] * TRIES)
    async with talk(livekit_server, models) as here:
        await here.chat("What is your name?")
        await until(lambda: len(here.of("warning")) == TRIES)
        await until(lambda: here.of("conversation.state")[-1]["state"] == "listening")
        await here.chat("And again?")
        assert await answered(here) == ["My name is Ada."]
        assert [text for _, text in models.asked[-1]] == ["Be brief.", "What is your name?", "And again?"]
        assert [text for _, text, _ in await here.messages()] == [
            "What is your name?",
            "And again?",
            "My name is Ada.",
        ]


async def test_what_a_language_model_said_before_it_broke_off_is_said(livekit_server: LiveKitAccess) -> None:
    models = FakeModels(replies=["My name is Ada."], llm_troubles=["breaks off"])
    async with talk(livekit_server, models) as here:
        await here.chat("Tell me a story.")
        assert await answered(here) == ["Once upon a"]
        assert parts(here) == {"llm"}
        await here.chat("What is your name?")
        assert await answered(here, 2) == ["Once upon a", "My name is Ada."]


async def test_a_language_model_that_hangs_does_not_hold_up_the_next_question(livekit_server: LiveKitAccess) -> None:
    models = FakeModels(replies=["My name is Ada."], llm_troubles=["hangs"])
    async with talk(livekit_server, models) as here:
        await here.chat("Tell me a story.")
        await until(lambda: models.asked)
        await here.chat("What is your name?")
        assert await answered(here) == ["My name is Ada."]
        assert [text for _, text in models.asked[-1]] == ["Be brief.", "Tell me a story.", "What is your name?"]


async def test_a_language_model_that_hangs_is_given_up(livekit_server: LiveKitAccess) -> None:
    models = FakeModels(replies=["My name is Ada."], llm_troubles=["hangs"])
    async with talk(livekit_server, models) as here:
        await here.chat("What is your name?")
        assert await answered(here) == ["My name is Ada."]
        assert parts(here) == {"llm"}


@pytest.mark.voice
@pytest.mark.parametrize("trouble", ["refuses", "hangs"])
async def test_what_a_recogniser_did_not_take_is_given_to_it_again(
    livekit_server: LiveKitAccess, trouble: Trouble
) -> None:
    models = FakeModels(replies=["My name is Ada."], transcripts=["What is your name?"], stt_troubles=[trouble])
    async with talk(livekit_server, models) as here, person(here) as who:
        await who.open()
        await who.say("What is your name?")
        assert await answered(here) == ["My name is Ada."]
        assert [event["text"] for event in here.of("user.transcript")] == ["What is your name?"]
        assert parts(here) == {"stt"} and models.heard_s[0] == models.heard_s[1]


@pytest.mark.voice
async def test_after_a_recogniser_has_refused_the_next_words_are_heard(livekit_server: LiveKitAccess) -> None:
    models = FakeModels(replies=["My name is Ada."], stt_troubles=["refuses"] * TRIES)
    async with talk(livekit_server, models) as here, person(here) as who:
        await who.open()
        await who.say("Tell me a very long story please.")
        await until(lambda: len(here.of("warning")) == TRIES)
        await who.say("What is your name?")
        assert await answered(here) == ["My name is Ada."]


@pytest.mark.parametrize("good", [0, 10])
async def test_a_voice_that_breaks_is_reported_and_speaks_the_next_reply(
    livekit_server: LiveKitAccess, good: int
) -> None:
    models, voice = FakeModels(replies=[LONG, "My name is Ada."]), BrokenVoice()
    voice.good = good
    async with talk(livekit_server, models, speaks=voice) as here:
        await here.chat("Tell me a story.")
        assert await answered(here) == [LONG], "what had no sound yet is made again"
        assert parts(here) == {"tts"}
        await here.chat("What is your name?")
        assert await answered(here, 2) == [LONG, "My name is Ada."]

"""A model that refuses, hangs or breaks off in a turn: a warning says which, no word is lost, and the next turn works."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from musetalk_tools.livekit_server import LiveKitAccess
from orchestrator.conversation import conversations
from orchestrator.tts.synthesizer import SpeechChunk, SpeechOptions
from tests.fakes.openai_models import FakeModels, Trouble
from tests.integrations.conversation.microphone import person
from tests.integrations.conversation.test_talk import SineVoice, Talk, pytestmark, talk
from tests.waiting import until

__all__ = ["pytestmark"]
TRIES = 4
"""livekit-agents' own: so many requests before it gives an answer up."""
STORY = " ".join(f"word{n}" for n in range(20)) + "."
HASTY = """
import runpy
from livekit.agents import DEFAULT_API_CONNECT_OPTIONS as usual
from livekit.plugins.openai import stt
object.__setattr__(usual, "timeout", 5.0)
object.__setattr__(usual, "retry_interval", 0.5)


class Hasty:
    def __init__(self, real):
        self.real = real

    def __getattr__(self, name):
        return getattr(self.real, name)

    def Timeout(self, *given, **more):
        return self.real.Timeout(*(5.0 for _ in given), **more)


stt.httpx = Hasty(stt.httpx)
runpy.run_module("orchestrator.conversation.worker", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker waits five seconds for a model in place of ten and thirty, and half a second between its tries in place of two."""
    monkeypatch.setattr(conversations, "WORKER", ("-c", HASTY))


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


async def test_a_language_model_that_refuses_breaks_off_or_hangs(livekit_server: LiveKitAccess) -> None:
    models = FakeModels(replies=["My name is Ada."], llm_troubles=["refuses"])
    async with talk(livekit_server, models) as here:
        await here.chat("What is your name?")
        assert await answered(here) == ["My name is Ada."], "it is asked again"
        (warning,) = here.of("warning")
        assert (warning["data"]["code"], warning["data"]["part"]) == ("conversation_provider", "llm")

        models.llm_troubles = ["breaks off"]
        await here.chat("Tell me a story.")
        assert (await answered(here, 2))[1:] == ["Once upon a"], "what came before it broke off is said"

        models.llm_troubles = ["hangs"]
        asked = len(models.asked)
        await here.chat("Tell me another.")
        await until(lambda: len(models.asked) > asked)
        await here.chat("What is your name?")  # is not held up
        assert (await answered(here, 3))[2:] == ["My name is Ada."]
        known = [text for role, text in models.asked[-1] if role == "user"]
        assert known == ["What is your name?", "Tell me a story.", "Tell me another.", "What is your name?"]
        assert parts(here) == {"llm"}


@pytest.mark.network
async def test_a_language_model_that_hangs_is_given_up_and_one_that_refuses_to_answer_knows_the_question_later(
    livekit_server: LiveKitAccess, hasty: None
) -> None:
    models = FakeModels(replies=["My name is Ada."], llm_troubles=["hangs"])
    async with talk(livekit_server, models) as here:
        await here.chat("What is your name?")
        assert await answered(here) == ["My name is Ada."]
        assert parts(here) == {"llm"}

        models.llm_troubles, warned = ["refuses"] * TRIES, len(here.of("warning"))
        await here.chat("And yours?")
        await until(lambda: len(here.of("warning")) == warned + TRIES)
        await until(lambda: here.of("conversation.state")[-1]["state"] == "listening")
        await here.chat("And again?")
        assert await answered(here, 2) == ["My name is Ada."] * 2
        said = ["What is your name?", "My name is Ada.", "And yours?", "And again?"]
        assert [text.strip() for _, text in models.asked[-1]] == ["Be brief.", *said]
        assert [text for _, text, _ in await here.messages()] == [*said, "My name is Ada."]


@pytest.mark.network
@pytest.mark.voice
async def test_what_a_recogniser_did_not_take_is_given_to_it_again(livekit_server: LiveKitAccess, hasty: None) -> None:
    models = FakeModels(replies=["My name is Ada."])
    async with talk(livekit_server, models) as here, person(here) as who:
        await who.open()
        troubles: list[Trouble] = ["refuses", "hangs"]
        for trouble in troubles:
            models.stt_troubles, before, replies = [trouble], len(models.heard_s), len(here.of("reply.finished"))
            await who.say("What is your name?")
            await until(lambda: len(models.heard_s) >= before + 2)  # noqa: B023 - it is awaited within the round
            await until(lambda: len(here.of("reply.finished")) > replies)  # noqa: B023 - the same
            assert models.heard_s[before] == models.heard_s[before + 1]
        # a busy machine may cut a question in two, and have two replies
        assert {event["text"] for event in here.of("user.transcript")} == {"What is your name?"}
        assert {event["text"].strip() for event in here.of("reply.finished")} == {"My name is Ada."}
        assert parts(here) == {"stt"}

        models.stt_troubles, warned = ["refuses"] * TRIES, len(here.of("warning"))
        await who.say("Tell me a very long story please.")
        await until(lambda: len(here.of("warning")) == warned + TRIES)
        replies = len(here.of("reply.finished"))
        await who.say("What is your name?")  # the next words are heard
        await until(lambda: len(here.of("reply.finished")) > replies)


@pytest.mark.network
async def test_a_voice_that_breaks_is_reported_and_speaks_the_next_reply(livekit_server: LiveKitAccess) -> None:
    models, voice = FakeModels(replies=[STORY, STORY, "My name is Ada."]), BrokenVoice()
    async with talk(livekit_server, models, speaks=voice) as here:
        for count, good in enumerate((0, 10), 1):  # words that have sound when it breaks
            voice.good = good
            await here.chat("Tell me a story.")
            assert await answered(here, count) == [STORY] * count, "what had no sound yet is made again"
        assert parts(here) == {"tts"}
        await here.chat("What is your name?")
        assert (await answered(here, 3))[2:] == ["My name is Ada."]

"""Microphones that come and go in a conversation: whose words are heard, and that none of them is lost."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from musetalk_tools.livekit_server import LiveKitAccess
from tests.fakes.openai_models import FakeModels
from tests.integrations.conversation import test_talk
from tests.integrations.conversation.microphone import Microphone, person
from tests.integrations.conversation.room_lines import follow_captions
from tests.integrations.conversation.test_talk import LONG, Talk, talk
from tests.waiting import until

pytestmark = [*test_talk.pytestmark, pytest.mark.voice]
QUESTION = "What is your name?"
ANSWER = "My name is Ada, and I am glad to meet you."
"""Long enough for the worker to know that the microphone does not hear it."""


def said(here: Talk) -> list[str]:
    return [event["text"] for event in here.of("user.transcript") if event["final"]]


async def answers(here: Talk, count: int) -> None:
    await until(lambda: len(here.of("reply.finished")) >= count)


def is_answered(here: Talk, text: str) -> bool:
    """Whether a reply was finished after this text of a user came."""
    seen = [(event["type"], event.get("text")) for event in here.events]
    asked = ("user.transcript", text)
    return asked in seen and any(kind == "reply.finished" for kind, _ in seen[seen.index(asked) :])


@pytest.mark.network
async def test_of_two_persons_the_one_who_opened_a_microphone_last_is_heard(livekit_server: LiveKitAccess) -> None:
    models = FakeModels(replies=[ANSWER], transcripts=[f"Question {n}." for n in range(40)])
    lines: list[tuple[str, dict[str, str], str]] = []
    async with AsyncExitStack() as exits:
        here = await exits.enter_async_context(talk(livekit_server, models))
        follow_captions(here.running.ears.room, lines)
        anna = await exits.enter_async_context(person(here))
        ben = await exits.enter_async_context(person(here, "ben"))

        async def heard(who: Microphone, count: int) -> None:
            await until(who.is_listened_to)  # whoever mutes is known to the worker a moment later
            await who.say(QUESTION)
            await answers(here, count)
            users = [line for line in lines if line[0] in (anna.identity, ben.identity)]
            assert [line[0] for line in users][-1] == who.identity, "the words are under the name of who said them"

        await anna.open()
        await heard(anna, 1)
        await ben.open()
        await heard(ben, 2)
        assert ben.track is not None
        ben.track.mute()
        await heard(anna, 3)
        ben.track.unmute()
        await heard(ben, 4)
        await ben.close()
        await heard(anna, 5)
        numbers = [int(text.strip("Question .")) for text in said(here)]
        # a recognition that began too early takes one, too, and so does the rest of a question that a busy machine cut in two
        assert len(numbers) >= 5 and numbers == sorted(set(numbers))


@pytest.mark.network
@pytest.mark.parametrize("ends", ["muted", "closed", "left"])
async def test_words_before_a_microphone_goes_are_answered(livekit_server: LiveKitAccess, ends: str) -> None:
    models = FakeModels(replies=[ANSWER], transcripts=[QUESTION])
    async with AsyncExitStack() as exits:
        here = await exits.enter_async_context(talk(livekit_server, models))
        who = await exits.enter_async_context(person(here))
        await who.open()
        await who.say(QUESTION)
        assert who.track is not None
        if ends == "muted":
            who.track.mute()
        elif ends == "closed":
            await who.close()
        else:
            await who.room.disconnect()
        await until(lambda: here.of("reply.finished"))
        assert set(said(here)) == {QUESTION} and models.heard_s[0] > 0.5  # a busy machine may cut what is said in two
        models.transcripts = ["And yours?"]
        if ends == "muted":
            who.track.unmute()
        elif ends == "closed":
            await who.open()
        else:
            who = await exits.enter_async_context(person(here))
            await who.open()
        await who.say(QUESTION)
        await until(lambda: is_answered(here, "And yours?"))


async def test_one_who_leaves_in_mid_reply_and_comes_back_goes_on_with_the_conversation(
    livekit_server: LiveKitAccess,
) -> None:
    models = FakeModels(replies=[LONG, "Very well."], transcripts=["Tell me a story.", "Please stop now."])
    async with AsyncExitStack() as exits:
        here = await exits.enter_async_context(talk(livekit_server, models))
        async with person(here) as who:
            await who.open()
            await who.say("Tell me a very long story please.")
            await until(lambda: here.of("reply.started"))
            before = len(here.running.ears.heard(0.0))
            await until(lambda: len(here.running.ears.heard(0.0)) > before + 50)
        async with person(here) as who:
            await who.open()
            await who.say("Please stop now, and listen to me.")
            await answers(here, 2)
        story, end = here.of("reply.finished")
        assert LONG.startswith(story["text"].strip()) and end["text"].strip() == "Very well."
        assert [text for role, text in models.asked[-1] if role == "user"] == ["Tell me a story.", "Please stop now."]
        assert [(role, text) for role, text, _ in await here.messages()] == [
            ("user", "Tell me a story."),
            ("assistant", story["text"].strip()),
            ("user", "Please stop now."),
            ("assistant", "Very well."),
        ]

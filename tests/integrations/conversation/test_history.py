"""What the history and the captions say of each reply, against the tones that were heard in the room."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncGenerator
from typing import Any

import numpy as np
import pytest
from livekit import rtc

from musetalk_agent.protocol.messages import CaptionWord
from musetalk_tools.livekit_server import LiveKitAccess
from orchestrator.conversation.conversations import find_python
from orchestrator.tts.synthesizer import SpeechChunk, SpeechOptions, VoiceInfo
from tests.fakes.openai_models import FakeModels
from tests.integrations.conversation.room_lines import follow_captions
from tests.integrations.conversation.test_talk import Talk, talk
from tests.orchestrator.voice.tones import LOWEST_HZ, STEP_HZ, Ears
from tests.viewer import RATE
from tests.waiting import until

pytestmark = [
    pytest.mark.livekit,
    pytest.mark.skipif(
        find_python() is None, reason="no environment for conversations: run `tools/setup conversation`"
    ),
]
TURNS = int(os.environ.get("CONVERSATION_TURNS", "6"))
"""The bar is 30; `CONVERSATION_TURNS=30` takes three minutes."""
WORDS = 34
"""Of a reply that is interrupted; replies take turns at two ranges of tones, so that each is known by what is heard of it."""
WORD_S = 0.2


class CodedVoice:
    """A synthesizer: the word `w12` is 200 ms of tone 12, as `tones.tone_code` numbers them."""

    async def open(self) -> None: ...

    async def aclose(self) -> None: ...

    def names(self) -> list[VoiceInfo]:
        return [VoiceInfo("coded:one", "en", "coded", RATE)]

    async def speak(self, text: str, voice: str, options: SpeechOptions) -> AsyncGenerator[SpeechChunk, None]:
        samples = round(WORD_S * RATE)
        t = np.arange(samples) / RATE
        for n, word in enumerate(text.split()):
            number = int(word.strip("w.,"))
            pcm = (9000 * np.sin(2 * np.pi * (LOWEST_HZ + STEP_HZ * number) * t)).astype("<i2").tobytes()
            said = CaptionWord(text=word + " ", start=n * samples, end=(n + 1) * samples)
            yield SpeechChunk(pcm, RATE, (), (said,))
            await asyncio.sleep(0)


def reply(turn: int, words: int) -> str:
    first = 35 * (turn % 2)
    listed = [f"w{first + n}" for n in range(words)]
    return " ".join(listed[:2]) + ". " + " ".join(listed[2:]) + "."


def heard_of(ears: Ears) -> list[list[int]]:
    """The words of each reply that were heard, in the order of the replies. A tone shorter than 60 ms is an edge."""
    replies: list[list[int]] = []
    for late, tones in itertools.groupby((tone for _, tone in ears.spoken()), key=lambda tone: tone >= 35):
        counts = np.bincount([tone - 35 * late for tone in tones if 0 <= tone - 35 * late < 35], minlength=35)
        if np.sum(counts) > 3:
            replies.append([int(word) for word in np.flatnonzero(counts >= 3)])
    return replies


def expected_order(cut: list[bool]) -> list[str]:
    """A reply that is cut is over after the text that cut it came, and before the next reply begins."""
    order: list[str] = []
    for turn, interrupted in enumerate(cut):
        order += ["user.transcript", *(["reply.finished"] if turn and cut[turn - 1] else []), "reply.started"]
        order += [] if interrupted else ["reply.finished"]
    return order


def order_of(events: list[dict[str, Any]]) -> list[str]:
    return [
        event["type"] for event in events if event["type"] in ("user.transcript", "reply.started", "reply.finished")
    ]


async def converse(here: Talk, lines: list[tuple[str, dict[str, str], str]], cut: list[bool]) -> None:
    """All turns; each reply that is cut is cut by the next text."""
    ears = here.running.ears
    for turn, interrupted in enumerate(cut):
        await here.chat(f"Question {turn}.")
        await until(lambda turn=turn: len(here.of("reply.started")) == turn + 1)
        if not interrupted:
            await until(lambda turn=turn: len(here.of("reply.finished")) == turn + 1)
            continue
        before = len(heard_of(ears))
        await until(lambda before=before: len(heard_of(ears)) > before - 1 and len(heard_of(ears)[-1]) > 5)


@pytest.mark.network
async def test_the_history_has_the_words_that_were_heard(livekit_server: LiveKitAccess) -> None:
    cut = [turn % 3 == 1 for turn in range(TURNS)]
    models = FakeModels(replies=[reply(turn, WORDS if cut[turn] else 5) for turn in range(TURNS)])
    lines: list[tuple[str, dict[str, str], str]] = []
    async with talk(livekit_server, models, speaks=CodedVoice()) as here:
        ears = here.running.ears
        follow_captions(ears.room, lines)
        await converse(here, lines, cut)
        await until(lambda: len(here.of("reply.finished")) == TURNS)
        messages = await here.messages()
        assert [(role, text) for role, text, _ in messages[::2]] == [("user", f"Question {n}.") for n in range(TURNS)]
        assert [(role, was) for role, _, was in messages[1::2]] == [("assistant", was) for was in cut]
        assert order_of(here.events) == expected_order(cut)
        assert [event["text"].strip() for event in here.of("reply.finished")] == [text for _, text, _ in messages[1::2]]

        await until(lambda: heard_of(ears)[-1][-1] == 4)  # the end of the last reply is on its way
        heard = heard_of(ears)
        assert len(heard) == TURNS, "every reply was heard, and none twice"
        for turn, ((_, text, was_cut), words) in enumerate(zip(messages[1::2], heard, strict=True)):
            assert reply(turn, WORDS if was_cut else 5).startswith(text), (turn, text)
            said = len(text.split())
            if was_cut:
                assert 5 < said < WORDS and abs(said - (words[-1] + 1)) <= 1, (turn, text, words)
            else:
                assert said == 5 and words == [0, 1, 2, 3, 4], (turn, text, words)

        await until(lambda: len(lines) == TURNS and all(text for _, _, text in lines))
        assert [text.strip() for _, _, text in lines] == [text for _, text, _ in messages[1::2]], (
            "captions say the same"
        )
        avatar = ears.room.remote_participants[here.started["avatar_identity"]]
        voice = next(t.sid for t in avatar.track_publications.values() if t.kind == rtc.TrackKind.KIND_AUDIO)
        speaker = f"conversation-{here.started['session_id']}"
        assert {who for who, _, _ in lines} == {speaker}
        assert {attributes["lk.transcribed_track_id"] for _, attributes, _ in lines} == {voice}
        assert len({attributes["lk.segment_id"] for _, attributes, _ in lines}) == TURNS

        assert [text.strip() for messages in models.asked[-1:] for role, text in messages if role == "assistant"] == [
            text for _, text, _ in messages[1:-1:2]
        ], "the model knows the same"
        await until(lambda: ears.room.remote_participants[speaker].attributes.get("lk.agent.state") == "listening")


async def test_a_line_of_its_own_waits_for_its_turn(livekit_server: LiveKitAccess) -> None:
    models = FakeModels(replies=[reply(0, 5)])
    async with talk(livekit_server, models, speaks=CodedVoice(), greeting="w40 w41 w42.") as here:
        address = f"/session/{here.started['session_id']}/speak"
        answer = await here.running.stage.http.post(address, json={"text": "w50 w51."})
        assert answer.status_code == 202, answer.text
        await until(lambda: len(here.of("reply.finished")) == 2)
        (queued,) = here.of("reply.queued")
        assert (queued["text"], queued["message_id"]) == ("w50 w51.", answer.json()["message_id"])
        assert [event["text"].strip() for event in here.of("reply.finished")] == ["w40 w41 w42.", "w50 w51."]
        assert await here.messages() == [("assistant", "w40 w41 w42.", False), ("assistant", "w50 w51.", False)]
        await here.chat("Hello.")
        await until(lambda: len(here.of("reply.finished")) == 3)
        assert [text.strip() for role, text in models.asked[0] if role == "assistant"] == ["w40 w41 w42.", "w50 w51."]
        session = (await here.running.stage.http.get(f"/session/{here.started['session_id']}")).json()
        assert session["conversation"]["state"] in ("listening", "speaking")

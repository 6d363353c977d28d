"""Actions of a text are carried out once, where their words are heard, and not at all where they are not."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial

import numpy as np
import pytest

from musetalk_agent.protocol.action_marks import LEAD_S, ActionMarks
from musetalk_agent.protocol.messages import CaptionWord
from orchestrator.session.speech_queue import TextStream
from orchestrator.session.spoken_actions import PLANNED_MOST, SpokenActions, TextActions
from orchestrator.tts.segmentation import GrowingText
from orchestrator.tts.synthesizer import SpeechChunk
from tests.orchestrator.session.test_speech_queue import RATE, Player, running, settle
from tests.waiting import until

WORD_S = 1.0


async def say(text: str) -> AsyncGenerator[SpeechChunk, None]:
    """A second a word."""
    for number, word in enumerate(text.split()):
        at = round(number * WORD_S * RATE)
        said = CaptionWord(text=word, start=at, end=at + RATE)
        for part in range(5):
            yield SpeechChunk(np.zeros(RATE // 5, "<i2").tobytes(), RATE, (), (said,) if part == 0 else ())


def test_what_is_heard_is_done_once_and_what_is_cut_off_never() -> None:
    actions, done = SpokenActions(), []
    for segment, at_s in ((1, 0.0), (1, 2.0), (2, 0.0), (2, 1.0)):
        assert actions.plan(segment, at_s, partial(done.append, (segment, at_s)))
    actions.heard(1, 0.0)
    actions.heard(1, 0.1)
    assert done == [(1, 0.0)]
    actions.heard(1, 2.0 - LEAD_S)
    assert done[1:] == [(1, 2.0)]
    actions.finished(2, interrupted=True)
    actions.heard(3, 9.0)
    assert len(done) == 2
    assert all(actions.plan(4, 1.0, partial(done.append, (4, 1.0))) for _ in range(PLANNED_MOST))
    assert not actions.plan(4, 1.0, partial(done.append, (4, 1.0)))
    actions.clear()
    actions.finished(4, interrupted=False)
    assert len(done) == 2


async def test_a_text_plays_its_clips_with_its_words() -> None:
    async with running() as (live, _):
        player, played, marks = Player(live), [], ActionMarks(("wave", "nod"))
        live.attach_renderer(player)
        text = marks.whole("one [wave] two three [nod]")
        assert text == "one two three"
        live.speech.say(partial(say, text), actions=TextActions(marks, played.append))
        await settle(200)
        player.wake()
        player.play(0.7)
        assert played == []
        player.play(0.1)
        assert played == ["wave"]
        player.play(2.1)
        assert played == ["wave"]
        player.play(0.2)
        assert played == ["wave", "nod"]


async def test_a_barge_in_leaves_out_what_was_not_heard() -> None:
    async with running() as (live, _):
        player, played, marks = Player(live), [], ActionMarks(("wave",))
        live.attach_renderer(player)
        live.speech.say(partial(say, marks.whole("one two [wave] three")), actions=TextActions(marks, played.append))
        await settle(200)
        player.wake()
        player.play(1.0)
        live.clear()
        player.wake()
        await settle()
        player.play(5.0)
        assert played == []


@pytest.mark.parametrize(
    "pieces", [["one [wa", "ve] two"], ["one [wave", "] two"], ["one ", "[wave] ", "two"], ["one [wave] two"]]
)
async def test_a_text_that_is_being_written_has_marks_too(pieces: list[str]) -> None:
    heard: list[str] = []

    async def speak(text: GrowingText) -> AsyncGenerator[SpeechChunk, None]:
        while (sentence := await text.next()) is not None:
            heard.append(sentence)
            async for chunk in say(sentence):
                yield chunk

    async with running() as (live, _):
        player, played, marks = Player(live), [], ActionMarks(("wave",))
        live.attach_renderer(player)
        stream = TextStream(live.speech, speak, TextActions(marks, played.append))
        for piece in pieces:
            assert stream.write(piece)
        stream.end()
        await until(lambda: bool(heard) and stream.over.is_set())
        player.wake()
        player.play(0.7)
        assert played == []
        player.play(1.3)
        assert played == ["wave"] and " ".join(heard).split() == ["one", "two"]

"""Text to speech through the session, with a voice made of tones."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.tts.lexicon import respelled
from orchestrator.tts.voices import Voices
from tests.fakes.stage import Stage, stage
from tests.fakes.tone_voice import RATE, TonePerWord
from tests.waiting import turns, until


async def say(running: Stage, session_id: str, text: str, **more: str) -> tuple[int, dict[str, object]]:
    answer = await running.http.post(f"/session/{session_id}/speak", json={"text": text, **more})
    return answer.status_code, answer.json()


async def test_text_becomes_a_segment_with_its_phonemes(speaking: Stage) -> None:
    async with speaking.live() as (started, line):
        assert await say(speaking, started["session_id"], "one two three") == (202, {"segment": 1})
        finished = await line.wait("playback.finished")
        assert finished["position_s"] == pytest.approx(0.3)
        segment = speaking.agent.only.segments[1]
        assert segment.rate == RATE
        assert segment.cues == [("one", 0, 2205), ("two", 2205, 4410), ("three", 4410, 6615)]
        assert set(np.frombuffer(segment.pcm, "<i2").tolist()) == {1000}


async def test_texts_queue_behind_each_other_and_behind_pcm(speaking: Stage, voice: TonePerWord) -> None:
    async with speaking.live() as (started, line):
        await line.say("audio.start")
        await line.socket.send(bytes(3200))
        await line.wait("ack")
        answers = [await say(speaking, started["session_id"], text, voice="tone:two") for text in ("a b", "c")]
        assert answers == [(202, {"segment": 2}), (202, {"segment": 3})]
        await until(lambda: voice.closed == 2)  # both are synthesised, and could be heard
        assert list(speaking.agent.only.segments) == [1]
        await line.say("audio.end")
        await line.wait("playback.finished", count=3)
        assert [m["segment"] for m in line.of("playback.finished")] == [1, 2, 3]
        assert [len(s.pcm) for s in speaking.agent.only.segments.values()] == [3200, 2 * 4410, 4410]
        assert set(np.frombuffer(speaking.agent.only.segments[2].pcm, "<i2").tolist()) == {2000}


async def test_interrupt_ends_the_synthesis(speaking: Stage, voice: TonePerWord) -> None:
    async with speaking.live() as (started, line):
        await say(speaking, started["session_id"], "one hang")
        await say(speaking, started["session_id"], "never heard")
        await line.wait("playback.started")
        await speaking.http.post(f"/session/{started['session_id']}/interrupt")
        await line.wait("playback.finished", count=2)
        assert [(m["segment"], m["interrupted"]) for m in line.of("playback.finished")] == [(1, True), (2, True)]
        await until(lambda: voice.begun == voice.closed == 1)  # the second had not had its turn
        assert await say(speaking, started["session_id"], "again") == (202, {"segment": 3})
        assert (await line.wait("playback.finished", count=3))["interrupted"] is False


@pytest.mark.parametrize("word", ["break", "crash"])
async def test_a_voice_that_breaks_ends_its_segment_with_a_warning(speaking: Stage, word: str) -> None:
    async with speaking.live() as (started, line):
        await say(speaking, started["session_id"], f"one {word} three")
        warning = await line.wait("warning")
        assert warning["code"] == "tts_failed" and "Segment 1" in warning["message"]
        assert "a bug" not in warning["message"]
        assert (await line.wait("playback.finished"))["position_s"] == pytest.approx(0.1)
        assert await say(speaking, started["session_id"], "works again") == (202, {"segment": 2})


async def test_stop_ends_the_synthesis(speaking: Stage, voice: TonePerWord) -> None:
    started = await speaking.start()
    await say(speaking, started["session_id"], "one hang")
    await until(lambda: voice.begun == 1)
    await speaking.http.post(f"/session/{started['session_id']}/stop")
    assert voice.closed == 1


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({}, "invalid_request", "text"),
        ({"text": ""}, "invalid_request", "text"),
        ({"text": " \n\t"}, "invalid_request", "text"),
        ({"text": "x" * 5001}, "invalid_request", "text"),
        ({"text": "hello", "voice": "tone:three"}, "voice_unknown", None),
        ({"text": "hello", "speed": 2.1}, "invalid_request", "speed"),
        ({"text": "hello", "speed": 0.4}, "invalid_request", "speed"),
        ({"text": "hello", "pitch": 2}, "invalid_request", "pitch"),
    ],
)
async def test_what_cannot_be_spoken(speaking: Stage, body: dict[str, object], code: str, field: str | None) -> None:
    started = await speaking.start()
    answer = await speaking.http.post(f"/session/{started['session_id']}/speak", json=body)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, code)
    if field:
        assert problem["field"] == field


async def test_texts_that_wait_are_bounded(speaking: Stage) -> None:
    started = await speaking.start()
    for _ in range(32):
        assert (await say(speaking, started["session_id"], "hang"))[0] == 202
    status, problem = await say(speaking, started["session_id"], "one more")
    assert (status, problem["code"], problem["limit"]) == (422, "backlog_exceeded", 32)


async def test_a_long_text_waits_for_the_backlog_instead_of_failing(voice: TonePerWord) -> None:
    async with stage(voices=Voices("tone:one", synthesizers=[voice]), audio_backlog_s=1) as running:
        async with running.live() as (started, line):
            running.agent.hold = True
            await say(running, started["session_id"], "word " * 100)

            def held() -> float:
                return len(running.agent.only.pcm) / 2 / RATE

            await until(lambda: held() >= 0.9)
            await turns(1000)  # the voice itself would be over by then
            assert held() < 2 and voice.closed == 0
            running.agent.hold = False
            assert (await line.wait("playback.finished"))["position_s"] == pytest.approx(10.0)


async def test_without_voices_it_says_what_to_install(running: Stage) -> None:
    started = await running.start()
    status, problem = await say(running, started["session_id"], "hello")
    assert (status, problem["code"]) == (503, "voice_unavailable")
    assert "musetalk-livekit[voice]" in str(problem["detail"])
    assert (await running.http.get("/voices")).json() == {"voices": [], "default": None}


async def test_voices_are_listed(speaking: Stage) -> None:
    listed = (await speaking.http.get("/voices")).json()["voices"]
    assert listed[0] == {"name": "tone:one", "language": "en", "provider": "tone", "sample_rate": RATE}


async def test_a_text_is_spoken_as_it_asks_or_as_its_session_does(speaking: Stage, voice: TonePerWord) -> None:
    started = await speaking.start(speech={"voice": "tone:two", "speed": 0.8})
    address = f"/session/{started['session_id']}/speak"
    for body in ({"text": "a"}, {"text": "b", "voice": "tone:one"}, {"text": "c", "speed": 2}):
        assert (await speaking.http.post(address, json=body)).status_code == 202
    plain = {"Content-Type": "text/plain"}
    answer = await speaking.http.post(address, content="d. ", headers=plain, params={"speed": "1.5"})
    assert answer.status_code == 202, answer.text
    asked = [(text.strip(" ."), name, options.speed) for text, name, options in voice.asked]
    assert asked == [("a", "tone:two", 0.8), ("b", "tone:one", 0.8), ("c", "tone:two", 2.0), ("d", "tone:two", 1.5)]
    lexicon = [{"word": "a", "say": "b"}]
    answer = await speaking.http.post(address, json={"text": "a", "lexicon": lexicon, "sentence_pause_ms": 7})
    assert answer.status_code == 202, answer.text
    options = voice.asked[-1][2]
    assert options.sentence_pause_ms == 7 and respelled("a", "en", options.lexicons) == "b"
    refused = await speaking.http.post(address, json={"text": "a", "lexicon": [{"word": "a", "say": "[[b]]"}]})
    assert (refused.status_code, refused.json()["field"]) == (422, "lexicon.0.say")
    refused = await speaking.http.post(address, content="d. ", headers=plain, params={"speed": "3"})
    assert (refused.status_code, refused.json()["field"]) == (422, "speed")

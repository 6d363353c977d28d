"""The voices in OpenAI's dialect."""

from __future__ import annotations

import base64
import io
import json
import wave

import numpy as np
import pytest

from tests.fakes.stage import Stage
from tests.fakes.tone_voice import TonePerWord


async def test_pcm_is_24_khz_and_wav_says_its_length(speaking: Stage) -> None:
    answer = await speaking.http.post("/v1/audio/speech", json={"input": "one two three", "response_format": "pcm"})
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("audio/pcm")
    pcm = np.frombuffer(answer.content, "<i2")
    assert len(pcm) == pytest.approx(0.3 * 24_000, abs=50) and set(pcm[1000:-1000].tolist()) == {1000}
    answer = await speaking.http.post("/v1/audio/speech", json={"input": "one two three", "voice": "tone:two"})
    with wave.open(io.BytesIO(answer.content)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24_000, 1, 2)
        assert file.getnframes() == len(pcm)
        assert set(np.frombuffer(file.readframes(-1), "<i2")[1000:-1000].tolist()) == {2000}


async def test_events_carry_the_same_sound_and_the_time_of_each_word(speaking: Stage, voice: TonePerWord) -> None:
    voice.captions = True
    body = {"input": "one two three", "response_format": "pcm"}
    whole = (await speaking.http.post("/v1/audio/speech", json=body)).content
    answer = await speaking.http.post("/v1/audio/speech", json={**body, "stream_format": "sse"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *deltas, done = [json.loads(line[5:]) for line in answer.text.splitlines() if line.startswith("data:")]
    assert done == {"type": "speech.audio.done"} and {delta["type"] for delta in deltas} == {"speech.audio.delta"}
    assert b"".join(base64.b64decode(delta["audio"]) for delta in deltas) == whole
    words = [word for delta in deltas for word in delta["words"]]
    assert [word["text"].strip() for word in words] == ["one", "two", "three"]
    assert [(word["start"], word["end"]) for word in words] == [(0.0, 0.1), (0.1, 0.2), (0.2, 0.3)]


async def test_openais_own_names_are_the_default_voice(speaking: Stage) -> None:
    body = {"model": "gpt-4o-mini-tts", "input": "one", "voice": "alloy", "speed": 1.0, "stream_format": "audio"}
    answer = await speaking.http.post("/v1/audio/speech", json={**body, "response_format": "pcm"})
    assert answer.status_code == 200 and 1000 in np.frombuffer(answer.content, "<i2")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"input": ""}, 422, "invalid_request"),
        ({"input": "x" * 4097}, 422, "invalid_request"),
        ({"input": "one", "voice": "tone:nine"}, 422, "voice_unknown"),
        ({"input": "one", "response_format": "mp3"}, 422, "invalid_request"),
        ({"input": "break", "response_format": "pcm"}, 502, "tts_failed"),
        ({"input": "break", "response_format": "pcm", "stream_format": "sse"}, 502, "tts_failed"),
    ],
)
async def test_what_cannot_be_said_has_a_code(
    speaking: Stage, voice: TonePerWord, body: dict[str, str], status: int, code: str
) -> None:
    answer = await speaking.http.post("/v1/audio/speech", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert voice.begun == voice.closed


async def test_it_needs_a_key_and_lists_one_model(speaking: Stage) -> None:
    without = {"Authorization": "Bearer none"}
    assert (await speaking.http.post("/v1/audio/speech", json={"input": "one"}, headers=without)).status_code == 401
    assert (await speaking.http.get("/v1/models", headers=without)).status_code == 401
    listed = (await speaking.http.get("/v1/models")).json()
    assert listed["object"] == "list" and [model["id"] for model in listed["data"]] == ["musetalk"]

"""The voices in OpenAI's dialect."""

from __future__ import annotations

import base64
import io
import json
import wave

import av
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
    assert done["type"] == "speech.audio.done" and {delta["type"] for delta in deltas} == {"speech.audio.delta"}
    assert b"".join(base64.b64decode(delta["audio"]) for delta in deltas) == whole
    words = [word for delta in deltas for word in delta["words"]]
    assert [word["text"].strip() for word in words] == ["one", "two", "three"]
    assert [(word["start"], word["end"]) for word in words] == [(0.0, 0.1), (0.1, 0.2), (0.2, 0.3)]


def decoded(data: bytes) -> tuple[str, str, int, np.ndarray]:
    """Container, codec, rate and samples of a file."""
    with av.open(io.BytesIO(data)) as file:
        stream = file.streams.audio[0]
        frames = [frame.to_ndarray() for frame in file.decode(stream)]
        resampled = np.concatenate([np.atleast_2d(frame)[0] for frame in frames])
        if resampled.dtype == np.float32:
            resampled = resampled * 32768
        return file.format.name, stream.codec.canonical_name, stream.rate, resampled.astype(np.float64)


@pytest.mark.parametrize(
    ("kind", "media_type", "container", "codec", "rate"),
    [
        ("mp3", "audio/mpeg", "mp3", "mp3", 24_000),
        ("opus", "audio/ogg", "ogg", "opus", 48_000),
        ("aac", "audio/aac", "aac", "aac", 24_000),
        ("flac", "audio/flac", "flac", "flac", 24_000),
    ],
)
async def test_each_format_is_what_its_name_says_and_holds_the_speech(
    speaking: Stage, kind: str, media_type: str, container: str, codec: str, rate: int
) -> None:
    body = {"input": "one two three four five", "response_format": kind}
    answer = await speaking.http.post("/v1/audio/speech", json=body)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith(media_type)
    found_container, found_codec, found_rate, samples = decoded(answer.content)
    assert (found_container, found_codec, found_rate) == (container, codec, rate)
    assert len(samples) / rate == pytest.approx(0.5, abs=0.11)  # the encoders' own delay, and their last frame
    assert np.abs(samples).max() > 900
    if kind == "flac":  # nothing is lost
        assert set(samples[1000:-1000].tolist()) == {1000.0}


async def test_the_encoded_file_comes_while_the_speech_is_made(speaking: Stage, voice: TonePerWord) -> None:
    words = "word " * 40
    events = [
        json.loads(line[5:])
        for kind in ("mp3", "opus", "aac", "flac")
        for line in (
            await speaking.http.post(
                "/v1/audio/speech", json={"input": words, "response_format": kind, "stream_format": "sse"}
            )
        ).text.splitlines()
        if line.startswith("data:")
    ]
    deltas = [event for event in events if event["type"] == "speech.audio.delta" and event["audio"]]
    assert len(deltas) >= 4 * 20  # 40 words of 100 ms: most of them bring some bytes, not one block at the end


async def test_a_break_in_mid_speech_is_an_event(speaking: Stage, voice: TonePerWord) -> None:
    voice.captions = True
    for word, said in (("break", "The voice broke."), ("crash", "The voice broke: try again.")):
        body = {"input": f"one two {word}", "response_format": "pcm", "stream_format": "sse"}
        answer = await speaking.http.post("/v1/audio/speech", json=body)
        assert answer.status_code == 200
        events = [json.loads(line[5:]) for line in answer.text.splitlines() if line.startswith("data:")]
        assert [event["type"] for event in events][-2:] == ["speech.audio.delta", "error"]
        assert events[-1]["error"]["code"] == "tts_failed" and events[-1]["error"]["message"] == said
    assert voice.begun == voice.closed


async def test_speed_reaches_the_voice(speaking: Stage, voice: TonePerWord) -> None:
    answer = await speaking.http.post("/v1/audio/speech", json={"input": "one", "speed": 1.5, "instructions": "calm"})
    assert answer.status_code == 200 and voice.asked[-1][2].speed == 1.5


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
        ({"input": "one", "response_format": "mp4"}, 422, "invalid_request"),
        ({"input": "one", "speed": 2.5}, 422, "invalid_request"),
        ({"input": "one", "stream_format": "ogg"}, 422, "invalid_request"),
        ({"input": "break", "response_format": "mp3"}, 502, "tts_failed"),
        ({"input": "break", "response_format": "pcm"}, 502, "tts_failed"),
        ({"input": "break", "response_format": "pcm", "stream_format": "sse"}, 502, "tts_failed"),
    ],
)
async def test_what_cannot_be_said_has_a_code(
    speaking: Stage, voice: TonePerWord, body: dict[str, object], status: int, code: str
) -> None:
    answer = await speaking.http.post("/v1/audio/speech", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    error = answer.json()["error"]
    assert error["code"] == code and error["message"] == answer.json()["detail"]
    assert error["type"] == ("server_error" if status == 502 else "invalid_request_error")
    assert voice.begun == voice.closed


async def test_it_needs_a_key_and_lists_one_model(speaking: Stage) -> None:
    without = {"Authorization": "Bearer none"}
    refused = await speaking.http.get("/v1/models", headers=without)
    assert (refused.json()["code"], refused.json()["error"]["type"]) == ("unauthorized", "authentication_error")
    assert (await speaking.http.post("/v1/audio/speech", json={"input": "one"}, headers=without)).status_code == 401
    assert (await speaking.http.get("/v1/models", headers=without)).status_code == 401
    listed = (await speaking.http.get("/v1/models")).json()
    assert listed["object"] == "list" and [model["id"] for model in listed["data"]] == ["musetalk"]

"""The real `openai` client of Python against `/v1`: it is in the environment of the conversations."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from orchestrator.conversation.conversations import find_python
from tests.fakes.stage import API_KEY, Stage
from tests.waiting import NEVER_S

pytestmark = pytest.mark.skipif(
    find_python() is None, reason="no environment for conversations: run `tools/setup conversation`"
)
CLIENT = """
import json, sys
import openai

client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key=sys.argv[2], max_retries=0)
out = {"models": [model.id for model in client.models.list()], "sizes": {}, "errors": []}
for kind in ("mp3", "opus", "aac", "flac", "wav", "pcm"):
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="alloy", input="one two three", response_format=kind, speed=1.25, instructions="Be kind."
    ) as answer:
        out["sizes"][kind] = [answer.headers["content-type"], sum(len(part) for part in answer.iter_bytes())]
events = client.audio.speech.create(
    model="gpt-4o-mini-tts", voice="alloy", input="one two", response_format="pcm", stream_format="sse"
).text
out["events"] = [json.loads(line[5:])["type"] for line in events.splitlines() if line.startswith("data:")]
wrong = {"model": "tts-1", "voice": "alloy", "input": "one"}
for body in ({**wrong, "voice": "tone:nine"}, {**wrong, "speed": 4}, {**wrong, "input": "break", "response_format": "pcm"}):
    try:
        client.audio.speech.create(**body)
    except openai.APIStatusError as error:
        out["errors"].append([type(error).__name__, error.status_code, error.code, error.type, error.param])
try:
    openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="wrong", max_retries=0).models.list()
except openai.AuthenticationError as error:
    out["errors"].append([type(error).__name__, error.status_code, error.code, error.type, error.param])
print(json.dumps(out))
"""


async def test_openais_own_client_hears_every_format_and_understands_every_error(speaking: Stage) -> None:
    python = find_python()
    assert python is not None
    pipe = asyncio.subprocess.PIPE
    client = await asyncio.create_subprocess_exec(
        python, "-c", CLIENT, speaking.url, API_KEY, stdout=pipe, stderr=pipe, env={"NO_PROXY": "*"}
    )
    output, errors = await asyncio.wait_for(client.communicate(), NEVER_S)
    assert client.returncode == 0, errors.decode()
    seen: dict[str, Any] = json.loads(output)
    assert seen["models"] == ["musetalk"]
    types = {kind: kind_type.partition(";")[0] for kind, (kind_type, _) in seen["sizes"].items()}
    assert types == {
        "mp3": "audio/mpeg",
        "opus": "audio/ogg",
        "aac": "audio/aac",
        "flac": "audio/flac",
        "wav": "audio/wav",
        "pcm": "audio/pcm",
    }
    assert seen["sizes"]["pcm"][1] == pytest.approx(0.3 * 2 * 24_000, abs=100)
    assert seen["sizes"]["wav"][1] == seen["sizes"]["pcm"][1] + 44
    assert all(size > 500 for _, size in seen["sizes"].values())
    assert seen["events"][0] == "speech.audio.delta" and seen["events"][-1] == "speech.audio.done"
    assert seen["errors"] == [
        ["UnprocessableEntityError", 422, "voice_unknown", "invalid_request_error", "voice"],
        ["UnprocessableEntityError", 422, "invalid_request", "invalid_request_error", "speed"],
        ["InternalServerError", 502, "tts_failed", "server_error", None],
        ["AuthenticationError", 401, "unauthorized", "authentication_error", None],
    ]

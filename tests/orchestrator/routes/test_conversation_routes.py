"""Conversations at the HTTP surface, with a scripted worker behind it."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import jwt
import pytest

from orchestrator.conversation import conversations
from orchestrator.keys import Scope, new
from tests.fakes.hook_receiver import receiving
from tests.fakes.stage import LIVEKIT_SECRET, Stage, stage
from tests.orchestrator import conversation
from tests.orchestrator.test_webhooks import SECRET, verified
from tests.waiting import until

MODEL = "http://127.0.0.1:9/v1"
SCRIPT = Path(conversation.__file__).with_name("scripted_worker.py")


@pytest.fixture
async def talking(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    monkeypatch.setattr(conversations, "WORKER", (str(SCRIPT),))
    async with stage(
        conversation_python=sys.executable,
        llm_base_url=MODEL,
        llm_model="a-model",
        stt_base_url=MODEL,
        allow_private_urls=True,
    ) as ready:
        yield ready


async def test_a_session_with_a_conversation_is_talked_to(talking: Stage) -> None:
    started = await talking.start(conversation={"instructions": "Be brief."})
    session_id = started["session_id"]
    assert started["conversation"] == {"llm": "a-model", "stt": "default", "tts": "embedded"}
    grants = jwt.decode(started["viewer_token"], LIVEKIT_SECRET, algorithms=["HS256"])["video"]
    assert grants["canPublish"] and grants["canPublishData"] and grants["canPublishSources"] == ["microphone"]
    asked = talking.agent.only.request
    assert asked.livekit_agent == f"conversation-{session_id}" and asked.room == "stage"
    answer = await talking.http.post(f"/session/{session_id}/chat", json={"text": "Hello?"})
    assert answer.status_code == 202 and answer.json()["message_id"].startswith("msg_")

    async def listed() -> list[dict[str, object]]:
        found: list[dict[str, object]] = (await talking.http.get(f"/session/{session_id}/messages")).json()["messages"]
        return found

    (message,) = await until(listed)
    assert (message["id"], message["role"], message["text"]) == (answer.json()["message_id"], "user", "Hello?")
    shown = (await talking.http.get(f"/session/{session_id}")).json()["conversation"]
    assert shown == {**started["conversation"], "state": shown["state"]} and shown["state"]
    answer = await talking.http.post(f"/session/{session_id}/speak", json={"text": " One line. "})
    assert answer.status_code == 202, answer.text
    conversation = talking.app.state.context.conversations.get(session_id)
    await until(lambda: not conversation.waiting)  # the worker has it
    for body, field in (({"text": "One.", "speed": 1.2}, "speed"), ({"text": "  "}, "text")):
        answer = await talking.http.post(f"/session/{session_id}/speak", json=body)
        assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (422, "invalid_request", field)
    growing = {"content": "One.", "headers": {"Content-Type": "text/plain"}}
    answer = await talking.http.post(f"/session/{session_id}/speak", **growing)
    assert (answer.status_code, answer.json()["code"]) == (409, "speech_elsewhere")


async def test_a_session_without_one_has_neither_chat_nor_messages(talking: Stage) -> None:
    session_id = (await talking.start())["session_id"]
    for answer in (
        await talking.http.post(f"/session/{session_id}/chat", json={"text": "Hello?"}),
        await talking.http.get(f"/session/{session_id}/messages"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (409, "session_conflict")


@pytest.mark.parametrize(
    ("more", "status", "code"),
    [
        ({"speaker": "someone"}, 422, "invalid_request"),
        ({"audio_source": "datastream", "speaker": "someone"}, 422, "invalid_request"),
        ({"connect_livekit": False}, 422, "invalid_request"),
        ({"conversation": {"instructions": ""}}, 422, "invalid_request"),
        ({"conversation": {"llm": {"base_url": "http", "model": "m"}}}, 422, "invalid_request"),
    ],
)
async def test_what_does_not_go_together_is_refused(
    talking: Stage, more: dict[str, object], status: int, code: str
) -> None:
    body = {"room": "stage", "engine": "pattern", "conversation": {}, **more}
    answer = await talking.http.post("/session/start", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert not talking.agent.sessions


async def test_without_the_environment_a_start_fails_and_leaves_nothing() -> None:
    async with stage(conversation_python="/nowhere/python") as running:
        body = {"room": "stage", "engine": "pattern", "conversation": {}}
        answer = await running.http.post("/session/start", json=body)
        assert (answer.status_code, answer.json()["code"]) == (503, "conversation_unavailable"), answer.text
        assert (await running.http.get("/sessions")).json() == {"sessions": []}
        await until(lambda: not running.agent.sessions)


async def test_only_an_operator_says_where_the_models_are(talking: Stage, tmp_path: Path) -> None:
    own: dict[str, Any] = {"llm": {"base_url": "http://127.0.0.1:9/v1/", "model": "my-model"}}
    started = await talking.start(conversation=own)
    assert started["conversation"] == {"llm": "my-model", "stt": "default", "tts": "embedded"}
    key, entry = new("an-app", Scope.STARTER)
    talking.app.state.context.credentials.keys.replace([entry.made()])
    for choice in (
        own,
        {"stt": own["llm"]},
        {"tts": own["llm"]},
        {"realtime": own["llm"]},
        {"llm": {"provider": "livekit", "model": "a/b"}},
    ):
        answer = await talking.http.post(
            "/session/start",
            json={"room": "stage", "engine": "pattern", "conversation": choice},
            headers={"Authorization": f"Bearer {key}"},
        )
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), answer.text


def any_given_up(seen: list[dict[str, Any]], call_id: str) -> bool:
    finished = [event for event in seen if event["type"] == "tool.finished"]
    return (call_id, "cancelled") in [(event["call_id"], event.get("error")) for event in finished]


async def test_a_function_is_called_for_the_worker_and_given_up_with_it(talking: Stage) -> None:
    async with receiving(None) as receiver:
        receiver.content = b"It is on its way."
        tool = {"name": "order", "url": f"http://127.0.0.1:{receiver.port}/order"}
        started = await talking.start(conversation={"tools": [tool]}, webhook_secret=SECRET)
        session_id = started["session_id"]
        seen: list[dict[str, Any]] = []
        talking.app.state.context.events.listen(lambda event: seen.append(json.loads(event.text)))

        async def chat(text: str) -> None:
            assert (await talking.http.post(f"/session/{session_id}/chat", json={"text": text})).status_code == 202

        def events(kind: str) -> list[dict[str, Any]]:
            return [event for event in seen if event["type"] == kind]

        await chat('call {"call_id": "call_1", "name": "order", "arguments": {}}')
        (hook,) = await receiver.wait(1)
        assert hook.event["session_id"] == session_id and hook.event["room"] == "stage" and verified(hook, SECRET)

        await until(lambda: "call_1 True It is on its way." in [event["text"] for event in events("reply.finished")])
        receiver.hold.clear()
        for call_id, ending in (("call_2", "give up call_2"), ("call_3", "die"), ("call_4", "leave")):
            await chat("call " + json.dumps({"call_id": call_id, "name": "order", "arguments": {}}))
            await receiver.wait(int(call_id[-1]))
            await chat(ending)
            await until(partial(any_given_up, seen, call_id))
        await chat('call {"call_id": "call_5", "name": "order", "arguments": {}}')
        await receiver.wait(5)
        await talking.http.post(f"/session/{session_id}/stop")
        await until(lambda: not talking.app.state.context.tools._running)


@pytest.mark.parametrize(
    ("tool", "code", "field"),
    [
        ({"name": "a b", "url": "http://127.0.0.1/"}, "invalid_request", "conversation.tools.0.name"),
        ({"name": "a", "url": "ftp://127.0.0.1/?key=s3cret"}, "invalid_request", "conversation.tools.0.url"),
        ({"name": "a", "url": "http://169.254.169.254/"}, "webhook_url_forbidden", "conversation.tools.0.url"),
        (
            {"name": "a", "url": "http://127.0.0.1/", "parameters": {"type": "object", "properties": 1}},
            "invalid_request",
            "conversation.tools.0.parameters",
        ),
    ],
)
async def test_a_bad_function_is_refused_with_its_place(
    talking: Stage, tool: dict[str, object], code: str, field: str
) -> None:
    body = {"room": "stage", "engine": "pattern", "conversation": {"tools": [tool]}}
    answer = await talking.http.post("/session/start", json=body)
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (422, code, field), answer.text
    assert "s3cret" not in answer.text and not talking.agent.sessions

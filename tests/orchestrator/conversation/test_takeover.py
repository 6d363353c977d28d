"""The next process goes on with a session's conversation and its history."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.conversation import conversations as module
from orchestrator.store.sqlite import SqliteStore
from tests.fakes.stage import Stage, stage
from tests.orchestrator.conversation.test_conversations import SCRIPT
from tests.waiting import NEVER_S, turns, until

MODELS = {"base_url": "http://127.0.0.1:9/v1", "model": "a-model", "api_key": "key-of-a-model"}
CONVERSATION = {"instructions": "Be brief.", "llm": MODELS, "stt": MODELS}


async def messages(running: Stage, session_id: str) -> list[tuple[str, str, bool]]:
    """What `GET …/messages` answers; empty while the session is not there."""
    answer = await running.http.get(f"/session/{session_id}/messages")
    listed = answer.json().get("messages", [])
    return [(each["role"], each["text"], each["interrupted"]) for each in listed]


async def chat(running: Stage, session_id: str, text: str) -> None:
    answer = await running.http.post(f"/session/{session_id}/chat", json={"text": text})
    assert answer.status_code == 202, answer.text


def talk(running: Stage, session_id: str) -> Any:
    return running.app.state.context.sessions.registry.get(session_id).talk


async def test_the_next_process_goes_on_with_the_conversation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORKER", SCRIPT)
    monkeypatch.setattr(module, "RESUME_S", (0.01, 0.05))
    path = str(tmp_path / "o.db")
    async with stage(store_path=path, conversation_python=sys.executable) as running:
        session_id = (await running.start(conversation=CONVERSATION))["session_id"]
        await chat(running, session_id, "Remember me.")
        await chat(running, session_id, "speak")
        said = [("user", "Remember me.", False), ("user", "speak", False)]
        await until(lambda: talk(running, session_id).pack() and talk(running, session_id)._half is not None)
        assert await messages(running, session_id) == said
    store = SqliteStore(path, 600)
    await store.open()
    (record,) = await store.sessions()
    await store.aclose()
    assert (
        record.talk and "Remember" not in record.model_dump_json() and "key-of-a-model" not in record.model_dump_json()
    )
    async with stage(store_path=path, conversation_python=sys.executable) as running:
        half = ("assistant", "half a ", True)
        await until(lambda: talk(running, session_id) and talk(running, session_id).trouble)
        assert await messages(running, session_id) == [*said, half] and talk(running, session_id).models == {}
        running.app.state.context.address.listens(int(running.url.rsplit(":", 1)[1]))  # as `serve` does once it listens
        await until(lambda: talk(running, session_id).models)
        await chat(running, session_id, "And now?")

        async def answered() -> bool:
            return (await messages(running, session_id))[3:] == [("user", "And now?", False)]

        await until(answered)
        assert talk(running, session_id).models == {"llm": "a-model", "stt": "a-model", "tts": "embedded"}
        await running.http.post(f"/session/{session_id}/stop")
        assert len(await messages(running, session_id)) == 4, "also after its end"


async def test_a_process_that_drains_lets_an_answer_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORKER", SCRIPT)
    async with stage(conversation_python=sys.executable) as running:
        session_id = (await running.start(conversation=CONVERSATION))["session_id"]
        await chat(running, session_id, "thinking")
        await until(lambda: talk(running, session_id).state == "thinking")
        draining = asyncio.create_task(running.app.state.context.sessions.drain(NEVER_S))
        await until(lambda: running.app.state.context.sessions.draining)
        await turns(20)
        assert not draining.done(), "the answer has not been said"
        await chat(running, session_id, "listening")
        async with asyncio.timeout(NEVER_S):
            await draining


async def test_a_process_that_has_no_conversations_goes_on_with_the_avatar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WORKER", SCRIPT)
    monkeypatch.setattr(module, "RESUME_S", (0.01, 0.05))
    path = str(tmp_path / "o.db")
    async with stage(store_path=path, conversation_python=sys.executable) as running:
        session_id = (await running.start(conversation=CONVERSATION))["session_id"]
        await chat(running, session_id, "Remember me.")
        await until(lambda: talk(running, session_id).messages)
    async with stage(store_path=path) as running:
        context = running.app.state.context
        monkeypatch.setattr(context.conversations, "_options", module.ConversationOptions())

        async def trouble() -> str | None:
            sessions = (await running.http.get("/debug/audio")).json()["sessions"]
            found = next((each["conversation"] for each in sessions if each["session_id"] == session_id), None)
            return str(found["diagnosis"]["message"]) if found and found["diagnosis"]["code"] == "starting" else None

        await until(trouble)

        async def ready() -> bool:
            return (await running.http.get(f"/session/{session_id}")).json()["state"] == "ready"

        await until(ready)
        assert await messages(running, session_id) == [("user", "Remember me.", False)]

"""The worker's host: events and messages come through, and a lost worker gets its conversations back with their history."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.conversation import conversations as module
from orchestrator.conversation.conversation_messages import Provider
from orchestrator.conversation.conversations import Conversations, Place
from orchestrator.conversation.options import ConversationOptions, ConversationRequest
from orchestrator.events import EventBus
from orchestrator.metrics import Metrics
from tests.waiting import until

MODEL = Provider(base_url="http://127.0.0.1:9/v1", model="a-model")
PLACE = Place("ws://127.0.0.1:9", lambda: "token", "avatar-1")
SCRIPT = (str(Path(__file__).with_name("scripted_worker.py")),)


class Host:
    """Conversations with the scripted worker, and what they published."""

    def __init__(self, python: str | None = sys.executable) -> None:
        self.events: list[dict[str, object]] = []
        bus = EventBus(Metrics())
        bus.listen(lambda event: self.events.append(json.loads(event.text)))
        options = ConversationOptions(python=python, llm=MODEL, stt=MODEL)
        self.metrics = Metrics()
        self.conversations = Conversations(options, bus, self.metrics, lambda: MODEL, SCRIPT)

    async def begin(self, session_id: str = "ses_1") -> dict[str, str]:
        request = ConversationRequest(instructions="Be brief.")
        return (await self.conversations.begin(session_id, request, PLACE)).models

    async def replied(self, text: str) -> None:
        await until(lambda: text in [event.get("text") for event in self.events])

    def chat(self, text: str) -> str:
        return self.conversations.chat("ses_1", text)

    def opened(self) -> list[object]:
        return [event["text"] for event in self.events if "opened with" in str(event.get("text"))]

    def texts(self) -> list[str]:
        return [message.text for message in self.conversations.get("ses_1").messages]


@pytest.fixture
async def host(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Host]:
    monkeypatch.setattr(module, "BACKOFF_S", (0.01, 0.02))
    monkeypatch.setattr(module, "REOPEN_S", (0.01, 0.02))
    made = Host()
    try:
        yield made
    finally:
        await made.conversations.aclose()


async def test_events_and_messages_come_through(host: Host) -> None:
    assert (
        await host.begin()
        == {"llm": "a-model", "stt": "a-model", "tts": "embedded"}
        == host.conversations.view("ses_1")
    )
    await host.replied("opened with 0 messages, a-model")
    (event,) = [event for event in host.events if event["type"] == "reply.finished"]
    assert event["session_id"] == "ses_1" and event["interrupted"] is False
    assert event["data"] == {"text": event["text"], "interrupted": False}
    message_id = host.chat("Hello?")
    await until(lambda: host.texts() == ["Hello?"])
    assert host.conversations.get("ses_1").messages[0].id == message_id
    host.conversations.interrupt("ses_of_no_conversation")
    host.conversations.interrupt("ses_1")
    await host.replied("no more")


@pytest.mark.parametrize("fault", ["die", "babble", "leave"])
async def test_a_lost_worker_gets_its_conversations_back_with_their_history(host: Host, fault: str) -> None:
    await host.begin()
    await host.replied("opened with 0 messages, a-model")
    host.chat("Remember me.")
    await until(lambda: host.texts() == ["Remember me."])
    host.chat(fault)
    await host.replied("opened with 1 messages, a-model, one to answer")
    states = [event["state"] for event in host.events if event["type"] == "conversation.state"]
    assert states[0] == "away", "a client learns of the loss"
    host.chat("And now?")
    await until(lambda: host.texts() == ["Remember me.", "And now?"])


async def test_texts_wait_for_a_worker_that_is_not_there_yet(host: Host) -> None:
    await host.begin()  # its process takes longer to start
    for number in range(module.WAITING_MAX):
        host.chat(f"text {number}")
    with pytest.raises(ProblemError) as caught:
        host.chat("one too many")
    assert (caught.value.code, caught.value.limit) == (ErrorCode.SESSION_CONFLICT, module.WAITING_MAX)
    await until(lambda: host.texts() == [f"text {number}" for number in range(module.WAITING_MAX)])


async def test_a_worker_that_hangs_is_replaced(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE_S", 3.0)
    host.conversations.worker.times = replace(host.conversations.worker.times, exit_s=0.1)
    await host.begin()
    await host.replied("opened with 0 messages, a-model")
    hung = host.conversations.worker.pid
    assert hung is not None
    host.chat("Remember me.")
    await until(lambda: host.texts() == ["Remember me."])
    host.chat("hang")
    await host.replied("opened with 1 messages, a-model, one to answer")
    assert host.conversations.worker.pid != hung and not psutil.pid_exists(hung)


async def test_after_the_end_nothing_is_said_and_no_process_is_left(host: Host) -> None:
    await host.begin()
    await host.replied("opened with 0 messages, a-model")
    pid = host.conversations.worker.pid
    assert pid is not None
    host.conversations.end("ses_1")
    with pytest.raises(ProblemError) as caught:
        host.conversations.chat("ses_1", "Hello?")
    assert caught.value.code is ErrorCode.SESSION_CONFLICT and "no conversation" in str(caught.value)
    await host.conversations.aclose()
    await host.conversations.aclose()
    assert not psutil.pid_exists(pid) and not host.conversations.worker.running


async def test_as_many_as_there_are_places(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONVERSATIONS_MAX", 1)
    await host.begin()
    with pytest.raises(ProblemError) as caught:
        await host.begin("ses_2")
    assert caught.value.code is ErrorCode.AT_CAPACITY and host.conversations.view("ses_2") is None
    host.conversations.end("ses_1")
    await host.begin("ses_2")


async def test_without_its_environment_it_is_refused_with_what_to_do() -> None:
    host = Host(python=None)
    with pytest.raises(ProblemError, match="tools/setup conversation") as caught:
        await host.begin()
    assert caught.value.code is ErrorCode.CONVERSATION_UNAVAILABLE and caught.value.field == "conversation"
    await host.conversations.aclose()


async def test_an_embedded_model_that_does_not_start_gives_the_place_back(host: Host) -> None:
    options = ConversationOptions(python=sys.executable, stt=MODEL)  # this interpreter has no llama.cpp
    conversations = Conversations(options, EventBus(Metrics()), Metrics(), lambda: MODEL, SCRIPT)
    with pytest.raises(ProblemError, match="embedded llm did not start") as caught:
        await conversations.begin("ses_1", ConversationRequest(), PLACE)
    assert caught.value.code is ErrorCode.CONVERSATION_UNAVAILABLE and conversations.view("ses_1") is None
    await conversations.aclose()


async def test_a_conversation_that_never_opens_is_tried_less_and_less_often(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REOPEN_S", (0.01, 1e9))
    await host.begin()
    await host.replied("opened with 0 messages, a-model")
    for losses in (1, 2):
        host.chat("leave")
        await until(lambda: host.conversations.get("ses_1").losses == losses)  # noqa: B023 - it is called in this turn
        await until(lambda: len(host.opened()) == losses + 1)  # noqa: B023
    monkeypatch.setattr(module, "REOPEN_S", (1e9, 1e9))
    host.chat("leave")
    await until(lambda: host.conversations.get("ses_1").losses == 3)
    assert host.conversations.get("ses_1").reopening is not None
    pid = host.conversations.worker.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)  # the next worker opens all of them at once, and none of them twice
    await until(lambda: len(host.opened()) == 4)
    assert host.conversations.get("ses_1").reopening is None


async def test_a_reply_in_the_middle_of_which_the_worker_died_ends_there(host: Host) -> None:
    await host.begin()
    await host.replied("opened with 0 messages, a-model")
    host.chat("speak")
    await until(lambda: host.conversations.get("ses_1")._half is not None)
    host.chat("die")
    await host.replied("opened with 2 messages, a-model")
    assert host.texts() == ["speak", "half a "]
    cut = [event["data"] for event in host.events if event["type"] == "reply.finished" and event["interrupted"]]
    assert cut == [{"text": "half a", "interrupted": True}], "no client waits for its end"


async def test_figures_of_conversations(host: Host) -> None:
    await host.begin()
    await host.replied("opened with 0 messages, a-model")
    host.chat("turn")
    host.chat("fail")
    host.chat("late")
    host.chat("die")
    await until(lambda: len(host.opened()) == 2)

    def figure(name: str, **labels: str) -> float | None:
        return host.metrics.registry.get_sample_value(f"avatar_conversation{name}", labels)

    assert figure("s") == 1 and figure("_turns_total") == 1 and figure("_worker_losses_total") == 1
    assert figure("_microphone_late_total") == 1
    assert figure("_wait_seconds_sum", part="heard") == pytest.approx(0.4)
    assert figure("_wait_seconds_count", part="thought") == 1
    assert figure("_provider_errors_total", part="llm") == 1

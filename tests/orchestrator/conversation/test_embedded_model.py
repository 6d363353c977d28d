"""The embedded models' processes: one that is lost runs again where it was, or says where it is now."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.conversation.conversation_messages import Provider
from orchestrator.conversation.conversations import Conversations, Place
from orchestrator.conversation.embedded.__main__ import free_port
from orchestrator.conversation.embedded_model import EmbeddedModel
from orchestrator.conversation.options import ConversationOptions, ConversationRequest
from orchestrator.events import EventBus
from orchestrator.metrics import Metrics
from tests.waiting import until

SERVER = f"""#!{sys.executable}
import argparse, os, socket, sys
from orchestrator import worker_pipe
from orchestrator.conversation.embedded.__main__ import free_port
parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, default=0)
arguments, _ = parser.parse_known_args([each for each in sys.argv[1:] if each != "-m"])
wanted = 0 if os.path.exists(__file__ + ".elsewhere") else arguments.port
server = socket.create_server(("127.0.0.1", free_port(wanted)))
sys.stdout.buffer.write(worker_pipe.encode({{"port": server.getsockname()[1]}}))
sys.stdout.flush()
sys.stdin.read()
"""


class Model:
    """An embedded model whose server is a socket, and how often it moved."""

    def __init__(self, python: Path) -> None:
        self.moves = 0
        self.model = EmbeddedModel("llm", str(python), 1, self._moved)

    def _moved(self) -> None:
        self.moves += 1

    async def killed(self) -> None:
        """Kills the server; returns when another one runs."""
        pid = self.model.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: self.model.pid not in (None, pid))


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Model]:
    program = tmp_path / "python"
    program.write_text(SERVER)
    program.chmod(0o700)
    made = Model(program)
    try:
        yield made
    finally:
        await made.model.aclose()


async def test_a_killed_model_runs_again_on_its_port(running: Model) -> None:
    await running.model.start()
    before = running.model.provider
    await running.killed()
    await running.model.start()
    assert running.model.provider == before and running.moves == 0


async def test_a_model_whose_port_is_taken_says_where_it_is_now(running: Model, tmp_path: Path) -> None:
    await running.model.start()
    before = running.model.provider
    (tmp_path / "python.elsewhere").touch()
    await running.killed()
    await until(lambda: running.moves == 1)
    assert running.model.provider != before and running.model.provider.api_key == before.api_key


def test_a_port_that_is_taken_is_not_asked_for() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = other.getsockname()[1]
        assert free_port(port) == 0
    assert free_port(port) == port


async def test_a_model_that_does_not_start_is_said_so_and_tried_again(tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o700)
    model = Model(program).model
    for _ in range(2):
        with pytest.raises(ProblemError, match="embedded llm did not start") as caught:
            await model.start()
        assert caught.value.code is ErrorCode.CONVERSATION_UNAVAILABLE and model.pid is None
    program.write_text(SERVER)
    await model.start()
    assert model.pid is not None
    await model.aclose()
    assert model.pid is None


async def test_it_says_that_it_calls_no_functions(tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text(SERVER)
    program.chmod(0o700)
    events: list[dict[str, object]] = []
    bus, metrics = EventBus(Metrics()), Metrics()
    bus.listen(lambda event: events.append(json.loads(event.text)))
    model = Provider(base_url="http://127.0.0.1:9/v1", model="a-model")
    options = ConversationOptions(python=str(program), stt=model)
    conversations = Conversations(options, bus, metrics, lambda: model)
    place = Place("ws://127.0.0.1:9", lambda: "token", "avatar-1")
    tools = {"tools": [{"name": "order", "url": "https://desk.example/"}]}
    try:
        await conversations.begin("ses_1", ConversationRequest(), place)
        assert not events
        await conversations.begin("ses_2", ConversationRequest.model_validate(tools), place)
        (event,) = [event for event in events if event["session_id"] == "ses_2"]
        assert event["type"] == "warning" and event["data"]["code"] == "conversation_tools_unused"  # type: ignore[index]
    finally:
        await conversations.aclose()


async def test_the_worker_starts_beside_the_models_and_is_not_said_to_be_away(tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/started\ncase "$*" in *embedded*) exec sleep 600;; esac\nexit 3\n'
    )
    program.chmod(0o700)
    events: list[str] = []
    bus, metrics = EventBus(Metrics()), Metrics()
    bus.listen(lambda event: events.append(event.text))
    here = Provider(base_url="http://127.0.0.1:9/v1", model="a-model")
    conversations = Conversations(ConversationOptions(python=str(program)), bus, metrics, lambda: here)
    beginning = asyncio.create_task(
        conversations.begin("ses_1", ConversationRequest(), Place("ws://127.0.0.1:9", lambda: "token", "avatar-1"))
    )
    try:
        started = tmp_path / "started"
        await until(lambda: started.exists() and started.read_text().count("conversation.worker") >= 2)
        assert " llm " in started.read_text() and " stt " in started.read_text()
        assert not beginning.done() and not events, "it was lost twice before there was a conversation"
    finally:
        beginning.cancel()
        await asyncio.gather(beginning, return_exceptions=True)
        await conversations.aclose()

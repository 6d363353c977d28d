"""Functions of a real conversation worker: the model calls them, the service posts, and the answer is spoken."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from musetalk_tools.livekit_server import LiveKitAccess
from musetalk_tools.processes import Child, free_port
from orchestrator.conversation import tool_calls
from tests.fakes.hook_receiver import receiving
from tests.fakes.openai_models import FakeModels
from tests.integrations.conversation.test_talk import pytestmark, talk
from tests.waiting import until

__all__ = ["pytestmark"]
PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "conversation.md"


@asynccontextmanager
async def documented_desk(folder: Path) -> AsyncIterator[dict[str, Any]]:
    """The documentation's help desk at a free port; its body of `/session/start`."""
    section = PAGE.read_text("utf-8").partition("## A help desk with tools")[2]
    code = section.partition("```python\n")[2].partition("```")[0]
    found = re.search(r"-d '(\{.*?\})'\n```", section, re.DOTALL)
    assert found is not None
    port = free_port()
    (folder / "desk.py").write_text(code.replace("9000", str(port)))
    desk = Child("desk", [sys.executable, str(folder / "desk.py")], {})
    await desk.start()

    async def listens() -> bool:
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            with closing(writer):
                return True
        return False

    try:
        await until(listens)
        yield json.loads(found[1].replace("9000", str(port)))
    finally:
        await desk.stop()


@pytest.mark.network
async def test_the_documented_help_desk_answers(livekit_server: LiveKitAccess, tmp_path: Path) -> None:
    async with documented_desk(tmp_path) as body:
        models = FakeModels(replies=[[("look_up_order", {"number": "a17"})], "It arrives on Tuesday."])
        given = body["conversation"]
        async with talk(livekit_server, models, webhook_secret=body["webhook_secret"], tools=given["tools"]) as here:
            await here.chat("Where is order A17?")
            await until(lambda: here.of("reply.finished"))
            assert [event["text"].strip() for event in here.of("reply.finished")] == ["It arrives on Tuesday."]
            (offered,) = models.offered
            tool = given["tools"][0]
            assert offered["function"] == {key: tool[key] for key in ("name", "description", "parameters")}
            assert models.asked[1][-1] == ("tool", "It is on its way and arrives on Tuesday.")
            (started,), (finished,) = here.of("tool.started"), here.of("tool.finished")
            assert started["name"] == "look_up_order" and finished["ok"] and started["call_id"] == finished["call_id"]
            assert [(role, text) for role, text, _ in await here.messages()] == [
                ("user", "Where is order A17?"),
                ("assistant", "It arrives on Tuesday."),
            ]


@pytest.mark.network
async def test_several_calls_in_one_turn_and_one_that_fails(livekit_server: LiveKitAccess) -> None:
    async with receiving(None) as receiver:
        receiver.answers, receiver.content = [200, 500], b"one of both"
        url = f"http://127.0.0.1:{receiver.port}/"
        tools = [{"name": name, "url": url} for name in ("left", "right")]
        models = FakeModels(replies=[[("left", {}), ("right", {}), ("middle", {})], "Done."])
        async with talk(livekit_server, models, tools=tools) as here:
            await here.chat("Do both.")
            await until(lambda: here.of("reply.finished"))
            results = sorted(text for role, text in models.asked[1] if role == "tool")
            assert (
                results[0] == "The tool answered with HTTP 500: one of both"
                and "Unknown function: middle" in results[1]
            )
            assert results[2] == "one of both"
            assert sorted(event["ok"] for event in here.of("tool.finished")) == [False, True]


async def test_a_call_that_is_never_answered_ends_by_an_interruption_or_in_time(
    livekit_server: LiveKitAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with receiving(None) as receiver:
        receiver.hold.clear()
        models = FakeModels(replies=[[("slow", {})], "Never mind.", [("slow", {})], "I could not look."])
        tools = [{"name": "slow", "url": f"http://127.0.0.1:{receiver.port}/"}]
        async with talk(livekit_server, models, tools=tools) as here:
            await here.chat("Look.")
            await receiver.wait(1)
            await here.chat("Leave it.")
            await until(lambda: here.of("reply.finished"))
            (finished,) = here.of("tool.finished")
            assert (finished["ok"], finished["error"]) == (False, "cancelled")
            assert here.of("reply.finished")[0]["text"].strip() == "Never mind."
            assert ("tool", "The user interrupted: the call was given up.") in models.asked[1]

            monkeypatch.setattr(tool_calls, "TOOL_S", 0.2)
            await here.chat("Look again.")
            await until(lambda: len(here.of("reply.finished")) == 2)
            assert models.asked[-1][-1] == ("tool", "The tool did not answer within 0.2 seconds.")
            finished = here.of("tool.finished")[-1]
            assert (finished["ok"], finished["error"]) == (False, "timeout")


async def test_a_forbidden_address_is_refused_at_the_start(livekit_server: LiveKitAccess) -> None:
    tools = [{"name": "inside", "url": "http://169.254.169.254/latest"}]
    with pytest.raises(AssertionError, match=r"webhook_url_forbidden.*conversation\.tools\.0\.url"):
        async with talk(livekit_server, FakeModels(), tools=tools):
            pass

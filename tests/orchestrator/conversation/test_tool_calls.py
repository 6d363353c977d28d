"""Calls of functions: what is posted, what the model reads, and what ends a call."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.conversation import tool_calls as module
from orchestrator.conversation.conversation_messages import ToolCall, ToolResult
from orchestrator.conversation.function_tools import FunctionTool
from orchestrator.conversation.tool_calls import ToolCaller, ToolCalls
from orchestrator.events import EventBus, SessionEvent
from orchestrator.metrics import Metrics
from orchestrator.webhooks import secret
from tests.fakes.hook_receiver import Receiver, receiving
from tests.orchestrator.test_webhooks import AUTHORITY, SECRET, local, verified
from tests.waiting import turns, until

PARAMETERS = {"type": "object", "properties": {"number": {"type": "string"}}, "required": ["number"]}


class Desk:
    """Calls of session `ses_1`, with what the model was given and what the session's readers see."""

    def __init__(self, url: str, *, secrets: tuple[bytes, ...] = (secret(SECRET),), **options: Any) -> None:
        self.metrics = Metrics()
        self.results: list[ToolResult] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.bus = bus = EventBus(self.metrics)
        bus.listen(lambda event: self.events.append((event.type, json.loads(event.text)["data"])))
        options = {"allow_private": True, "resolver": local, "ssl_context": AUTHORITY.trust, **options}
        self.calls = ToolCalls(lambda _: ToolCaller("hall", secrets), bus, self.metrics, **options)
        self.tools = [FunctionTool(name="order", parameters=PARAMETERS, url=url)]

    def begin(self, call_id: str = "call_1", name: str = "order", arguments: dict[str, Any] | None = None) -> None:
        given: dict[str, Any] = {"number": "A17"} if arguments is None else arguments
        call = ToolCall(session_id="ses_1", call_id=call_id, name=name, arguments=given)
        self.calls.begin(call, self.tools, self.results.append)

    async def result(self) -> tuple[bool, str]:
        await until(lambda: self.results)
        (result,) = self.results
        assert (result.session_id, result.call_id) == ("ses_1", "call_1")
        return result.ok, result.text

    def finished(self) -> list[tuple[object, object]]:
        return [(data["ok"], data.get("error")) for kind, data in self.events if kind == "tool.finished"]

    def counted(self, outcome: str) -> float | None:
        return self.metrics.registry.get_sample_value("avatar_tool_calls_total", {"outcome": outcome})


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving(AUTHORITY.server("hooks.example", "127.0.0.1")) as made:
        yield made


@pytest.fixture
async def desk(receiver: Receiver) -> AsyncIterator[Desk]:
    made = Desk(receiver.url("hooks.example"))
    try:
        yield made
    finally:
        await made.calls.aclose()


async def test_a_call_is_posted_signed_and_its_answer_is_text(receiver: Receiver, desk: Desk) -> None:
    receiver.content = '{"state": "on its way", "city": "Köln"}'.encode()
    desk.begin()
    assert await desk.result() == (True, '{"state": "on its way", "city": "Köln"}')
    (hook,) = receiver.hooks
    assert hook.event == {
        "session_id": "ses_1",
        "room": "hall",
        "name": "order",
        "arguments": {"number": "A17"},
        "call_id": "call_1",
    }
    assert verified(hook, SECRET) and hook.headers["webhook-id"] == "call_1"
    assert hook.headers["host"] == f"hooks.example:{receiver.port}"
    assert hook.headers["content-type"] == "application/json" and hook.headers["accept-encoding"] == "identity"
    (started, begun), (finished, ended) = desk.events
    assert (started, begun) == ("tool.started", {"name": "order", "call_id": "call_1"})
    ms = ended.pop("ms")
    assert (finished, ended) == ("tool.finished", {"name": "order", "call_id": "call_1", "ok": True})
    assert isinstance(ms, int) and ms >= 0
    assert desk.counted("ok") == 1
    assert desk.metrics.registry.get_sample_value("avatar_tool_call_seconds_count") == 1


async def test_without_a_secret_it_is_not_signed(receiver: Receiver) -> None:
    desk = Desk(receiver.url("hooks.example"), secrets=())
    desk.begin()
    assert await desk.result() == (True, "Done.")
    assert "webhook-signature" not in receiver.hooks[0].headers
    await desk.calls.aclose()


@pytest.mark.parametrize(
    ("status", "content", "error", "text"),
    [
        (404, b"There is no order A17.", "status", "The tool answered with HTTP 404: There is no order A17."),
        (500, b"", "status", "The tool answered with HTTP 500."),
        (307, b"", "status", "The tool answered with HTTP 307."),
        (200, b"x" * (module.ANSWER_BYTES + 1), "too_large", "The tool's answer is longer than 16384 bytes."),
    ],
)
async def test_an_answer_that_is_none_is_explained_to_the_model(
    receiver: Receiver, desk: Desk, status: int, content: bytes, error: str, text: str
) -> None:
    receiver.answers, receiver.content, receiver.location = [status], content, receiver.url("hooks.example", "/other")
    desk.begin()
    assert await desk.result() == (False, text)
    assert desk.finished() == [(False, error)] and desk.counted(error) == 1
    assert [hook.path for hook in receiver.hooks] == ["/hook?a=1"], "redirects are not followed"


async def test_an_answer_of_just_the_size_that_is_allowed(receiver: Receiver, desk: Desk) -> None:
    receiver.content = b"x" * module.ANSWER_BYTES
    desk.begin()
    assert await desk.result() == (True, "x" * module.ANSWER_BYTES)


async def test_a_tool_that_never_answers(receiver: Receiver, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOOL_S", 0.05)
    receiver.hold.clear()
    desk.begin()
    assert await desk.result() == (False, "The tool did not answer within 0.05 seconds.")
    assert desk.finished() == [(False, "timeout")]


async def test_a_tool_that_breaks_off(receiver: Receiver, desk: Desk) -> None:
    async def breaks(writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()
        raise ConnectionError

    receiver.misbehave = breaks
    desk.begin()
    ok, text = await desk.result()
    assert not ok and text.startswith("The tool could not be reached")
    assert desk.finished() == [(False, "unreachable")]


async def test_arguments_that_do_not_fit_and_unknown_functions_are_not_posted(receiver: Receiver, desk: Desk) -> None:
    desk.begin(arguments={"number": 7})
    ok, text = await desk.result()
    assert not ok and "$.number: 7 is not of type 'string'" in text
    desk.begin("call_2", name="other")
    await until(lambda: len(desk.results) == 2)
    assert not desk.results[1].ok and desk.results[1].text == "There is no function other."
    assert desk.finished() == [(False, "invalid_arguments"), (False, "unknown")] and not receiver.hooks


async def test_an_address_that_changed_its_mind_is_refused_at_the_call() -> None:
    found = ["93.184.216.34"]

    async def resolver(host: str, port: int) -> list[str]:
        return found

    desk = Desk("http://desk.example/order", allow_private=False, resolver=resolver)
    await desk.calls.check(desk.tools)
    found = ["169.254.169.254"]
    desk.begin()
    assert await desk.result() == (False, "The tool's address may not be called.")
    assert desk.finished() == [(False, "forbidden")]
    await desk.calls.aclose()


@pytest.mark.parametrize("url", ["http://127.0.0.1/a", "https://169.254.169.254/a", "http://10.0.0.1:8080/a"])
async def test_what_is_never_posted_to_is_refused_beforehand(url: str) -> None:
    desk = Desk(url, allow_private=False)
    with pytest.raises(ProblemError, match="private, local or reserved") as caught:
        await desk.calls.check(desk.tools)
    assert (caught.value.code, caught.value.field) == (ErrorCode.WEBHOOK_URL_FORBIDDEN, "conversation.tools.0.url")


async def test_a_call_that_is_given_up_ends_and_answers_nothing(receiver: Receiver, desk: Desk) -> None:
    receiver.hold.clear()
    desk.begin()
    desk.begin()  # the same call: once
    await receiver.wait(1)
    desk.calls.cancel("ses_2")
    desk.calls.cancel("ses_1", "call_2")
    assert not desk.finished()
    desk.calls.cancel("ses_1", "call_1")
    await until(desk.finished)
    assert desk.finished() == [(False, "cancelled")] and not desk.results
    desk.calls.cancel("ses_1", "call_1")
    receiver.hold.set()
    desk.begin()
    assert await desk.result() == (True, "Done.")
    assert len(receiver.hooks) == 2


async def test_a_call_that_just_ended_is_made_again_at_once(receiver: Receiver, desk: Desk) -> None:
    again: list[object] = []

    def ended(event: SessionEvent) -> None:
        if event.type == "tool.finished" and not again:  # in the next turn: before the callbacks of the task that ends
            receiver.hold.clear()
            again.append(asyncio.get_running_loop().call_soon(desk.begin))

    desk.bus.listen(ended)
    desk.begin()
    await receiver.wait(2)
    desk.begin()  # the end of the first one has not made the second one forgotten
    await turns()
    assert [kind for kind, _ in desk.events] == ["tool.started", "tool.finished", "tool.started"]
    receiver.hold.set()
    await until(lambda: len(desk.results) == 2)
    assert desk.finished() == [(True, None), (True, None)] and len(receiver.hooks) == 2


async def test_several_at_once_but_not_more_than_may(receiver: Receiver, desk: Desk) -> None:
    receiver.hold.clear()
    for number in range(module.CALLS_MAX + 1):
        desk.begin(f"call_{number}")
    await receiver.wait(module.CALLS_MAX)
    await until(desk.finished)
    assert [result.call_id for result in desk.results] == [f"call_{module.CALLS_MAX}"]
    assert desk.finished() == [(False, "busy")] and len(receiver.hooks) == module.CALLS_MAX
    receiver.hold.set()
    await until(lambda: len(desk.results) == module.CALLS_MAX + 1)
    assert desk.counted("ok") == module.CALLS_MAX


async def test_at_the_end_every_call_is_given_up(receiver: Receiver, desk: Desk) -> None:
    receiver.hold.clear()
    desk.begin()
    await receiver.wait(1)
    await desk.calls.aclose()
    await desk.calls.aclose()
    assert desk.finished() == [(False, "cancelled")] and not desk.results

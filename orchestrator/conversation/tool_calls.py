"""Carries out the function calls of conversations: posts each call of the worker to the tool's webhook and returns its answer.

The addresses come from callers, so the service posts as it does for webhooks: each address is checked, and the worker knows none.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from musetalk_agent.protocol.addresses import AddressRefused, Resolver, system_resolver
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.checked_post import FAILURES, CheckedPosts, PostAnswer
from orchestrator.conversation.conversation_messages import ToolCall, ToolResult
from orchestrator.conversation.function_tools import PORTS, FunctionTool, fault
from orchestrator.events import EventBus
from orchestrator.metrics import Metrics
from orchestrator.webhooks import signed_headers

TOOL_S = 8.0
"""Longest wait for a tool's answer, its name's look-up included: a person waits for the sentence that follows."""
ANSWER_BYTES = 16 << 10
CALLS_MAX = 4
"""Calls of one conversation at once."""
_ERROR_CHARACTERS = 500
"""Of the body of an answer that is no success."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ToolCaller:
    """Of which session a call is: `secrets` sign it; without any it is not signed."""

    room: str
    secrets: Sequence[bytes] = field(repr=False)


class _Failed(Exception):
    """The tool gave no answer. `outcome` is for programs, `text` for the model."""

    def __init__(self, outcome: str, text: str) -> None:
        super().__init__(text)
        self.outcome = outcome
        self.text = text


class ToolCalls:
    """The calls of one event loop. Each is reported as `tool.started` and `tool.finished`.

    Args:
        caller: of a session, by its id.
        allow_private: whether loopback and private addresses may be posted to.
        resolver, ssl_context: how names are resolved, and whom https trusts; by default the public authorities.
    """

    def __init__(
        self,
        caller: Callable[[str], ToolCaller],
        bus: EventBus,
        metrics: Metrics,
        *,
        allow_private: bool = False,
        resolver: Resolver = system_resolver,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._caller = caller
        self._bus = bus
        self._metrics = metrics
        self._posts = CheckedPosts(PORTS, allow_private=allow_private, resolver=resolver, ssl_context=ssl_context)
        self._running: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def check(self, tools: Sequence[FunctionTool]) -> None:
        """Raises ProblemError `webhook_url_forbidden` for an address that would never be posted to."""
        for number, tool in enumerate(tools):
            try:
                await self._posts.check(tool.url)
            except AddressRefused as error:
                where = f"conversation.tools.{number}.url"
                raise ProblemError(
                    ErrorCode.WEBHOOK_URL_FORBIDDEN, f"{where}: {error.detail}", field=where, value=error.value
                ) from error

    def begin(self, call: ToolCall, tools: Sequence[FunctionTool], answer: Callable[[ToolResult], object]) -> None:
        """Makes the call in a task of its own; `answer` gets its result once, and nothing when it is cancelled.

        A call that is under way already is not made again.
        """
        key = (call.session_id, call.call_id)
        # A task that has ended is forgotten a turn of the event loop later.
        running = {each for each, task in self._running.items() if not task.done()}
        if key in running:
            return
        tool = next((each for each in tools if each.name == call.name), None)
        busy = sum(session == call.session_id for session, _ in running) >= CALLS_MAX
        task = asyncio.create_task(self._call(call, tool, busy, answer), name=f"tool-{call.session_id}")
        self._running[key] = task
        task.add_done_callback(lambda _: self._forget(key, task))

    def _forget(self, key: tuple[str, str], task: asyncio.Task[None]) -> None:
        if self._running.get(key) is task:
            del self._running[key]

    def cancel(self, session_id: str | None = None, call_id: str | None = None) -> None:
        """Gives up one call, a session's, or all. Without effect for what is over."""
        for (session, call), task in list(self._running.items()):
            if session_id in (None, session) and call_id in (None, call):
                task.cancel()

    async def aclose(self) -> None:
        """Gives up every call. Idempotent."""
        tasks = list(self._running.values())
        self.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _call(
        self, call: ToolCall, tool: FunctionTool | None, busy: bool, answer: Callable[[ToolResult], object]
    ) -> None:
        begun, outcome, text = time.monotonic(), "cancelled", ""
        self._bus.publish(call.session_id, "tool.started", {"name": call.name, "call_id": call.call_id})
        try:
            if busy:
                raise _Failed("busy", f"{CALLS_MAX} functions run already: try again when they are done.")
            text = await self._answered(call, tool)
            outcome = "ok"
        except _Failed as failure:
            outcome, text = failure.outcome, failure.text
        except Exception:  # noqa: BLE001 - task boundary: the model waits for an answer, whatever broke
            _log.exception("a tool call broke", extra={"session_id": call.session_id})
            outcome, text = "failed", "The tool could not be called."
        finally:
            seconds = time.monotonic() - begun
            self._metrics.tool_calls.labels(outcome=outcome).inc()
            self._metrics.tool_call_seconds.observe(seconds)
            data = {"name": call.name, "call_id": call.call_id, "ok": outcome == "ok", "ms": round(1000 * seconds)}
            if outcome != "ok":
                data["error"] = outcome
            self._bus.publish(call.session_id, "tool.finished", data)
        answer(ToolResult(session_id=call.session_id, call_id=call.call_id, ok=outcome == "ok", text=text))

    async def _answered(self, call: ToolCall, tool: FunctionTool | None) -> str:
        if tool is None:
            raise _Failed("unknown", f"There is no function {call.name}.")
        wrong = fault(tool.parameters, call.arguments)
        if wrong is not None:
            raise _Failed("invalid_arguments", f"The arguments do not fit the function's parameters: {wrong}")
        caller = self._caller(call.session_id)
        body = json.dumps(
            {
                "session_id": call.session_id,
                "room": caller.room,
                "name": call.name,
                "arguments": call.arguments,
                "call_id": call.call_id,
            },
            ensure_ascii=False,
        ).encode("utf-8", "replace")
        headers = {"Accept-Encoding": "identity", **signed_headers(caller.secrets, call.call_id, body)}
        try:
            async with asyncio.timeout(TOOL_S):
                got = await self._posts.post(tool.url, headers, body, ANSWER_BYTES)
        except AddressRefused as error:
            _log.warning("a tool's address was refused", extra={"session_id": call.session_id, "reason": error.detail})
            raise _Failed("forbidden", "The tool's address may not be called.") from error
        except TimeoutError as error:
            raise _Failed("timeout", f"The tool did not answer within {TOOL_S:g} seconds.") from error
        except FAILURES as error:
            raise _Failed("unreachable", f"The tool could not be reached ({type(error).__name__}).") from error
        return _text(got)


def _text(got: PostAnswer) -> str:
    """What the model reads. Raises _Failed for an answer that it cannot use."""
    text = got.body.decode("utf-8", "replace").strip()
    if not 200 <= got.status < 300:
        shown = f": {text[:_ERROR_CHARACTERS]}" if text else "."
        raise _Failed("status", f"The tool answered with HTTP {got.status}{shown}")
    if len(got.body) > ANSWER_BYTES:
        raise _Failed("too_large", f"The tool's answer is longer than {ANSWER_BYTES} bytes.")
    if got.encoding.lower() not in ("", "identity"):
        raise _Failed("failed", f"The tool's answer is compressed ({got.encoding[:40]}).")
    return text or "Done."

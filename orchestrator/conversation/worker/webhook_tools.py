"""The language model's functions in the worker: sends each call over the pipe to the service and waits for its result."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from livekit.agents import RunContext
from livekit.agents.llm import RawFunctionTool, ToolError, function_tool
from livekit.agents.voice import SpeechHandle
from pydantic import BaseModel

from orchestrator.conversation.conversation_messages import ToolCall, ToolCancelled, ToolDescription, ToolResult

WAIT_S = 20.0
"""The service answers within 8 s. After this long the call or its answer was dropped: the pipe was full."""
_ARGUMENTS_CHARACTERS = 64 << 10
"""More than the service takes, and less than a message of the pipe may have."""


class WebhookTools:
    """The functions of one conversation.

    Args:
        report: takes messages for the service; must not block.
    """

    def __init__(self, session_id: str, report: Callable[[BaseModel], None]) -> None:
        self._session_id = session_id
        self._report = report
        self._waiting: dict[str, asyncio.Future[ToolResult]] = {}

    def functions(self, described: Sequence[ToolDescription]) -> list[RawFunctionTool]:
        """For livekit-agents."""
        return [self._function(each) for each in described]

    def take(self, result: ToolResult) -> None:
        """Hands a result to the call that waits for it. Without effect when none does."""
        waiting = self._waiting.get(result.call_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(result)

    async def call(self, name: str, arguments: dict[str, Any], speech: SpeechHandle) -> str:
        """The tool's answer as text. When the user interrupts `speech`, and when this is cancelled, the service gives it up too.

        Raises ToolError with what the model is to know.
        """
        if len(str(arguments)) > _ARGUMENTS_CHARACTERS:
            raise ToolError("The arguments are too long.")
        call_id = f"call_{secrets.token_hex(8)}"
        waiting: asyncio.Future[ToolResult] = asyncio.get_running_loop().create_future()
        self._waiting[call_id] = waiting
        self._report(ToolCall(session_id=self._session_id, call_id=call_id, name=name, arguments=arguments))
        try:
            async with asyncio.timeout(WAIT_S):
                await speech.wait_if_not_interrupted([waiting])
        except TimeoutError:
            raise ToolError("The tool did not answer.") from None
        finally:
            del self._waiting[call_id]
            if not waiting.done():
                self._report(ToolCancelled(session_id=self._session_id, call_id=call_id))
        if not waiting.done():
            raise ToolError("The user interrupted: the call was given up.")
        result = waiting.result()
        if not result.ok:
            raise ToolError(result.text)
        return result.text

    def _function(self, described: ToolDescription) -> RawFunctionTool:
        async def call(raw_arguments: dict[str, object], context: RunContext[Any]) -> str:
            return await self.call(described.name, raw_arguments, context.speech_handle)

        return function_tool(call, raw_schema=described.model_dump())

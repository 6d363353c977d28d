"""Uploads a clip to an agent that lacks it, and repeats the call that needed it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from musetalk_agent.protocol.file_blocks import file_blocks
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.agents.agent_client import AgentClient, AgentLease
from orchestrator.avatars.avatar_storage import AvatarStorage

_Answer = TypeVar("_Answer")


async def with_clip(call: Callable[[], Awaitable[_Answer]], bring: Callable[[], Awaitable[bool]]) -> _Answer:
    """The answer of an agent that may lack the clip: then `bring` hands it over, and the agent is called once more.

    Raises ProblemError: the agent's own, `avatar_not_found` where `bring` returns False.
    """
    try:
        return await call()
    except ProblemError as error:
        if error.code is not ErrorCode.AVATAR_NOT_FOUND or not await bring():
            raise
    return await call()


async def supply(
    folder: AvatarStorage, agents: AgentClient, lease: AgentLease, source: str, filename: str | None = None
) -> bool:
    """Hands an agent a clip; False where it is not in the folder. Raises ProblemError: the agent's own, or `agent_unavailable`."""
    path = await asyncio.to_thread(folder.source, source)
    if path is None:
        return False
    headers = {"Content-Type": "application/octet-stream", **({"X-Filename": filename} if filename else {})}
    await agents.upload(lease, file_blocks(path), headers)
    return True

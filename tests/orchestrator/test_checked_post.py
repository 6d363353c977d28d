"""Posts to strangers: what a receiver that stays silent leaves behind."""

from __future__ import annotations

import asyncio
import gc

from orchestrator.checked_post import CheckedPosts
from tests.orchestrator.test_webhooks import AUTHORITY, local
from tests.waiting import NEVER_S


async def test_a_post_that_is_given_up_in_its_handshake_leaves_no_connection() -> None:
    """httpcore leaves it to the garbage collector, which may not come for long."""
    greeted, gone = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        greeted.set()
        await reader.read()
        gone.set()
        writer.close()

    posts = CheckedPosts({"https": 443}, allow_private=True, resolver=local, ssl_context=AUTHORITY.trust)
    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        posting = asyncio.create_task(posts.post(f"https://hooks.example:{port}/", {}, b"{}"))
        await asyncio.wait_for(greeted.wait(), NEVER_S)
        gc.disable()
        try:
            posting.cancel()
            await asyncio.gather(posting, return_exceptions=True)
            await asyncio.wait_for(gone.wait(), NEVER_S)
        finally:
            gc.enable()
    assert posting.cancelled()

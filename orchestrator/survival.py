"""What keeps sessions beyond the life of a process: the store, the ledger that fills it, adoption, and the reaper."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from orchestrator.reaper import Reaper
from orchestrator.routes.context import Context
from orchestrator.session.takeover import SessionTakeover
from orchestrator.settings import Settings
from orchestrator.store.session_store import SessionStore
from orchestrator.store.sqlite import SqliteStore
from orchestrator.supervision import run_each, supervise

CLOSE_S = 20.0
"""How long each step of the end may take: sessions wait up to ten seconds for agents that do not answer."""


def make_store(settings: Settings) -> SessionStore:
    """The store that the settings name, not yet open."""
    keep_s = settings.session_options.keep_s
    if settings.redis_url is None:
        return SqliteStore(settings.store_path, keep_s)
    from orchestrator.store.redis_store import RedisStore  # the extra [redis]

    return RedisStore(settings.redis_url.get_secret_value(), keep_s)


async def check_store(settings: Settings) -> None:
    """Opens the store and closes it. Raises StoreError: better said before anything is served than by a traceback."""
    store = make_store(settings)
    try:
        await store.open()
    finally:
        await store.aclose()


@asynccontextmanager
async def surviving(context: Context) -> AsyncIterator[None]:
    """Sessions of earlier processes are there when it is entered. When it is left they have ended, or wait for the next process.

    Raises StoreError when the store cannot be opened.
    """
    ledger, sessions = context.ledger, context.sessions
    await ledger.open(sessions.hand_over)
    context.minter.deployment_id = context.ingresses.deployment_id = ledger.store.deployment_id
    context.events.listen(lambda event: ledger.note(event.session_id))
    adoption = SessionTakeover(sessions, ledger, context.metrics)
    reaper = Reaper(
        ledger.store,
        context.rooms,
        context.ingresses,
        lambda: {session.session_id for session in sessions.registry.running()},
        context.metrics,
    )

    def loop(name: str, run: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        return asyncio.create_task(supervise(name, run, context.metrics), name=name)

    writing = [loop("leases", ledger.keep_leases), loop("records", ledger.write_behind)]
    looking: list[asyncio.Task[None]] = []
    try:
        await adoption.first()
        looking += [loop("adoption", adoption.run), loop("reaper", reaper.run)]
        yield
    finally:
        await run_each(
            ("adoption and reaper", partial(_end, looking)),
            ("starts", context.starts.aclose),
            ("sessions", sessions.aclose),
            ("records", ledger.flush),
            ("leases", partial(_end, writing)),
            ("store", ledger.store.aclose),
            within_s=CLOSE_S,
        )


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

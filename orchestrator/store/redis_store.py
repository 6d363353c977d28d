"""The store that several orchestrators share: Redis."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.exceptions import RedisError

from orchestrator.store.base import StoredSession, StoreError

_PREFIX = "musetalk:"
_DEPLOYMENT = _PREFIX + "deployment"
_INDEX = _PREFIX + "sessions"
_ANSWER_S = 2.0
_START_S = 10.0
"""How long a Redis that starts at the same time is waited for."""
_SAVE = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
if ARGV[3] == '' then redis.call('SET', KEYS[2], ARGV[2])
else redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3]) end
redis.call('SADD', KEYS[3], ARGV[4])
return 1
"""
_CLAIM = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) else return 0 end"


class RedisStore:
    """Records as JSON, leases as keys that expire. Every call is given up after two seconds."""

    name = "redis"
    durable = True
    shared = True

    def __init__(self, url: str, keep_s: float) -> None:
        self._redis: Redis = Redis.from_url(
            url, decode_responses=True, socket_timeout=_ANSWER_S, socket_connect_timeout=_ANSWER_S, protocol=2
        )
        self._where = f"{urlsplit(url).hostname}:{urlsplit(url).port or 6379}"
        self._keep_s = keep_s
        self._calls: set[asyncio.Future[Any]] = set()
        self.deployment_id = ""

    async def open(self) -> None:
        deadline = asyncio.get_running_loop().time() + _START_S
        while True:
            try:
                self.deployment_id = await self._deployment("dep_" + secrets.token_hex(8))
                return
            except StoreError:
                if asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(0.2)

    async def aclose(self) -> None:
        if self._calls:
            await asyncio.wait(self._calls, timeout=2 * _ANSWER_S)
        await self._redis.aclose()

    async def save(self, session: StoredSession) -> bool:
        keep_ms: int | str = ""
        if session.ended_at is not None:
            keep_ms = max(1, round((session.ended_at + self._keep_s - time.time()) * 1000))
        keys = (_lease(session.session_id), _record(session.session_id), _INDEX)
        values = (session.owner, session.model_dump_json(), str(keep_ms), session.session_id)
        return bool(await self._call(self._redis.eval(_SAVE, len(keys), *keys, *values)))

    async def load(self, session_id: str) -> StoredSession | None:
        record = await self._call(self._redis.get(_record(session_id)))
        return StoredSession.model_validate_json(record) if record else None

    async def delete(self, session_id: str) -> None:
        await self._call(self._redis.delete(_record(session_id), _lease(session_id)))
        await self._call(self._redis.srem(_INDEX, session_id))

    async def sessions(self) -> list[StoredSession]:
        await self._deployment(self.deployment_id)
        ids = [str(member) for member in await self._call(self._redis.smembers(_INDEX))]
        if not ids:
            return []
        records = await self._call(self._redis.mget([_record(session_id) for session_id in ids]))
        gone = [session_id for session_id, record in zip(ids, records, strict=True) if record is None]
        if gone:
            await self._call(self._redis.srem(_INDEX, *gone))
        sessions = [StoredSession.model_validate_json(record) for record in records if record]
        return sorted(sessions, key=lambda session: session.created_at)

    async def claim(self, session_id: str, owner: str, ttl_s: float) -> bool:
        return bool(await self._call(self._redis.eval(_CLAIM, 1, _lease(session_id), owner, str(round(ttl_s * 1000)))))

    async def holder(self, session_id: str) -> str | None:
        holder = await self._call(self._redis.get(_lease(session_id)))
        return None if holder is None else str(holder)

    async def release(self, session_id: str, owner: str) -> None:
        await self._call(self._redis.eval(_RELEASE, 1, _lease(session_id), owner))

    async def _deployment(self, ours: str) -> str:
        """The deployment's id; ours where there is none, as in a Redis that came back empty."""
        await self._call(self._redis.set(_DEPLOYMENT, ours, nx=True))
        return str(await self._call(self._redis.get(_DEPLOYMENT)))

    async def _call(self, command: Awaitable[Any]) -> Any:
        """The command's answer. The client takes a cancellation for a broken connection and goes on, so it never sees one."""
        call = asyncio.ensure_future(command)
        self._calls.add(call)
        call.add_done_callback(self._over)
        try:
            async with asyncio.timeout(2 * _ANSWER_S):
                return await asyncio.shield(call)
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreError(f"Redis at {self._where} does not answer ({type(error).__name__}).") from error

    def _over(self, call: asyncio.Future[Any]) -> None:
        self._calls.discard(call)
        if not call.cancelled():
            call.exception()  # who asked may be gone; that is no reason for a warning


def _record(session_id: str) -> str:
    return f"{_PREFIX}session:{session_id}"


def _lease(session_id: str) -> str:
    return f"{_PREFIX}lease:{session_id}"

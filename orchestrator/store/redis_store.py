"""The store that several orchestrators share: Redis."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
        await self._redis.aclose()

    async def save(self, session: StoredSession) -> bool:
        keep_ms: Any = ""
        if session.ended_at is not None:
            keep_ms = max(1, round((session.ended_at + self._keep_s - time.time()) * 1000))
        keys = (_lease(session.session_id), _record(session.session_id), _INDEX)
        async with self._told():
            values = (session.owner, session.model_dump_json(), keep_ms, session.session_id)
            return bool(await self._redis.eval(_SAVE, len(keys), *keys, *values))

    async def load(self, session_id: str) -> StoredSession | None:
        async with self._told():
            record = await self._redis.get(_record(session_id))
        return StoredSession.model_validate_json(record) if record else None

    async def delete(self, session_id: str) -> None:
        async with self._told():
            await self._redis.delete(_record(session_id), _lease(session_id))
            await self._redis.srem(_INDEX, session_id)

    async def sessions(self) -> list[StoredSession]:
        await self._deployment(self.deployment_id)
        async with self._told():
            ids = [str(member) for member in await self._redis.smembers(_INDEX)]
            records = await self._redis.mget([_record(i) for i in ids]) if ids else []
            gone = [i for i, record in zip(ids, records, strict=True) if record is None]
            if gone:
                await self._redis.srem(_INDEX, *gone)
        sessions = [StoredSession.model_validate_json(record) for record in records if record]
        return sorted(sessions, key=lambda session: session.created_at)

    async def claim(self, session_id: str, owner: str, ttl_s: float) -> bool:
        async with self._told():
            return bool(await self._redis.eval(_CLAIM, 1, _lease(session_id), owner, round(ttl_s * 1000)))

    async def holder(self, session_id: str) -> str | None:
        async with self._told():
            holder = await self._redis.get(_lease(session_id))
        return None if holder is None else str(holder)

    async def release(self, session_id: str, owner: str) -> None:
        async with self._told():
            await self._redis.eval(_RELEASE, 1, _lease(session_id), owner)

    async def _deployment(self, ours: str) -> str:
        """The deployment's id; ours where there is none, as in a Redis that came back empty."""
        async with self._told():
            await self._redis.set(_DEPLOYMENT, ours, nx=True)
            return str(await self._redis.get(_DEPLOYMENT))

    @asynccontextmanager
    async def _told(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(2 * _ANSWER_S):
                yield
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreError(f"Redis at {self._where} does not answer ({type(error).__name__}).") from error


def _record(session_id: str) -> str:
    return f"{_PREFIX}session:{session_id}"


def _lease(session_id: str) -> str:
    return f"{_PREFIX}lease:{session_id}"

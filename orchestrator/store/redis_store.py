"""The store that several orchestrators share: Redis."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from orchestrator.store.session_store import MAX_RECORD, MAX_RECORDS, RecordReader, StoredSession, StoreError

_PREFIX = "musetalk:"
_DEPLOYMENT = _PREFIX + "deployment"
_INDEX = _PREFIX + "sessions"
_ANSWER_S = 2.0
_CALL_S = 2 * _ANSWER_S
"""The whole of a call: a connection, and an answer."""
_START_S = 10.0
"""How long a Redis that starts at the same time is waited for."""
_CALLS_MAX = 512
"""Calls under way at the same time; past it they fail at once, for a Redis that is silent holds each for seconds."""
_CHUNK = 100
"""Keys of one command: Redis does nothing else meanwhile."""
_KEEP_UNREADABLE_MS = 25 * 3600 * 1000
"""A record that cannot be read, and is not written again, expires after the longest life of a session, and an hour."""
_OURS = """
local function ours(lease, record, owner)
    local holder = redis.call('GET', lease)
    if holder then return holder == owner, nil end
    local text = redis.pcall('GET', record)
    if type(text) ~= 'string' then return true, nil end
    local read, known = pcall(cjson.decode, text)
    if not read or type(known) ~= 'table' or type(known.owner) ~= 'string' then return true, nil end
    return known.owner == owner, known
end
"""
_SAVE = (
    _OURS
    + """
local mine, known = ours(KEYS[1], KEYS[2], ARGV[1])
if not mine then return 0 end
if ARGV[3] == '' and known and known.ended_at and known.ended_at ~= cjson.null then return 0 end
if ARGV[3] == '' then redis.call('SET', KEYS[2], ARGV[2])
else redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3]) end
redis.call('SADD', KEYS[3], ARGV[4])
if ARGV[5] == 'release' then redis.call('DEL', KEYS[1])
elseif ARGV[5] ~= '' then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[5]) end
return 1
"""
)
_RENEW = (
    _OURS
    + """
local lost = {}
for i = 1, #KEYS, 2 do
    local mine, known = ours(KEYS[i], KEYS[i + 1], ARGV[1])
    local over = known and known.ended_at and known.ended_at ~= cjson.null
    if mine and not over then redis.call('SET', KEYS[i], ARGV[1], 'PX', ARGV[2])
    else lost[#lost + 1] = (i - 1) / 2 end
end
return lost
"""
)
_CLAIM = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) else return 0 end"
_SWAP = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
"""
_EXPIRE = "if redis.call('PTTL', KEYS[1]) == -1 then return redis.call('PEXPIRE', KEYS[1], ARGV[1]) else return 0 end"


class RedisStore:
    """Records as JSON, leases as keys that expire. Every call is given up after four seconds."""

    name = "redis"
    durable = True
    shared = True

    def __init__(self, url: str, keep_s: float) -> None:
        self._redis: Redis = Redis.from_url(
            url,
            socket_timeout=_ANSWER_S,
            socket_connect_timeout=_ANSWER_S,
            protocol=2,
            # A connection that Redis closed meanwhile is made again, once. A silence is not asked again: it took its time already.
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        )
        self._where = f"{urlsplit(url).hostname}:{urlsplit(url).port or 6379}"
        self._keep_s = keep_s
        self._calls: set[asyncio.Future[Any]] = set()
        self._set_aside: set[str] = set()
        self.reader = RecordReader()
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
            await asyncio.wait(self._calls, timeout=_ANSWER_S)
        for call in self._calls:
            call.cancel()
        try:
            async with asyncio.timeout(_ANSWER_S):
                await self._redis.aclose()
        except (RedisError, OSError, TimeoutError):
            pass  # it was going away anyhow

    async def save(self, session: StoredSession, claim_s: float | None = None) -> bool:
        then = "" if claim_s is None else str(round(claim_s * 1000))
        return bool(await self._call(self._redis.eval(*self._save(session, session.owner, then))))

    async def save_all(self, sessions: Sequence[StoredSession]) -> set[str]:
        def fill(pipeline: Pipeline) -> None:
            for session in sessions:
                pipeline.eval(*self._save(session, session.owner))

        written = await self._pipeline(fill, whole=True)
        return {session.session_id for session, done in zip(sessions, written, strict=True) if not done}

    async def give_up(self, session: StoredSession, owner: str) -> bool:
        return bool(await self._call(self._redis.eval(*self._save(session, owner, "release"))))

    def _save(self, session: StoredSession, owner: str, then: str = "") -> tuple[Any, ...]:
        """The command that writes a record as `owner`; then it releases the lease, or takes it for so many milliseconds."""
        keep_ms: int | str = ""
        if session.ended_at is not None:
            keep_ms = max(1, round((session.ended_at + self._keep_s - time.time()) * 1000))
        keys = (_lease(session.session_id), _record(session.session_id), _INDEX)
        return _SAVE, len(keys), *keys, owner, session.model_dump_json(), str(keep_ms), session.session_id, then

    async def load(self, session_id: str) -> StoredSession | None:
        try:
            raw = await self._call(self._redis.getrange(_record(session_id), 0, MAX_RECORD))
        except _RefusedError as error:
            self.reader.set_aside(session_id, str(error))
            return None
        return self.reader.read(session_id, raw) if raw else None

    async def delete(self, session_id: str) -> None:
        await self._call(self._redis.delete(_record(session_id), _lease(session_id)))
        await self._call(self._redis.srem(_INDEX, session_id))

    async def sessions(self) -> list[StoredSession]:
        await self._deployment(self.deployment_id)
        ids = await self._ids()
        found: list[StoredSession] = []
        gone: list[str] = []
        for some in _chunks(ids):
            for session_id, raw in zip(some, await self._records(some), strict=True):
                if raw == b"":
                    gone.append(session_id)
                elif (record := self._read(session_id, raw)) is not None:
                    found.append(record)
        self.reader.keep(ids)
        for some in _chunks(gone):
            await self._call(self._redis.srem(_INDEX, *some))
        for session_id in self.reader.unreadable.keys() - self._set_aside:
            await self._call(self._redis.eval(_EXPIRE, 1, _record(session_id), str(_KEEP_UNREADABLE_MS)))
        self._set_aside = set(self.reader.unreadable)
        return sorted(found, key=lambda session: session.created_at)

    async def _ids(self) -> list[str]:
        """Ids in the index; one that is no text is left out."""
        ids: list[str] = []
        cursor = 0
        while True:
            cursor, members = await self._call(self._redis.sscan(_INDEX, cursor, count=10 * _CHUNK))
            for member in members:
                try:
                    ids.append(member.decode())
                except UnicodeDecodeError:
                    self.reader.set_aside(repr(member)[:64], "its id is no text")
            if not int(cursor) or len(ids) >= MAX_RECORDS:
                return list(dict.fromkeys(ids))[:MAX_RECORDS]

    async def _records(self, ids: Sequence[str]) -> list[Any]:
        """What is stored, b"" where nothing is, an error where it is no text; one byte more than a record may have at most."""

        def fill(pipeline: Pipeline) -> None:
            for session_id in ids:
                pipeline.getrange(_record(session_id), 0, MAX_RECORD)

        return await self._pipeline(fill, whole=False)

    def _read(self, session_id: str, raw: Any) -> StoredSession | None:
        if isinstance(raw, Exception):
            self.reader.set_aside(session_id, f"Redis: {str(raw)[:80]}")
            return None
        return self.reader.read(session_id, raw)

    async def claim(self, session_id: str, owner: str, ttl_s: float) -> bool:
        return bool(await self._call(self._redis.eval(_CLAIM, 1, _lease(session_id), owner, str(round(ttl_s * 1000)))))

    async def renew(self, session_ids: Collection[str], owner: str, ttl_s: float) -> set[str]:
        chunks = list(_chunks(list(session_ids)))
        if not chunks:
            await self._call(self._redis.ping())  # so that a Redis that is gone is noticed without sessions too
            return set()

        def fill(pipeline: Pipeline) -> None:
            for some in chunks:
                keys = [key for session_id in some for key in (_lease(session_id), _record(session_id))]
                pipeline.eval(_RENEW, len(keys), *keys, owner, str(round(ttl_s * 1000)))

        lost = await self._pipeline(fill, whole=True)
        return {some[int(index)] for some, indices in zip(chunks, lost, strict=True) for index in indices}

    async def holders(self, session_ids: Sequence[str]) -> dict[str, str | None]:
        found: dict[str, str | None] = {}
        for some in _chunks(session_ids):
            holders = await self._call(self._redis.mget([_lease(session_id) for session_id in some]))
            found |= {session_id: _text(holder) for session_id, holder in zip(some, holders, strict=True)}
        return found

    async def holder(self, session_id: str) -> str | None:
        return _text(await self._call(self._redis.get(_lease(session_id))))

    async def release(self, session_id: str, owner: str) -> None:
        await self._call(self._redis.eval(_RELEASE, 1, _lease(session_id), owner))

    async def document(self, name: str) -> bytes | None:
        return await self._call(self._redis.getrange(_document(name), 0, MAX_RECORD)) or None

    async def swap_document(self, name: str, old: bytes | None, new: bytes, keep_s: float) -> bool:
        keep_ms = str(max(1, round(keep_s * 1000)))
        return bool(await self._call(self._redis.eval(_SWAP, 1, _document(name), old or b"", new, keep_ms)))

    async def _deployment(self, ours: str) -> str:
        """The deployment's id; ours where there is none, as in a Redis that came back empty."""
        await self._call(self._redis.set(_DEPLOYMENT, ours, nx=True))
        return _text(await self._call(self._redis.get(_DEPLOYMENT))) or ours

    async def _pipeline(self, fill: Callable[[Pipeline], None], *, whole: bool) -> list[Any]:
        """Answers of many commands, in one round trip. `whole`: the first one that failed is raised."""

        async def run() -> list[Any]:
            async with self._redis.pipeline(transaction=False) as pipeline:
                fill(pipeline)
                return list(await pipeline.execute(raise_on_error=whole))

        return list(await self._call(run()))

    async def _call(self, command: Awaitable[Any]) -> Any:
        """The command's answer. The client takes a cancellation for a broken connection and goes on, so it never sees one."""
        call = asyncio.ensure_future(command)
        if len(self._calls) >= _CALLS_MAX:
            call.cancel()
            raise StoreError(f"Redis at {self._where} does not answer: {_CALLS_MAX} calls wait for it.")
        self._calls.add(call)
        call.add_done_callback(self._over)
        try:
            async with asyncio.timeout(_CALL_S):
                return await asyncio.shield(call)
        except ResponseError as error:
            raise _RefusedError(f"Redis at {self._where} refuses a command: {str(error)[:200]}") from error
        except (RedisError, OSError, TimeoutError, UnicodeError) as error:
            raise StoreError(f"Redis at {self._where} does not answer ({type(error).__name__}).") from error

    def _over(self, call: asyncio.Future[Any]) -> None:
        self._calls.discard(call)
        if not call.cancelled():
            call.exception()  # who asked may be gone; that is no reason for a warning


class _RefusedError(StoreError):
    """Redis answers, with an error."""


def _chunks(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[at : at + _CHUNK] for at in range(0, len(ids), _CHUNK)]


def _text(value: Any) -> str | None:
    return None if value is None else bytes(value).decode(errors="replace")


def _record(session_id: str) -> str:
    return f"{_PREFIX}session:{session_id}"


def _document(name: str) -> str:
    return f"{_PREFIX}document:{name}"


def _lease(session_id: str) -> str:
    return f"{_PREFIX}lease:{session_id}"

"""The store of one orchestrator: an SQLite file that it holds alone while it runs."""

from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from orchestrator.store.base import StoredSession, StoreError

MEMORY = ":memory:"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS deployment (id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS sessions (id TEXT PRIMARY KEY, created_at REAL NOT NULL, ended_at REAL, record TEXT NOT NULL);
"""
_LOCK_WAIT_S = 5.0
"""A predecessor that is just ending may hold the file for a moment."""
_Answer = TypeVar("_Answer")


class SqliteStore:
    """Records in a file (or in memory, for as long as the process lives), worked on by a thread of its own.

    The file is locked as long as it is open, and the lock ends with the process however that dies: whoever has it open is the
    only owner there is, so leases need not be written down.
    """

    name = "sqlite"
    shared = False

    def __init__(self, path: str, keep_s: float) -> None:
        self._path = path
        self._keep_s = keep_s
        self._thread = ThreadPoolExecutor(1, "store")
        self._database: sqlite3.Connection | None = None
        self._closed = False
        self._leases: dict[str, tuple[str, float]] = {}
        self.durable = path != MEMORY
        self.deployment_id = ""

    async def open(self) -> None:
        await self._call(self._open)

    async def aclose(self) -> None:
        self._closed = True
        database, self._database = self._database, None
        if database is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, database.close)
        self._thread.shutdown(wait=False)

    async def save(self, session: StoredSession) -> bool:
        if self._holder(session.session_id) not in (None, session.owner):
            return False
        row = (session.session_id, session.created_at, session.ended_at, session.model_dump_json())
        await self._call(lambda: self._execute("INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?)", row))
        return True

    async def load(self, session_id: str) -> StoredSession | None:
        rows = await self._call(lambda: self._execute("SELECT record FROM sessions WHERE id = ?", (session_id,)))
        return StoredSession.model_validate_json(rows[0][0]) if rows else None

    async def delete(self, session_id: str) -> None:
        await self._call(lambda: self._execute("DELETE FROM sessions WHERE id = ?", (session_id,)))

    async def sessions(self) -> list[StoredSession]:
        return await self._call(self._sessions)

    async def claim(self, session_id: str, owner: str, ttl_s: float) -> bool:
        if self._holder(session_id) not in (None, owner):
            return False
        self._leases[session_id] = (owner, time.monotonic() + ttl_s)
        return True

    async def holder(self, session_id: str) -> str | None:
        return self._holder(session_id)

    async def release(self, session_id: str, owner: str) -> None:
        if self._holder(session_id) == owner:
            del self._leases[session_id]

    def _holder(self, session_id: str) -> str | None:
        owner, until = self._leases.get(session_id, ("", 0.0))
        if time.monotonic() < until:
            return owner
        self._leases.pop(session_id, None)
        return None

    async def _call(self, work: Callable[[], _Answer]) -> _Answer:
        if self._closed:
            raise StoreError(f"The store {self._path} is closed.")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"The store {self._path} cannot be used: {error}.") from error

    # --- in the thread

    def _open(self) -> None:
        if self.durable:
            path = Path(self._path)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        database = sqlite3.connect(self._path, timeout=_LOCK_WAIT_S, isolation_level=None, check_same_thread=False)
        try:
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            database.executescript(_SCHEMA)
            row = database.execute("SELECT id FROM deployment").fetchone()
            if row is None:
                row = ("dep_" + secrets.token_hex(8),)
                database.execute("INSERT INTO deployment VALUES (?)", row)
        except sqlite3.Error as error:
            database.close()
            if "locked" in str(error):
                text = "another orchestrator uses it; give each a STORE_PATH of its own, or all of them one REDIS_URL"
                raise sqlite3.OperationalError(text) from error
            raise
        self._database, self.deployment_id = database, row[0]

    def _sessions(self) -> list[StoredSession]:
        self._execute("DELETE FROM sessions WHERE ended_at < ?", (time.time() - self._keep_s,))
        rows = self._execute("SELECT record FROM sessions ORDER BY created_at")
        return [StoredSession.model_validate_json(row[0]) for row in rows]

    def _execute(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[str]]:
        assert self._database is not None, "open() was not called"
        return self._database.execute(statement, values).fetchall()

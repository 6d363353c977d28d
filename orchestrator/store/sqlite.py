"""The store of one orchestrator: an SQLite file that it holds alone while it runs."""

from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.store.session_store import MAX_RECORD, MAX_RECORDS, RecordReader, StoredSession, StoreError

MEMORY = ":memory:"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS deployment (id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS sessions (id TEXT PRIMARY KEY, created_at REAL NOT NULL, ended_at REAL, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS documents (name TEXT PRIMARY KEY, body BLOB NOT NULL, expires_at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS documents_by_end ON documents (expires_at);
"""
_LOCK_WAIT_S = 5.0
"""A predecessor that is just ending may hold the file for a moment."""
_CALL_S = 5.0
"""A disk that hangs holds the thread; who waits for it does not wait longer."""
_OPEN_S = 20.0
_CHECKPOINT_PAGES = 16
"""Pages of 4 KiB that the log may hold: with SQLite's 1000 it would need 4 MB of a disk that is nearly full."""
_CALLS_MAX = 512
_KEEP_UNREADABLE_S = 25 * 3600.0
"""A record that cannot be read goes after the longest life of a session, and an hour."""
_SAVE = "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?)"
_RECORD = f"CASE WHEN length(CAST(record AS BLOB)) <= {MAX_RECORD} THEN CAST(record AS BLOB) END"
_Answer = TypeVar("_Answer")


class SqliteStore:
    """Records in a file (or in memory, for as long as the process lives), worked on by a thread of its own.

    The file is locked as long as it is open, and the lock ends with the process however that dies: who has it open is the
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
        self._calls = 0
        self.reader = RecordReader()
        self.durable = path != MEMORY
        self.deployment_id = ""

    async def open(self) -> None:
        await self._call(self._open, _OPEN_S)

    async def aclose(self) -> None:
        self._closed = True
        database, self._database = self._database, None
        if database is not None:
            with suppress(TimeoutError, sqlite3.Error):
                async with asyncio.timeout(_CALL_S):
                    await asyncio.get_running_loop().run_in_executor(self._thread, database.close)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def save(self, session: StoredSession, claim_s: float | None = None) -> bool:
        if claim_s is not None and not await self.claim(session.session_id, session.owner, claim_s):
            return False
        return not await self.save_all([session])

    async def save_all(self, sessions: Sequence[StoredSession]) -> set[str]:
        refused = {one.session_id for one in sessions if self._holder(one.session_id) not in (None, one.owner)}
        rows = [_row(session) for session in sessions if session.session_id not in refused]
        await self._call(lambda: self._save(rows))
        return refused

    async def give_up(self, session: StoredSession, owner: str) -> bool:
        if self._holder(session.session_id) not in (None, owner):
            return False
        await self._call(lambda: self._save([_row(session)]))
        await self.release(session.session_id, owner)
        return True

    async def load(self, session_id: str) -> StoredSession | None:
        rows = await self._call(lambda: self._execute(f"SELECT {_RECORD} FROM sessions WHERE id = ?", (session_id,)))
        return self.reader.read(session_id, rows[0][0]) if rows else None

    async def delete(self, session_id: str) -> None:
        await self._call(lambda: self._execute("DELETE FROM sessions WHERE id = ?", (session_id,)))
        self._leases.pop(session_id, None)

    async def sessions(self) -> list[StoredSession]:
        rows = await self._call(self._sessions)
        ids = [
            bytes(row[0]).decode(errors="replace") if isinstance(row[0], bytes) else repr(row[0])[:64] for row in rows
        ]
        records = [self.reader.read(session_id, row[1]) for session_id, row in zip(ids, rows, strict=True)]
        self.reader.keep(ids)
        old = time.time() - _KEEP_UNREADABLE_S
        for row, record in zip(rows, records, strict=True):
            if record is None and isinstance(row[2], float) and row[2] < old:
                await self._call(partial(self._execute, "DELETE FROM sessions WHERE rowid = ?", (row[3],)))
        return [record for record in records if record is not None]

    async def claim(self, session_id: str, owner: str, ttl_s: float) -> bool:
        if self._holder(session_id) not in (None, owner):
            return False
        self._leases[session_id] = (owner, time.monotonic() + ttl_s)
        return True

    async def renew(self, session_ids: Collection[str], owner: str, ttl_s: float) -> set[str]:
        return {session_id for session_id in session_ids if not await self.claim(session_id, owner, ttl_s)}

    async def holders(self, session_ids: Sequence[str]) -> dict[str, str | None]:
        return {session_id: self._holder(session_id) for session_id in session_ids}

    async def holder(self, session_id: str) -> str | None:
        return self._holder(session_id)

    async def release(self, session_id: str, owner: str) -> None:
        if self._holder(session_id) == owner:
            del self._leases[session_id]

    async def document(self, name: str) -> bytes | None:
        return await self._call(lambda: self._document(name))

    async def swap_document(self, name: str, old: bytes | None, new: bytes, keep_s: float) -> bool:
        return await self._call(lambda: self._swap_document(name, old, new, keep_s))

    def _holder(self, session_id: str) -> str | None:
        owner, until = self._leases.get(session_id, ("", 0.0))
        if time.monotonic() < until:
            return owner
        self._leases.pop(session_id, None)
        return None

    async def _call(self, work: Callable[[], _Answer], within_s: float | None = None) -> _Answer:
        if self._closed:
            raise StoreError(f"The store {self._path} is closed.")
        if self._calls >= _CALLS_MAX:
            raise StoreError(f"The store {self._path} does not answer: {_CALLS_MAX} calls wait for it.")
        self._calls += 1
        try:
            async with asyncio.timeout(within_s or _CALL_S):
                return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except (sqlite3.Error, OSError, TimeoutError) as error:
            reason = "the disk does not answer" if isinstance(error, TimeoutError) else error
            raise StoreError(f"The store {self._path} cannot be used: {reason}.") from error
        finally:
            self._calls -= 1

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
            database.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
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
        database.text_factory = bytes  # a text that is no UTF-8 is one record's fault and no reason to read none
        self._database, self.deployment_id = database, row[0]

    def _sessions(self) -> list[tuple[Any, ...]]:
        self._execute("DELETE FROM sessions WHERE ended_at < ?", (time.time() - self._keep_s,))
        return self._execute(
            f"SELECT id, {_RECORD}, created_at, rowid FROM sessions ORDER BY created_at LIMIT {MAX_RECORDS}"
        )

    def _save(self, rows: list[tuple[object, ...]]) -> None:
        """As many as can be written, each for itself; then the first error. A commit is cheap: it waits for no disk."""
        failure: sqlite3.Error | None = None
        for row in rows:
            try:
                self._opened.execute(_SAVE, row)
            except sqlite3.Error as error:
                failure = failure or error
        if failure is not None:
            with suppress(sqlite3.Error):  # a log that has grown may be all that fills the disk
                self._opened.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            raise failure

    def _document(self, name: str) -> bytes | None:
        rows = self._execute("SELECT body FROM documents WHERE name = ? AND expires_at > ?", (name, time.time()))
        return bytes(rows[0][0]) if rows else None

    def _swap_document(self, name: str, old: bytes | None, new: bytes, keep_s: float) -> bool:
        if (
            self._document(name) != old
        ):  # no other process writes: the file is this process's, and this thread is the only one
            return False
        now = time.time()
        self._execute("DELETE FROM documents WHERE expires_at <= ?", (now,))
        self._execute("INSERT OR REPLACE INTO documents VALUES (?, ?, ?)", (name, new, now + keep_s))
        return True

    def _execute(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        return self._opened.execute(statement, values).fetchall()

    @property
    def _opened(self) -> sqlite3.Connection:
        if self._database is None:
            raise sqlite3.ProgrammingError("it is not open")
        return self._database


def _row(session: StoredSession) -> tuple[object, ...]:
    return session.session_id, session.created_at, session.ended_at, session.model_dump_json()

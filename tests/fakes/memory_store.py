"""A `SessionStore` in a dictionary, without a thread or a server: for tests on virtual time. It keeps the stores' contract."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from orchestrator.store.session_store import RecordReader, StoredSession, StoreError


@dataclass
class MemoryStore:
    """Records and leases.

    Attributes:
        shared: as of Redis: the record decides where nobody holds the lease.
        failing: every call raises.
        delay_s: how long every call takes.
        calls: names of the calls.
    """

    name: str = "a dictionary"
    durable: bool = False
    shared: bool = False
    deployment_id: str = "dep_test"
    reader: RecordReader = field(default_factory=RecordReader)
    failing: bool = False
    delay_s: float = 0.0
    records: dict[str, StoredSession] = field(default_factory=dict)
    leases: dict[str, tuple[str, float]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    documents: dict[str, tuple[bytes, float]] = field(default_factory=dict)

    async def _call(self, name: str) -> None:
        self.calls.append(name)
        await asyncio.sleep(self.delay_s)
        if self.failing:
            raise StoreError("it fails on purpose")

    async def open(self) -> None:
        await self._call("open")

    async def aclose(self) -> None:
        self.calls.append("close")

    def _holder(self, session_id: str) -> str | None:
        owner, until = self.leases.get(session_id, ("", float("-inf")))
        return owner if until > time.monotonic() else None

    def _may(self, session_id: str, owner: str) -> bool:
        holder, known = self._holder(session_id), self.records.get(session_id)
        if holder is not None or not self.shared:
            return holder in (None, owner)
        return known is None or known.owner == owner

    def _over(self, session_id: str) -> bool:
        known = self.records.get(session_id)
        return self.shared and self._holder(session_id) is None and known is not None and known.ended

    def _write(self, session: StoredSession, owner: str, *, brings_back: bool) -> bool:
        if not self._may(session.session_id, owner) or (self._over(session.session_id) and not brings_back):
            return False
        self.records[session.session_id] = session
        return True

    async def save(self, session: StoredSession, claim_s: float | None = None) -> bool:
        await self._call("save")
        written = self._write(session, session.owner, brings_back=session.ended)
        if written and claim_s is not None:
            self.leases[session.session_id] = session.owner, time.monotonic() + claim_s
        return written

    async def save_all(self, sessions: Sequence[StoredSession]) -> set[str]:
        await self._call("save_all")
        return {one.session_id for one in sessions if not self._write(one, one.owner, brings_back=one.ended)}

    async def give_up(self, session: StoredSession, owner: str) -> bool:
        await self._call("give_up")
        written = self._write(session, owner, brings_back=False)
        if written:
            self.leases.pop(session.session_id, None)
        return written

    async def load(self, session_id: str) -> StoredSession | None:
        await self._call("load")
        return self.records.get(session_id)

    async def delete(self, session_id: str) -> None:
        await self._call("delete")
        self.records.pop(session_id, None)
        self.leases.pop(session_id, None)

    async def sessions(self) -> list[StoredSession]:
        await self._call("sessions")
        return sorted(self.records.values(), key=lambda session: session.created_at)

    async def claim(self, session_id: str, owner: str, ttl_s: float) -> bool:
        await self._call("claim")
        if self._holder(session_id) not in (None, owner):
            return False
        self.leases[session_id] = owner, time.monotonic() + ttl_s
        return True

    async def renew(self, session_ids: Collection[str], owner: str, ttl_s: float) -> set[str]:
        await self._call("renew")
        lost = {one for one in session_ids if not self._may(one, owner) or self._over(one)}
        self.leases |= {one: (owner, time.monotonic() + ttl_s) for one in session_ids if one not in lost}
        return lost

    async def holders(self, session_ids: Sequence[str]) -> dict[str, str | None]:
        await self._call("holders")
        return {one: self._holder(one) for one in session_ids}

    async def holder(self, session_id: str) -> str | None:
        await self._call("holder")
        return self._holder(session_id)

    async def release(self, session_id: str, owner: str) -> None:
        await self._call("release")
        if self._holder(session_id) == owner:
            del self.leases[session_id]

    async def document(self, name: str) -> bytes | None:
        await self._call("document")
        body, until = self.documents.get(name, (None, float("-inf")))
        return body if until > time.monotonic() else None

    async def swap_document(self, name: str, old: bytes | None, new: bytes, keep_s: float) -> bool:
        if await self.document(name) != old:
            return False
        self.documents[name] = new, time.monotonic() + keep_s
        return True

"""The store's contract: records of sessions and how they are read, leases on them, and the deployment they belong to.

Secrets in records are encrypted for those who know the deployment's LiveKit secret (`Seal`).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
from base64 import urlsafe_b64encode
from collections.abc import Collection, Iterable, Sequence
from typing import Annotated, Any, Protocol

from cryptography.fernet import Fernet, InvalidToken
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from musetalk_agent.protocol.http import SessionState


def derive(secret: str, purpose: str, deployment_id: str) -> bytes:
    """A key of 32 bytes for one purpose, the same in every process of the deployment."""
    return hmac.new(secret.encode(), f"{purpose}\0{deployment_id}".encode(), hashlib.sha256).digest()


class SealBroken(Exception):
    """The text was sealed under another secret, or changed."""


class Seal:
    """Encrypts and authenticates short texts (Fernet: AES-128-CBC and HMAC-SHA256)."""

    def __init__(self, key: bytes) -> None:
        self._fernet = Fernet(urlsafe_b64encode(key))

    def encrypt(self, text: str) -> str:
        """The text, encrypted."""
        return self._fernet.encrypt(text.encode()).decode()

    def decrypt(self, sealed: str) -> str:
        """The text again. Raises SealBroken."""
        try:
            return self._fernet.decrypt(sealed).decode()
        except (
            InvalidToken,
            ValueError,
        ) as error:  # Fernet raises ValueError for what is not even ASCII, or not UTF-8 within
            raise SealBroken("sealed under another LIVEKIT_API_SECRET, or damaged") from error


VERSION = 1
"""Of records: raised when an older program would misread them."""
_Count = Annotated[int, Field(ge=0, le=2**53)]
_Time = Annotated[float, Field(ge=0, le=253_402_300_799)]
"""Unix time, before the year 10000."""
ENDED = frozenset({SessionState.STOPPED, SessionState.FAILED})


class StoreError(Exception):
    """The store cannot be used now, or at all; the message says why and holds no secret."""


class Progress(BaseModel):
    """How far a session's audio is.

    Attributes:
        segments: utterances opened so far.
        unfinished: those that are not over, and whether they have begun to be heard.
        events_seen: events of the agent that its sender got.
        sample_rate: of its `/audio`, once audio has come.
        received_samples: of `/audio`, taken so far.
        cleared_samples: of `/audio`, taken when the last clear came: they are not to be sent again, heard or not.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    segments: _Count = 0
    unfinished: Annotated[dict[_Count, bool], Field(max_length=4096)] = {}
    events_seen: _Count = 0
    sample_rate: Annotated[int, Field(ge=8000, le=48_000)] | None = None
    received_samples: _Count = 0
    cleared_samples: _Count = 0


class StoredSession(BaseModel):
    """One session, without audio; what was said in its conversation is encrypted.

    Attributes:
        sealed: the order as the client gave it, encrypted: addresses in it may carry keys. See `seal.Seal`.
        agent_url: the agent that runs it; None while it has none.
        key: name of the caller's key.
        public_token: id of the public token it was started with; empty without one.
        owner: the orchestrator whose session it is, "" when that one has given it up for another to take.
        owner_url: its public address, for clients that came to the wrong one.
        moves: how often it changed its agent.
        progress: how far it is.
        talk: the newest part of the conversation, encrypted; empty where there is none.
        view: body of `GET /session/{id}` when it was last saved.
        version: of the record's form, see `VERSION`.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    version: int = VERSION
    session_id: str
    identity: str
    room: str
    key: str = ""
    public_token: str = ""
    sealed: str
    agent_url: str | None = None
    created_at: _Time
    expires_at: _Time
    state: SessionState
    ended_at: _Time | None = None
    ingress_id: str | None = None
    owner: str
    owner_url: str | None = None
    moves: _Count = 0
    progress: Progress = Progress()
    talk: str = ""
    view: dict[str, Any] = {}

    @property
    def ended(self) -> bool:
        """Stopped or failed."""
        return self.state in ENDED


class SessionStore(Protocol):
    """Records and leases. Every method but `aclose` raises StoreError, within seconds when the store does not answer; cancelling
    leaves a record whole, old or new.

    Attributes:
        name: for people.
        durable: whether records outlive the process.
        shared: whether other orchestrators see them too.
        deployment_id: made once for all that ever use this store; known after `open`.
        reader: has read the records; its `unreadable` are left out of every answer.
    """

    name: str
    durable: bool
    shared: bool
    deployment_id: str
    reader: RecordReader

    async def open(self) -> None:
        """Connects; before anything else."""
        ...

    async def aclose(self) -> None:
        """Closes the connections, within seconds. Never raises."""
        ...

    async def save(self, session: StoredSession, claim_s: float | None = None) -> bool:
        """Writes the record. False, and nothing is written, when the session is another owner's now.

        It is while another one holds the lease, and where none does when the stored record names another owner. `claim_s`: in the
        same step its owner takes the lease, or prolongs it, for so many seconds.
        """
        ...

    async def save_all(self, sessions: Sequence[StoredSession]) -> set[str]:
        """`save` for many, in one round trip. Returns the ids of those that were not written."""
        ...

    async def give_up(self, session: StoredSession, owner: str) -> bool:
        """Writes the record, whatever owner it names, and gives the lease of `owner` back, in one step. False as `save` says."""
        ...

    async def load(self, session_id: str) -> StoredSession | None:
        """The record, None when there is none, or none that can be read."""
        ...

    async def delete(self, session_id: str) -> None:
        """Deletes the record and its lease, if there are any."""
        ...

    async def sessions(self) -> list[StoredSession]:
        """Every record that can be read, oldest first; those of sessions that ended only as long as they are kept."""
        ...

    async def claim(self, session_id: str, owner: str, ttl_s: float) -> bool:
        """Takes the lease, or prolongs one's own. False while another owner holds it."""
        ...

    async def renew(self, session_ids: Collection[str], owner: str, ttl_s: float) -> set[str]:
        """Prolongs leases, in one round trip for all. Returns the ids of sessions that are another owner's now, or have ended.

        A lease that has expired is taken again while the stored record still names `owner`, or is gone.
        """
        ...

    async def holders(self, session_ids: Sequence[str]) -> dict[str, str | None]:
        """Who holds each lease, in one round trip."""
        ...

    async def holder(self, session_id: str) -> str | None:
        """Who holds the lease."""
        ...

    async def release(self, session_id: str, owner: str) -> None:
        """Gives the lease back; without effect when it is another's."""
        ...

    async def document(self, name: str) -> bytes | None:
        """A document beside the sessions, `MAX_RECORD` bytes at most; None when there is none, or it has expired."""
        ...

    async def swap_document(self, name: str, old: bytes | None, new: bytes, keep_s: float) -> bool:
        """Writes a document, for `keep_s` seconds, where it is still `old`; None: where there is none. False when it is not."""
        ...


MAX_RECORD = 256 << 10
"""Bytes of a record; a session with the longest addresses takes 20 KB."""
MAX_RECORDS = 20_000
"""Records that one look at the store reads."""
_MAX_UNREADABLE = 1000
_log = logging.getLogger(__name__)


class Unreadable(Exception):
    """A record cannot be read; the message says why and holds nothing of the record."""


class RecordReader:
    """Reads records. Those it cannot read are logged once and kept in `unreadable`, by id, with the reason.

    A record that has not changed since it was read last is not parsed again.
    """

    def __init__(self) -> None:
        self.unreadable: dict[str, str] = {}
        self.skipped = 0
        """Records set aside so far, each counted when it was first seen."""
        self._read: dict[str, tuple[bytes, StoredSession]] = {}

    def read(self, session_id: str, raw: object) -> StoredSession | None:
        """The record; None for one that cannot be read. `raw` is what the store holds, `MAX_RECORD` bytes at most."""
        known = self._read.get(session_id)
        if known is not None and known[0] == raw:
            return known[1]
        try:
            record = parse(session_id, raw)
        except Unreadable as error:
            self.set_aside(session_id, str(error))
            return None
        self.unreadable.pop(session_id, None)
        self._read[session_id] = (raw if isinstance(raw, bytes) else b"", record)
        return record

    def set_aside(self, session_id: str, reason: str) -> None:
        """Notes a record that cannot be read."""
        self._read.pop(session_id, None)
        if session_id in self.unreadable or len(self.unreadable) >= _MAX_UNREADABLE:
            return
        self.unreadable[session_id] = reason
        self.skipped += 1
        extra = {"session_id": session_id[:64], "reason": reason}
        _log.error("a stored session cannot be read: it is left as it is", extra=extra)

    def keep(self, ids: Iterable[str]) -> None:
        """Forgets what was read of any other session: the store has these only."""
        there = set(ids)
        self._read = {session_id: known for session_id, known in self._read.items() if session_id in there}
        self.unreadable = {session_id: why for session_id, why in self.unreadable.items() if session_id in there}


def parse(session_id: str, raw: object) -> StoredSession:
    """The record of a session. Raises Unreadable."""
    if not isinstance(raw, bytes):
        raise Unreadable(f"it is a {type(raw).__name__}")
    if len(raw) > MAX_RECORD:
        raise Unreadable(f"it passes {MAX_RECORD} bytes")
    try:
        fields = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise Unreadable("it is not JSON") from error
    version = fields.get("version", 1) if isinstance(fields, dict) else 1
    if isinstance(version, int) and version > VERSION:
        raise Unreadable(f"it is of version {version}, and this program knows {VERSION}")
    try:
        record = StoredSession.model_validate(fields)
        json.dumps(record.view, allow_nan=False)
    except ValidationError as error:
        fields = sorted({str(item["loc"][0])[:40] for item in error.errors() if item["loc"]})
        raise Unreadable(f"wrong fields: {', '.join(fields) or 'all'}") from error
    except (ValueError, RecursionError) as error:
        raise Unreadable("its view is not JSON") from error
    if record.session_id != session_id:
        raise Unreadable("it names another session")
    return record

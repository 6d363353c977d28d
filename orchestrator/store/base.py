"""The store's contract: records of sessions, leases on them, and the deployment they belong to."""

from __future__ import annotations

from typing import Any, Protocol

from pydantic import BaseModel

from musetalk_agent.protocol.http import SessionState

ENDED = frozenset({SessionState.STOPPED, SessionState.FAILED})


class StoreError(Exception):
    """The store cannot be used now, or at all; the message says why and holds no secret."""


class Progress(BaseModel):
    """How far a session's sound is.

    Attributes:
        segments: utterances opened so far.
        unfinished: those that are not over, and whether they have begun to be heard.
        events_seen: events of the agent that its sender was told.
        sample_rate: of its `/audio`, once sound has come.
        received_samples: of `/audio`, taken so far.
        cleared_samples: of `/audio`, taken when the last clear came: they are not to be sent again, heard or not.
    """

    segments: int = 0
    unfinished: dict[int, bool] = {}
    events_seen: int = 0
    sample_rate: int | None = None
    received_samples: int = 0
    cleared_samples: int = 0


class StoredSession(BaseModel):
    """One session, without sound and without text.

    Attributes:
        sealed: the order as the client gave it, encrypted: addresses in it may carry keys. See `seal.Seal`.
        agent_url: the agent that runs it; None while it has none.
        key: name of the caller's key.
        owner: the orchestrator whose session it is, "" when that one has given it up for another to take.
        owner_url: its public address, for clients that came to the wrong one.
        moves: how often it changed its agent.
        progress: how far it is.
        view: body of `GET /session/{id}` when it was last saved.
    """

    session_id: str
    identity: str
    room: str
    key: str = ""
    sealed: str
    agent_url: str | None = None
    created_at: float
    expires_at: float
    state: SessionState
    ended_at: float | None = None
    ingress_id: str | None = None
    owner: str
    owner_url: str | None = None
    moves: int = 0
    progress: Progress = Progress()
    view: dict[str, Any] = {}

    @property
    def ended(self) -> bool:
        """Stopped or failed."""
        return self.state in ENDED


class SessionStore(Protocol):
    """Records and leases. Every method but `aclose` raises StoreError; cancelling leaves a record whole, old or new.

    Attributes:
        name: for people.
        durable: whether records outlive the process.
        shared: whether other orchestrators see them too.
        deployment_id: made once for all that ever use this store; known after `open`.
    """

    name: str
    durable: bool
    shared: bool
    deployment_id: str

    async def open(self) -> None:
        """Connects; before anything else."""
        ...

    async def aclose(self) -> None:
        """Lets go of it. Never raises."""
        ...

    async def save(self, session: StoredSession) -> bool:
        """Writes the record. False, and nothing is written, while somebody else than its owner holds the lease."""
        ...

    async def load(self, session_id: str) -> StoredSession | None:
        """The record, None when there is none."""
        ...

    async def delete(self, session_id: str) -> None:
        """Forgets the record, if there is one."""
        ...

    async def sessions(self) -> list[StoredSession]:
        """Every record, oldest first; those of sessions that ended only as long as they are kept."""
        ...

    async def claim(self, session_id: str, owner: str, ttl_s: float) -> bool:
        """Takes the lease, or prolongs one's own. False while somebody else holds it."""
        ...

    async def holder(self, session_id: str) -> str | None:
        """Who holds the lease."""
        ...

    async def release(self, session_id: str, owner: str) -> None:
        """Gives the lease back; without effect when it is another's."""
        ...

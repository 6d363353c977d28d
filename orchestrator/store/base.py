"""The store's contract: records of sessions, leases on them, and the deployment they belong to."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from musetalk_agent.protocol.http import SessionState

if TYPE_CHECKING:
    from orchestrator.store.records import RecordReader

VERSION = 1
"""Of records: raised when an older program would misread them."""
_Count = Annotated[int, Field(ge=0, le=2**53)]
_Time = Annotated[float, Field(ge=0, le=253_402_300_799)]
"""Unix time, before the year 10000."""
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

    model_config = ConfigDict(allow_inf_nan=False)

    segments: _Count = 0
    unfinished: Annotated[dict[_Count, bool], Field(max_length=4096)] = {}
    events_seen: _Count = 0
    sample_rate: Annotated[int, Field(ge=8000, le=48_000)] | None = None
    received_samples: _Count = 0
    cleared_samples: _Count = 0


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
        version: of the record's form, see `VERSION`.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    version: int = VERSION
    session_id: str
    identity: str
    room: str
    key: str = ""
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

    async def save(self, session: StoredSession) -> bool:
        """Writes the record. False, and nothing is written, when the session is another owner's now.

        It is while another one holds the lease, and where nobody does when the stored record names another owner.
        """
        ...

    async def save_all(self, sessions: Sequence[StoredSession]) -> set[str]:
        """`save` for many, in one round trip. Returns the ids of those that were not written."""
        ...

    async def give_up(self, session: StoredSession, owner: str) -> bool:
        """Writes the record, whoever it names as owner, and gives the lease of `owner` back, in one step. False as `save` says."""
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
        """Takes the lease, or prolongs one's own. False while somebody else holds it."""
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

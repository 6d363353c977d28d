"""What sessions are made with."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from orchestrator.agents.client import AgentClient
from orchestrator.agents.pool import AgentPool
from orchestrator.events import EventBus
from orchestrator.ingress import Ingresses
from orchestrator.metrics import Metrics
from orchestrator.session.background import Background
from orchestrator.session.ledger import Ledger
from orchestrator.session.record import Session
from orchestrator.tokens import Rooms, TokenMinter


class OwnVoices(Protocol):
    """The orchestrator's own voice in sessions."""

    def reserve(self, session: Session) -> None:
        """Before the session takes anything else. Raises ProblemError `at_capacity` when it is to speak and has no line left."""
        ...

    def begin(self, session: Session) -> None:
        """The session's audio path is there. Raises ProblemError `at_capacity`."""
        ...

    def stand_in(self, session: Session) -> AbstractAsyncContextManager[None]:
        """Entered when an agent is lost, left when the next one has joined. It may take the speech with `live.hand_to`, and then
        gives it back with `live.rewind` before it ends.
        """
        ...

    def end(self, session: Session) -> None:
        """The session is over. Without effect for one that did not begin."""
        ...

    def view(self, session: Session) -> dict[str, Any] | None:
        """The voice's part of `/debug/audio`; None while it is not in the room."""
        ...


class NoVoices:
    """Silence until there is an agent again."""

    def reserve(self, session: Session) -> None:
        """Nothing."""

    def begin(self, session: Session) -> None:
        """Nothing."""

    def stand_in(self, session: Session) -> AbstractAsyncContextManager[None]:
        """Nobody."""
        return nullcontext()

    def end(self, session: Session) -> None:
        """Nothing."""

    def view(self, session: Session) -> dict[str, Any] | None:
        """Not there."""
        return None


@dataclass(frozen=True)
class Services:
    """What sessions are made with."""

    pool: AgentPool
    agents: AgentClient
    rooms: Rooms
    minter: TokenMinter
    metrics: Metrics
    events: EventBus
    ledger: Ledger
    ingresses: Ingresses | None = None
    voices: OwnVoices = field(default_factory=NoVoices)
    background: Background = field(default_factory=Background)

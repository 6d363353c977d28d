"""What sessions are made with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field

from orchestrator.agents.client import AgentClient
from orchestrator.agents.pool import AgentPool
from orchestrator.events import EventBus
from orchestrator.ingress import Ingresses
from orchestrator.metrics import Metrics
from orchestrator.session.background import Background
from orchestrator.session.record import Session
from orchestrator.tokens import Rooms, TokenMinter

StandIn = Callable[[Session], AbstractAsyncContextManager[None]]
"""Speaks for a session from the moment its agent is lost until the next one has joined: it may take the speech with
`live.hand_to`, and gives it back with `live.rewind` before the context ends."""


def nobody(_: Session) -> AbstractAsyncContextManager[None]:
    """Silence until there is an agent again."""
    return nullcontext()


@dataclass(frozen=True)
class Services:
    """What sessions are made with."""

    pool: AgentPool
    agents: AgentClient
    rooms: Rooms
    minter: TokenMinter
    metrics: Metrics
    events: EventBus
    ingresses: Ingresses | None = None
    stand_in: StandIn = nobody
    background: Background = field(default_factory=Background)

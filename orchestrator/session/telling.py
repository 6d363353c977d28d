"""The state of a session, told to whoever must know."""

from __future__ import annotations

from musetalk_agent.protocol.http import SessionState
from musetalk_agent.protocol.messages import StateChanged
from orchestrator.events import STATE, EventBus
from orchestrator.session.live import LiveSession
from orchestrator.session.record import Session


def tell_state(events: EventBus, session: Session, to: SessionState, reason: str | None = None) -> None:
    """Steps to `to` and tells it: as an event, and to the sender unless nobody can have connected yet.

    Raises IllegalTransition when the table does not allow it.
    """
    known = session.base_state is not SessionState.STARTING
    session.move(to)
    id = events.publish(session.session_id, STATE, {"state": to.value, "reason": reason})
    if known and session.live is not None:
        session.live.outbox.put(StateChanged(id=id, state=to.value, reason=reason))


def ingress_attributes(session: Session, live: LiveSession) -> dict[str, str] | None:
    """Attributes of the avatar while it comes by ingress and cannot set its own; None while it does not."""
    if session.ingress is None or live.side is None or live.side.vitals.publisher != "rtmp":
        return None
    attributes = {"avatar.state": "speaking" if live.speaking else "idle"}
    if session.order.speaker:
        attributes["lk.publish_on_behalf"] = session.order.speaker
    return attributes

"""Sessions as the store holds them, there and back."""

from __future__ import annotations

import asyncio

from pydantic import BaseModel

from musetalk_agent.protocol.http import AvatarSource, Picture, PublisherMode, RtmpTarget, SessionState
from orchestrator.ingress import RoomIngress
from orchestrator.session.ledger import Ledger
from orchestrator.session.record import Session, SessionOrder
from orchestrator.store.base import StoredSession
from orchestrator.store.seal import Seal, SealBroken


class Sealed(BaseModel):
    """What only this deployment may read: addresses carry keys."""

    order: SessionOrder
    publisher_mode: PublisherMode
    ingress_url: str | None = None


def to_record(session: Session, ledger: Ledger) -> StoredSession:
    """The session as it is now."""
    live, ingress = session.live, session.ingress
    adopting = session.adopted and session.base_state is SessionState.STARTING
    sealed = Sealed(
        order=session.order,
        publisher_mode=session.publisher_mode,
        ingress_url=ingress.target.url if ingress is not None else None,
    )
    return StoredSession(
        session_id=session.session_id,
        identity=session.identity,
        room=session.order.room,
        key=session.order.key,
        sealed=ledger.seal.close(sealed.model_dump_json()),
        agent_url=session.lease.name if session.lease is not None else None,
        created_at=session.created_at,
        expires_at=session.expires_at,
        state=SessionState.RECOVERING if adopting else session.state,
        ended_at=session.ended_at,
        ingress_id=ingress.ingress_id if ingress is not None else None,
        owner=ledger.owner,
        owner_url=ledger.owner_url,
        moves=session.moves,
        progress=live.progress() if live is not None else session.progress,
        view=session.view(),
    )


def from_record(record: StoredSession, seal: Seal) -> Session:
    """The session to go on with; when its order cannot be read, to end."""
    order = SessionOrder(room=record.room, avatar=AvatarSource(), picture=Picture(), key=record.key)
    mode, ingress_url, readable = order.publisher, None, True
    try:
        sealed = Sealed.model_validate_json(seal.open(record.sealed))
        order, mode, ingress_url = sealed.order, sealed.publisher_mode, sealed.ingress_url
    except (SealBroken, ValueError):
        readable = False
    session = Session(
        session_id=record.session_id,
        order=order,
        expires_at=record.expires_at,
        started=asyncio.get_running_loop().create_future(),
        created_at=record.created_at,
        placed=True,
        moves=record.moves,
        adopted=True,
        readable=readable,
        progress=record.progress,
    )
    session.publisher_mode = mode
    if record.ingress_id is not None:
        target = RtmpTarget(url=ingress_url or "rtmp://unknown", ingress=True)
        session.ingress = RoomIngress(record.ingress_id, target)
    return session

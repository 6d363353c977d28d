"""What the holder of a public token is shown of a session: nothing of how the deployment is made."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from orchestrator.events import SessionEvent
from orchestrator.keys import Caller, Scope

_BOTH = ("session_id", "state", "room", "avatar_identity", "fps", "width", "height", "expires_at")
SESSION = (*_BOTH, "started_at", "ended_at", "end_reason")
STARTED = (*_BOTH, "livekit_url", "viewer_identity", "viewer_token")
_DATA = {"publisher.changed": ("publisher",), "warning": ("code", "part"), "error": ("code",)}
"""Fields of events of which the rest is for operators; other events are shown whole."""
_HIDDEN = frozenset({"tool.started", "tool.finished"})


def shown(caller: Caller, view: dict[str, Any]) -> dict[str, Any]:
    """The body of `GET /session/{id}` for this caller."""
    if caller.scope is not Scope.PUBLIC:
        return view
    return {name: view[name] for name in SESSION if name in view}


def shown_start(answer: dict[str, object]) -> dict[str, object]:
    """The answer to a start, for a page: no names of models, and no `audio_url`, which would open the session to any audio."""
    kept = {name: answer[name] for name in STARTED}
    return {**kept, "conversation": {}} if "conversation" in answer else kept


def shown_event(caller: Caller, event: SessionEvent) -> SessionEvent | None:
    """The event for this caller; None for one that it is not shown."""
    if caller.scope is not Scope.PUBLIC:
        return event
    if event.type in _HIDDEN:
        return None
    fields = _DATA.get(event.type)
    if fields is None:
        return event
    body = json.loads(event.text)
    body["data"] = {name: value for name, value in body["data"].items() if name in fields}
    return replace(event, text=json.dumps(body, separators=(",", ":")))

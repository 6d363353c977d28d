"""Clips by their names, in the sessions of this process: at once, or when a text has reached its mark."""

from __future__ import annotations

import json
import logging
from functools import partial

from musetalk_agent.protocol.action_marks import IDLE, ActionMarks
from musetalk_agent.protocol.problems import ProblemError
from orchestrator.avatars.avatar_library import Avatars, no_clip
from orchestrator.events import SessionEvent
from orchestrator.session.deps import BackgroundTasks
from orchestrator.session.manager import SessionManager
from orchestrator.session.model import ManagedSession
from orchestrator.session.spoken_actions import TextActions

MARK_REACHED = "reply.action"
"""The event of a conversation whose reply has reached a mark."""
_log = logging.getLogger(__name__)


class ClipPlayer:
    """Plays the clips of the avatar that a session shows at that moment."""

    def __init__(self, sessions: SessionManager, avatars: Avatars, background: BackgroundTasks) -> None:
        self._sessions, self._avatars, self._background = sessions, avatars, background

    async def act(self, session: ManagedSession, name: str, *, loop: bool) -> None:
        """Plays a clip once or on and on; `idle` ends it.

        Raises ProblemError: `clip_not_found`, and what `SessionManager.act` raises.
        """
        clip: str | None = None
        if name != IDLE:
            kept = session.order.library_avatar
            record = await self._avatars.find(kept) if kept is not None else None
            clip = record.clip(name) if record is not None else None
            if clip is None:
                raise no_clip(name, record)
        await self._sessions.act(session, clip, loop=loop)

    async def names(self, session: ManagedSession) -> tuple[str, ...]:
        """Names of the clips of the avatar that is shown."""
        return await self._avatars.clip_names(session.order.library_avatar)

    def of_text(self, session: ManagedSession, names: tuple[str, ...]) -> TextActions:
        """For a text that the session is about to speak: takes out the marks with these names, and plays their clips."""
        return TextActions(ActionMarks(names), partial(self._play, session.session_id))

    def on_event(self, event: SessionEvent) -> None:
        """A listener of the bus: a conversation's reply has reached a mark. Returns at once."""
        if event.type == MARK_REACHED:
            self._play(event.session_id, str(json.loads(event.text)["data"].get("name")))

    def _play(self, session_id: str, name: str) -> None:
        if self._sessions.registry.holds(session_id):
            self._background.spawn(self._try(session_id, name), f"action-{session_id}", awaited=False)

    async def _try(self, session_id: str, name: str) -> None:
        try:
            await self.act(self._sessions.registry.get(session_id), name, loop=False)
        except ProblemError as error:  # the speech goes on without it
            _log.info("an action was not played", extra={"session_id": session_id, "reason": error.detail})

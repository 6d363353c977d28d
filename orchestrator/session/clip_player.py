"""The clips of avatars in the sessions of this process: by name, at once or at a mark of a text, and as a conversation goes."""

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


LISTENING, THINKING = "listening", "thinking"


class ConversationClips:
    """Plays `listening` while a person speaks to the avatar, and `thinking` from their end to the first audio.

    Of several changes that come while one is being made, the last one counts. What fails is tried again with the next change.
    """

    def __init__(self, sessions: SessionManager, avatars: Avatars, background: BackgroundTasks) -> None:
        self._sessions, self._avatars, self._background = sessions, avatars, background
        self._wanted: dict[str, str] = {}
        self._playing: dict[str, str] = {}
        self._at_work: set[str] = set()

    def on_event(self, event: SessionEvent) -> None:
        """A listener of the bus: takes what a conversation reports. Returns at once."""
        session_id = event.session_id
        if event.last:
            self._wanted.pop(session_id, None)
            self._playing.pop(session_id, None)
            return
        name = _clip_for(event)
        if name is None or (name == IDLE and session_id not in self._playing and session_id not in self._at_work):
            return
        self._wanted[session_id] = name
        if session_id not in self._at_work:
            self._at_work.add(session_id)
            self._background.spawn(self._follow(session_id), f"clips-{session_id}", awaited=False)

    async def _follow(self, session_id: str) -> None:
        try:
            while (name := self._wanted.pop(session_id, None)) is not None:
                await self._play(session_id, name)
        except ProblemError as error:
            _log.info("a clip was not played", extra={"session_id": session_id, "reason": error.detail})
        finally:
            self._at_work.discard(session_id)

    async def _play(self, session_id: str, name: str) -> None:
        if not self._sessions.registry.holds(session_id):
            return
        session = self._sessions.registry.get(session_id)
        kept = session.order.library_avatar
        record = await self._avatars.find(kept) if kept is not None and name != IDLE else None
        clip = record.clip(name) if record is not None else None
        playing = self._playing.get(session_id)
        if clip is not None and playing != name:
            await self._sessions.act(session, clip, loop=True)
            self._playing[session_id] = name
        elif clip is None and playing is not None:
            await self._sessions.act(session, None, loop=False)
            self._playing.pop(session_id, None)


def _clip_for(event: SessionEvent) -> str | None:
    """The clip that an event asks for; None for one that asks for none."""
    if event.type == "user.started":
        return LISTENING
    if event.type == "reply.started":
        return IDLE
    if event.type != "conversation.state":
        return None
    return THINKING if json.loads(event.text)["data"].get("state") == THINKING else IDLE

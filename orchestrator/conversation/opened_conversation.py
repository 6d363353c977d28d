"""The service's state of one session's conversation: its history, the texts that wait for an answer, and the reply that is being
spoken."""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from orchestrator.conversation.conversation_messages import ChatMessage, HistoryMessage, OpenConversation, SayLine
from orchestrator.conversation.function_tools import FunctionTools

HISTORY_MAX = 1000
"""Messages kept of one conversation; past it the oldest goes."""
KEPT_BYTES = 64 << 10
"""Of history that a new worker gets, and of history and waiting texts that a take-over brings along, as JSON before compression.
Past it the oldest messages go. A message of the pipe (`worker_pipe.HEADER_LIMIT`) holds it beside instructions and functions."""
_FAILING = {
    "stt": "What was said could not be recognised",
    "llm": "The language model did not answer",
    "tts": "The answer could not be spoken",
    "other": "A model failed",
}
_UNHEARD = {
    "none": "No participant of the room publishes a microphone: allow it in the browser, or send texts to POST /session/{id}/chat.",
    "muted": "The microphone in the room is muted.",
    "silent": "The microphone in the room sends silence: check which device it is, and its level.",
    "late": "This machine is too busy for its conversations: part of what the microphone said in the last ten seconds was dropped.",
}


class _KeptMessages(BaseModel):
    messages: list[HistoryMessage] = []
    waiting: list[ChatMessage | SayLine] = []


@dataclass(eq=False)
class OpenedConversation:
    """Goes on whatever happens to the worker.

    Attributes:
        opening: what the worker is given, as of now; None while the models start.
        tools: the functions that its model may call.
        placed: it counts among those that a worker may have.
        waiting: texts that the worker has not begun to answer, by id, in their order.
        losses: how often in a row it left its room.
        state: of livekit-agents' agent, `away` while no worker has it.
        microphone: what the worker last said of the users' microphones; None before that.
        listening_to: identity of the participant whose microphone is heard; None before there was one.
        failures: the parts that failed when they were used last (`stt`, `llm`, `tts`, …), with what was wrong.
    """

    session_id: str
    opening: Callable[[], OpenConversation] | None = None
    tools: FunctionTools = ()
    placed: bool = False
    messages: list[HistoryMessage] = field(default_factory=list)
    models: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, ChatMessage | SayLine] = field(default_factory=dict)
    losses: int = 0
    state: str = "away"
    microphone: str | None = None
    listening_to: str | None = None
    failures: dict[str, str] = field(default_factory=dict)
    trouble: str | None = None
    """Why it cannot be opened, or left its room; None while it is in it."""
    opened_at: float = 0.0
    reopening: asyncio.TimerHandle | None = None
    _half: HistoryMessage | None = None
    _answering: str | None = None
    _packed: tuple[object, str] | None = None

    def rest(self) -> None:
        """It is not opened again by itself."""
        if self.reopening is not None:
            self.reopening.cancel()
            self.reopening = None

    @property
    def busy(self) -> bool:
        """Whether it answers."""
        return self.state in ("thinking", "speaking") or bool(self.waiting)

    def note(self, event: str, data: dict[str, object]) -> None:
        """An event of the worker changes what is known of it."""
        self.waiting.pop(str(data.get("message_id")), None)
        if event == "conversation.state":
            self.state = str(data.get("state"))
            if self.state == "listening":  # a reply of which nothing was heard is in no history
                self._half = None
        elif event == "turn" or event == "reply.started":
            self.failures.clear()
        elif event == "user.transcript":
            self.failures.pop("stt", None)
        elif event == "reply.finished" and not data.get("text"):
            self._half = None  # no word of it was heard, so no message comes of it
        elif data.get("code") == "conversation_provider":
            self.failures[str(data.get("part", "other"))] = str(data.get("detail"))

    def debug(self, *, running: bool) -> dict[str, Any]:
        """Its part of `/debug/audio`. `running`: there is a worker."""
        return {
            "state": self.state,
            "models": dict(self.models),
            "microphone": self.microphone,
            "listening_to": self.listening_to,
            "waiting": len(self.waiting),
            "messages": len(self.messages),
            "failures": dict(self.failures),
            "diagnosis": self._diagnosis(running),
        }

    def _diagnosis(self, running: bool) -> dict[str, str]:
        """Why it does not answer: the first cause that is true."""
        if self.opening is None:
            return {"code": "starting", "message": self.trouble or "Its models are being started."}
        if not running:
            return {"code": "worker_away", "message": "The conversation worker is being started again."}
        if self.trouble is not None or self.state == "away":
            text = self.trouble or "it joins the room"
            return {"code": "not_in_room", "message": f"The conversation is not in its room: {text}"}
        for part, text in _FAILING.items():
            if part in self.failures:
                return {"code": f"{part}_failed", "message": f"{text}: {self.failures[part]}"}
        if self.microphone in _UNHEARD:
            return {"code": f"microphone_{self.microphone}", "message": _UNHEARD[self.microphone]}
        return {"code": "ok", "message": "It listens and answers."}

    # --- its history

    def add(self, message: HistoryMessage) -> None:
        """The history has one message more. A reply takes the place of what was known of it while it was said."""
        self._half = None
        self.messages.append(message)
        del self.messages[:-HISTORY_MAX]

    def history(self) -> tuple[HistoryMessage, ...]:
        """Its newest messages, in their order, for a worker that opens it."""
        return tuple(_newest(self.messages, KEPT_BYTES))

    def said(self, words: str) -> None:
        """The avatar got the sound of these words of a reply that is not over."""
        half = self._half or HistoryMessage(
            id=f"msg_{secrets.token_hex(8)}", role="assistant", text="", interrupted=True, created_at=time.time()
        )
        self._half = half.model_copy(update={"text": half.text + words})

    def broken_off(self) -> HistoryMessage | None:
        """No worker has it any more. Returns the reply that was being said, which is part of the history now, if there was one."""
        self.state = "away"
        half, self._half = self._half, None
        if half is not None:
            self.messages.append(half)
        return half

    @property
    def unanswered(self) -> bool:
        """Whether the last message is the user's, and no worker was given it to be answered."""
        last = self.messages[-1] if self.messages else None
        return last is not None and last.role == "user" and last.id != self._answering

    def given(self) -> None:
        """A worker has it now, and answers what is unanswered: once, as it may be what the last one died of."""
        self._answering = self.messages[-1].id if self.unanswered else self._answering

    # --- over the end of this process

    def pack(self) -> str:
        """What another process needs to go on, as ASCII of a bounded length."""
        messages = [*self.messages, self._half] if self._half is not None else list(self.messages)
        state = (len(messages), messages[-1] if messages else None, tuple(self.waiting))
        if self._packed is None or self._packed[0] != state:
            waiting = list(self.waiting.values())
            room = KEPT_BYTES - sum(len(each.model_dump_json()) for each in waiting)
            text = _KeptMessages(messages=_newest(messages, room), waiting=waiting).model_dump_json()
            self._packed = state, base64.b64encode(zlib.compress(text.encode())).decode()
        return self._packed[1]

    @classmethod
    def unpack(cls, session_id: str, packed: str) -> OpenedConversation:
        """The conversation again, not opened. Raises ValueError for invalid data."""
        try:
            text = zlib.decompressobj().decompress(base64.b64decode(packed), 2 * KEPT_BYTES)
        except zlib.error as error:
            raise ValueError("it is not compressed") from error
        kept = _KeptMessages.model_validate_json(text)
        return cls(session_id, messages=kept.messages, waiting={each.message_id: each for each in kept.waiting})


def _newest(messages: list[HistoryMessage], room: int) -> list[HistoryMessage]:
    """The last of `messages` whose JSON has at most `room` bytes together."""
    kept: list[HistoryMessage] = []
    for message in reversed(messages):
        room -= len(message.model_dump_json().encode())
        if room < 0:
            break
        kept.append(message)
    return kept[::-1]

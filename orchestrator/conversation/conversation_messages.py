"""Messages between the service and the conversation worker, as framed JSON (`worker_pipe`). Imported by both: pydantic only."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Provider(_Message):
    """An HTTP service in OpenAI's dialect. `base_url` ends before `/chat/completions` and the like."""

    base_url: str
    model: str
    api_key: str = Field(default="-", repr=False)


class HistoryMessage(_Message):
    """One message of the conversation. `text` of a reply is what was heard of it."""

    id: str
    role: Literal["user", "assistant"]
    text: str
    interrupted: bool = False
    created_at: float


class OpenConversation(_Message):
    """Join the room and talk. `history` is what was said before the worker was lost."""

    type: Literal["open"] = "open"
    session_id: str
    url: str
    token: str = Field(repr=False)
    avatar_identity: str
    instructions: str
    greeting: str | None = None
    language: str = "en"
    voice: str = ""
    llm: Provider
    stt: Provider
    tts: Provider
    reply_tokens: int | None = None
    history: tuple[HistoryMessage, ...] = ()
    answer_last: bool = False
    """The last message of the history is the user's, and has no answer yet."""


class ChatMessage(_Message):
    """A text of the user, answered as if it had been said."""

    type: Literal["chat"] = "chat"
    session_id: str
    message_id: str
    text: str


class CloseConversation(_Message):
    """Leave the room."""

    type: Literal["close"] = "close"
    session_id: str


class WorkerBeat(_Message):
    """The worker lives. The first message, and again every second."""

    type: Literal["beat"] = "beat"


class ConversationEvent(_Message):
    """An event for the session's readers; `name` and `data` are those of `GET /session/{id}/events`."""

    type: Literal["event"] = "event"
    session_id: str
    name: str
    data: dict[str, object]


class MessageAdded(_Message):
    """The history has one message more."""

    type: Literal["message"] = "message"
    session_id: str
    message: HistoryMessage


class WordsSpoken(_Message):
    """The avatar got the sound of these words, of a reply that is not over."""

    type: Literal["words"] = "words"
    session_id: str
    text: str


class MicrophoneState(_Message):
    """What is known of the users' microphones."""

    type: Literal["microphone"] = "microphone"
    session_id: str
    state: Literal["none", "muted", "silent", "heard"]


class ConversationEnded(_Message):
    """The conversation is not in its room any more; `reason` is empty after `CloseConversation`."""

    type: Literal["ended"] = "ended"
    session_id: str
    reason: str = ""


Command = Annotated[OpenConversation | ChatMessage | CloseConversation, Field(discriminator="type")]
AnyReport = WorkerBeat | ConversationEvent | MessageAdded | WordsSpoken | MicrophoneState | ConversationEnded
Report = Annotated[AnyReport, Field(discriminator="type")]
commands: TypeAdapter[OpenConversation | ChatMessage | CloseConversation] = TypeAdapter(Command)
reports: TypeAdapter[AnyReport] = TypeAdapter(Report)

"""Messages between the service and the conversation worker, as framed JSON (`worker_pipe`). Imported by both: pydantic only."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Provider(_Message):
    """Where a model is.

    `openai`: an HTTP service in OpenAI's dialect; `base_url` ends before `/chat/completions` and the like. `livekit`: LiveKit's
    inference, which wants the project's key and secret. `own`: the orchestrator's voices, in OpenAI's dialect too. `realtime`:
    OpenAI's realtime dialect over a WebSocket; such a model is all three of a conversation's parts.
    """

    base_url: str
    model: str
    api_key: str = Field(default="-", repr=False)
    api_secret: str = Field(default="", repr=False)
    dialect: Literal["openai", "livekit", "own", "realtime"] = "openai"


class ToolDescription(_Message):
    """A function that the model may call. `parameters` is the JSON schema of its arguments."""

    name: str
    description: str
    parameters: dict[str, object]


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
    recognise_early: bool = False
    """Speech is recognised, and its answer begun, at each short pause. Embedded models have no time for what is then void."""
    tools: tuple[ToolDescription, ...] = ()
    clips: tuple[str, ...] = ()
    """Names of the avatar's clips: `[NAME]` in what it says plays one."""
    history: tuple[HistoryMessage, ...] = ()
    answer_last: bool = False
    """The last message of the history is the user's, and has no answer yet."""


class ChatMessage(_Message):
    """A text of the user, answered as if it had been said."""

    type: Literal["chat"] = "chat"
    session_id: str
    message_id: str
    text: str


class ToolResult(_Message):
    """What the model gets of its call: the tool's answer, or (`ok` false) why there is none."""

    type: Literal["tool_result"] = "tool_result"
    session_id: str
    call_id: str
    ok: bool
    text: str


class SayLine(_Message):
    """A line that the avatar says, after what it is saying."""

    type: Literal["say"] = "say"
    session_id: str
    message_id: str
    text: str


class InterruptReply(_Message):
    """What the avatar says is over, and so are the lines that wait."""

    type: Literal["interrupt"] = "interrupt"
    session_id: str


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


class MicrophoneReport(_Message):
    """What is known of the users' microphones."""

    type: Literal["microphone"] = "microphone"
    session_id: str
    state: Literal["none", "muted", "silent", "late", "heard"]


class ListeningTo(_Message):
    """The worker listens to this participant's microphone from now on."""

    type: Literal["listening_to"] = "listening_to"
    session_id: str
    participant: str


class ToolCall(_Message):
    """The model calls a function: `ToolResult` follows, unless the call is cancelled. `call_id` is the worker's own."""

    type: Literal["tool_call"] = "tool_call"
    session_id: str
    call_id: str
    name: str
    arguments: dict[str, object]


class ToolCancelled(_Message):
    """Nothing waits for the call's result any more."""

    type: Literal["tool_cancelled"] = "tool_cancelled"
    session_id: str
    call_id: str


class ConversationEnded(_Message):
    """The conversation is not in its room any more; `reason` is empty after `CloseConversation`."""

    type: Literal["ended"] = "ended"
    session_id: str
    reason: str = ""


AnyCommand = OpenConversation | ChatMessage | SayLine | ToolResult | InterruptReply | CloseConversation
AnyReport = (
    WorkerBeat
    | ConversationEvent
    | MessageAdded
    | WordsSpoken
    | MicrophoneReport
    | ListeningTo
    | ToolCall
    | ToolCancelled
    | ConversationEnded
)
commands: TypeAdapter[AnyCommand] = TypeAdapter(Annotated[AnyCommand, Field(discriminator="type")])
reports: TypeAdapter[AnyReport] = TypeAdapter(Annotated[AnyReport, Field(discriminator="type")])

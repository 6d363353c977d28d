"""The conversations of this orchestrator: one worker process holds them all, and gets them back when it is started again."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.conversation.conversation_messages import (
    ChatMessage,
    CloseConversation,
    ConversationEnded,
    ConversationEvent,
    InterruptReply,
    ListeningTo,
    MessageAdded,
    MicrophoneReport,
    OpenConversation,
    Provider,
    SayLine,
    ToolCall,
    ToolCancelled,
    ToolDescription,
    WordsSpoken,
    reports,
)
from orchestrator.conversation.embedded_model import ROOT, EmbeddedModel, unavailable
from orchestrator.conversation.opened_conversation import OpenedConversation
from orchestrator.conversation.options import ConversationOptions, ConversationRequest
from orchestrator.conversation.tool_calls import ToolCaller, ToolCalls
from orchestrator.events import EventBus
from orchestrator.metrics import Metrics
from orchestrator.tts.voice_choice import auto_voice
from orchestrator.worker_process import WorkerLink, WorkerLost, WorkerProcess, WorkerTimes, backoff_s, bare_environment

CONVERSATIONS_MAX = 32
EMBEDDED_REPLY_TOKENS = 80
"""The embedded language model rambles: two sentences are enough."""
BACKOFF_S = (0.1, 5.0)
WORKER = ("-m", "orchestrator.conversation.worker")
"""Arguments of the interpreter."""
_HELLO_S = 60.0
"""The worker imports livekit-agents: 2 s, many times that beside other load."""
SILENCE_S = 10.0
"""The worker reports every second; after this long without a report it hangs and is killed."""
_SETTLED_S = 10.0
_EXIT_S = 5.0
REOPEN_S = (1.0, 30.0)
"""First and longest wait before a conversation that left its room joins it again; it doubles until one has lived for a while."""
_UNSENT_BYTES = 1 << 20
"""A worker that leaves this much unread hangs."""
RESUME_S = (0.2, 30.0)
"""First and longest wait before it is tried again to go on with the conversation of a session that was taken over."""
PARTS = ("llm", "stt", "tts")
WAITING_MAX = 16
PLUGIN = ROOT / "integrations" / "livekit_agents"
log = logging.getLogger(__name__)


def find_python() -> str | None:
    """Interpreter of the environment that `tools/setup conversation` makes; `CONVERSATION_PYTHON` names another one."""
    given = os.environ.get("CONVERSATION_PYTHON")
    if given is not None:
        return given or None
    found = Path.home() / ".cache/musetalk-livekit/envs/conversation/bin/python"
    return str(found) if found.exists() else None


@dataclass(frozen=True)
class Place:
    """The room of a conversation: LiveKit's address, a token for every join, and the avatar's identity in it."""

    url: str
    token: Callable[[], str] = field(repr=False)
    avatar: str
    clips: tuple[str, ...] = ()
    """Names of the avatar's clips."""


class Conversations:
    """Holds the conversations of one event loop.

    Args:
        bus: takes the conversations' events.
        worker: arguments of the interpreter that run the worker; by default `WORKER`.
        tools: calls the functions that conversations have; by default unsigned and at public addresses.
        address: base URL of this service on loopback, with a key that may call `/v1/audio/speech`; None before it listens.
    """

    def __init__(
        self,
        options: ConversationOptions,
        bus: EventBus,
        metrics: Metrics,
        address: Callable[[], Provider | None],
        worker: tuple[str, ...] | None = None,
        tools: ToolCalls | None = None,
    ) -> None:
        self._options = options
        self._bus = bus
        self._metrics = metrics
        self._address = address
        self._tools = tools or ToolCalls(lambda _: ToolCaller("", ()), bus, metrics)
        self._conversations: dict[str, OpenedConversation] = {}
        self._models = {
            kind: EmbeddedModel(kind, options.python, threads, self._move_all)
            for kind, threads in options.threads.items()
            if options.python
        }
        environment = {"HOME": os.environ.get("HOME", "/"), "PATH": os.defpath}
        self.worker = WorkerProcess(
            "conversation worker",
            (str(options.python), *(WORKER if worker is None else worker)),
            self._serve,
            times=WorkerTimes(BACKOFF_S, _SETTLED_S, _EXIT_S, _UNSENT_BYTES),
            environment=bare_environment(path=(str(PLUGIN), str(ROOT))) | environment,
            lost=lambda _: metrics.conversation_worker_losses.inc(),
            metrics=metrics,
        )
        metrics.conversations.set_function(lambda: len(self._conversations))
        self._resuming: dict[str, asyncio.Task[None]] = {}
        self._opened = False

    async def begin(self, session_id: str, request: ConversationRequest, place: Place) -> OpenedConversation:
        """Opens a conversation.

        Raises ProblemError `conversation_unavailable`, `at_capacity`. Cancelling opens none.
        """
        conversation = OpenedConversation(session_id)
        self._conversations[session_id] = conversation
        with ExitStack() as on_error:  # cancelled or failed: nothing of it is left
            on_error.callback(self._conversations.pop, session_id, None)
            await self._prepare(conversation, request, place)
            on_error.pop_all()
        if request.tools and conversation.models["llm"] == "embedded":
            detail = "The embedded language model calls no functions: give LLM_BASE_URL, or conversation.llm."
            self._bus.publish(session_id, "warning", {"code": "conversation_tools_unused", "detail": detail})
        self._open(conversation)
        return conversation

    def resume(self, conversation: OpenedConversation, request: ConversationRequest, place: Place) -> None:
        """Goes on with the conversation of a session that another process began, as soon as its models are there. Never fails:
        the session is an avatar until then, and a `warning` says what is wrong.
        """
        self._conversations[conversation.session_id] = conversation
        task = asyncio.create_task(self._resume(conversation, request, place), name="conversation-resume")
        self._resuming[conversation.session_id] = task
        task.add_done_callback(lambda _: self._resuming.pop(conversation.session_id, None))

    async def _resume(self, conversation: OpenedConversation, request: ConversationRequest, place: Place) -> None:
        tries = 0
        while True:
            try:
                await self._prepare(conversation, request, place)
                break
            except ProblemError as error:
                tries += 1
                if tries > 1:  # the first comes before this process listens
                    self._fail(conversation, str(error))
            await asyncio.sleep(backoff_s(tries, RESUME_S))
        self._open(conversation)

    async def _prepare(self, conversation: OpenedConversation, request: ConversationRequest, place: Place) -> None:
        """Starts what the conversation needs. Raises ProblemError."""
        if self._options.python is None:
            raise unavailable("livekit-agents is not installed here")
        if sum(each.placed for each in self._conversations.values()) >= CONVERSATIONS_MAX:
            text = f"All {CONVERSATIONS_MAX} conversations are taken: try again later."
            raise ProblemError(ErrorCode.AT_CAPACITY, text, retry_after_s=5)
        if self._address() is None:
            raise unavailable("the service does not know its own address yet")
        serving = self._options.serving(request)
        llm, stt = serving.llm, serving.stt

        # One voice for all of a conversation: a short sentence may look like one in another language.
        by_language = auto_voice(request.language if "language" in request.model_fields_set else "")

        def opening() -> OpenConversation:
            tts = serving.tts or self._address()
            assert tts is not None
            return OpenConversation(
                session_id=conversation.session_id,
                url=place.url,
                token=place.token(),
                avatar_identity=place.avatar,
                instructions=request.instructions + (_gestures(place.clips) if _writes(llm) else ""),
                greeting=request.greeting,
                language=request.language,
                voice=serving.voice or (by_language if serving.tts is None else ""),
                llm=llm or self._models["llm"].provider,
                stt=stt or self._models["stt"].provider,
                tts=tts,
                reply_tokens=EMBEDDED_REPLY_TOKENS if llm is None else None,
                recognise_early=llm is not None and stt is not None,
                tools=tuple(
                    ToolDescription(name=each.name, description=each.description, parameters=each.parameters)
                    for each in request.tools
                ),
                clips=place.clips,
                history=conversation.history(),
                answer_last=conversation.unanswered,
            )

        with ExitStack() as on_error:  # cancelled or failed: the place is given back
            conversation.placed = True
            on_error.callback(setattr, conversation, "placed", False)
            self.worker.open()  # it takes as long to start as the models
            needed = [self._models[kind] for kind, given in (("llm", llm), ("stt", stt)) if given is None]
            await asyncio.gather(*(model.start() for model in needed))
            on_error.pop_all()
        conversation.opening, conversation.tools = opening, request.tools
        conversation.models = serving.names

    def chat(self, session_id: str, text: str) -> str:
        """Hands the user's text to the conversation; returns the message's id.

        While the worker is away the text waits for it, also one that a worker had when it was lost.

        Raises ProblemError `session_conflict` when the session has no conversation, or as many texts wait as may.
        """
        return self._hand(ChatMessage(session_id=session_id, message_id=_message_id(), text=text))

    def say(self, session_id: str, text: str) -> str:
        """Hands the avatar a line of its own to say; returns the message's id. Waits and raises as `chat` does."""
        return self._hand(SayLine(session_id=session_id, message_id=_message_id(), text=text))

    def interrupt(self, session_id: str) -> None:
        """Ends what the avatar says. Without effect where the session has no conversation, and while the worker is away."""
        if session_id in self._conversations:
            self.worker.send(InterruptReply(session_id=session_id))

    def _hand(self, message: ChatMessage | SayLine) -> str:
        conversation = self.get(message.session_id)
        if len(conversation.waiting) >= WAITING_MAX:
            detail = f"{WAITING_MAX} texts of this conversation wait for their answers: try again."
            raise ProblemError(ErrorCode.SESSION_CONFLICT, detail, limit=WAITING_MAX, retry_after_s=2)
        conversation.waiting[message.message_id] = message
        self.worker.send(message)
        return message.message_id

    def get(self, session_id: str) -> OpenedConversation:
        """Raises ProblemError `session_conflict` for a session without a conversation."""
        found = self._conversations.get(session_id)
        if found is None:
            text = f"Session {session_id} has no conversation: give `conversation` at /session/start."
            raise ProblemError(ErrorCode.SESSION_CONFLICT, text)
        return found

    def end(self, session_id: str) -> None:
        """The session is over. Without effect where it has no conversation."""
        conversation = self._conversations.pop(session_id, None)
        if conversation is not None:
            conversation.rest()
            self._break_off(conversation)
            self._tools.cancel(session_id)
            self.worker.send(CloseConversation(session_id=session_id))
        task = self._resuming.pop(session_id, None)
        if task is not None:
            task.cancel()

    async def aclose(self) -> None:
        """Ends the worker and the models, in bounded time. Idempotent."""
        for task in list(self._resuming.values()):
            task.cancel()
        await asyncio.gather(*self._resuming.values(), return_exceptions=True)
        await self.worker.aclose()
        await self._tools.aclose()
        for conversation in self._conversations.values():
            conversation.rest()
        await asyncio.gather(*(model.aclose() for model in self._models.values()))

    def view(self, session_id: str) -> dict[str, Any] | None:
        """The models of a session's conversation; None where it has none."""
        found = self._conversations.get(session_id)
        return None if found is None else dict(found.models)

    def status(self, session_id: str) -> dict[str, Any]:
        """`conversation` of `GET /session/{id}`: the models and the state. Empty where the session has none."""
        found = self._conversations.get(session_id)
        return {} if found is None else {"conversation": {**found.models, "state": found.state}}

    def debug(self, session_id: str) -> dict[str, Any] | None:
        """A conversation's part of `/debug/audio`; None where the session has none."""
        found = self._conversations.get(session_id)
        return None if found is None else found.debug(running=self.worker.pid is not None)

    def _open(self, conversation: OpenedConversation) -> None:
        conversation.rest()
        conversation.opened_at = asyncio.get_running_loop().time()
        if conversation.opening is None or not self.worker.send(conversation.opening()):
            return  # its models start, or the worker opens all of them as soon as it runs
        conversation.given()
        for message in conversation.waiting.values():
            self.worker.send(message)

    # --- the worker

    async def _serve(self, link: WorkerLink) -> None:
        self._opened = False
        try:
            await link.listen(reports.validate_json, self._take, _HELLO_S, SILENCE_S)
        except WorkerLost:
            for conversation in self._conversations.values():
                if conversation.opening is not None:  # else its models start
                    self._report_away(conversation)
            raise
        finally:
            self._tools.cancel()  # the calls of models that are gone

    def _move_all(self) -> None:
        """A model has another port: its conversations leave their rooms, and are opened anew with their history."""
        for conversation in self._conversations.values():
            if "embedded" in (conversation.models.get("llm"), conversation.models.get("stt")):
                self.worker.send(CloseConversation(session_id=conversation.session_id))

    def _take(self, message: BaseModel) -> None:
        if not self._opened:  # the first message of a worker: it runs
            self._opened = True
            for conversation in self._conversations.values():
                self._open(conversation)
        session_id = getattr(message, "session_id", None)
        of = self._conversations.get(session_id) if session_id else None
        if of is not None:
            self._take_of(of, message)

    def _take_of(self, conversation: OpenedConversation, message: BaseModel) -> None:
        if isinstance(message, ConversationEvent):
            conversation.trouble = None
            conversation.note(message.name, message.data)
            self._count(message)
            self._bus.publish(conversation.session_id, message.name, message.data)
        elif isinstance(message, MessageAdded):
            conversation.add(message.message)
        elif isinstance(message, WordsSpoken):
            conversation.said(message.text)
        elif isinstance(message, MicrophoneReport):
            conversation.microphone = message.state
            if message.state == "late":
                self._metrics.conversation_microphone_late.inc()
        elif isinstance(message, ListeningTo):
            conversation.listening_to = message.participant
        elif isinstance(message, ToolCall):
            self._tools.begin(message, conversation.tools, self.worker.send)
        elif isinstance(message, ToolCancelled):
            self._tools.cancel(conversation.session_id, message.call_id)
        elif isinstance(message, ConversationEnded):
            self._tools.cancel(conversation.session_id)
            self._report_away(conversation)
            self._fail(conversation, message.reason)
            self._reopen_later(conversation)

    def _report_away(self, conversation: OpenedConversation) -> None:
        """LiveKit keeps a killed participant in the room for seconds: clients learn of the loss by this event."""
        self._break_off(conversation)
        self._bus.publish(conversation.session_id, "conversation.state", {"state": "away"})

    def _break_off(self, conversation: OpenedConversation) -> None:
        """No worker has it any more: the reply that it said is over."""
        half = conversation.broken_off()
        if half is not None:
            data = {"text": half.text.strip(), "interrupted": True}
            self._bus.publish(conversation.session_id, "reply.finished", data)

    def _fail(self, conversation: OpenedConversation, reason: str) -> None:
        """It is not in its room; the session goes on as an avatar."""
        if reason and reason != conversation.trouble:
            log.warning("a conversation is away", extra={"session_id": conversation.session_id, "reason": reason})
            data = {"code": "conversation_away", "detail": reason}
            self._bus.publish(conversation.session_id, "warning", data)
        conversation.trouble = reason or None

    def _reopen_later(self, conversation: OpenedConversation) -> None:
        loop = asyncio.get_running_loop()
        settled = loop.time() - conversation.opened_at > REOPEN_S[1]
        conversation.losses = 1 if settled else conversation.losses + 1
        conversation.rest()
        delay_s = backoff_s(conversation.losses, REOPEN_S)
        conversation.reopening = loop.call_later(delay_s, self._open, conversation)

    def _count(self, event: ConversationEvent) -> None:
        if event.name == "turn":
            self._metrics.conversation_turns.inc()
            for part, wait_ms in event.data.items():
                if part.endswith("_ms") and isinstance(wait_ms, int | float):
                    self._metrics.conversation_wait_seconds.labels(part=part.removesuffix("_ms")).observe(wait_ms / 1e3)
        elif event.data.get("code") == "conversation_provider":
            part = str(event.data.get("part", "other"))
            self._metrics.conversation_provider_errors.labels(part=part if part in PARTS else "other").inc()


def _message_id() -> str:
    return f"msg_{secrets.token_hex(8)}"


_OWN_CLIPS = frozenset({"idle", "listening", "thinking"})
"""Clips that play by themselves."""


def _writes(llm: Provider | None) -> bool:
    """Whether a model gets the names of the clips: the embedded one is too small for it, a realtime one would read marks aloud."""
    return llm is not None and llm.dialect != "realtime"


def _gestures(clips: tuple[str, ...]) -> str:
    """The part of a language model's instructions that names the avatar's clips."""
    marks = " ".join(f"[{name}]" for name in clips if name not in _OWN_CLIPS)
    if not marks:
        return ""
    return (
        f"\n\nYou have a body that can make these gestures: {marks}. To make one, write it, brackets included, right before the "
        "words that it goes with. It is not read aloud. Use one now and then, where a person would. Put nothing else in brackets."
    )

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
from orchestrator import worker_pipe
from orchestrator.conversation.conversation_messages import (
    ChatMessage,
    CloseConversation,
    ConversationEnded,
    ConversationEvent,
    HistoryMessage,
    MessageAdded,
    OpenConversation,
    Provider,
    reports,
)
from orchestrator.conversation.embedded_model import ROOT, EmbeddedModel, unavailable
from orchestrator.conversation.options import ConversationOptions, ConversationRequest
from orchestrator.events import EventBus
from orchestrator.metrics import Metrics
from orchestrator.supervision import supervise
from orchestrator.worker_pipe import WorkerLost, end, log_errors

CONVERSATIONS_MAX = 32
HISTORY_MAX = 1000
"""Messages kept of one conversation; past it the oldest goes."""
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
_REOPEN_S = 1.0
_UNSENT_BYTES = 1 << 20
"""A worker that leaves this much unread hangs."""
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


@dataclass(eq=False)
class OpenedConversation:
    """One session's conversation, whatever happens to the worker."""

    session_id: str
    opening: Callable[[tuple[HistoryMessage, ...]], OpenConversation]
    messages: list[HistoryMessage] = field(default_factory=list)
    models: dict[str, str] = field(default_factory=dict)
    closed: bool = False
    waiting: dict[str, ChatMessage] = field(default_factory=dict)
    """Texts that the worker has not begun to answer, by id, in their order; at most `WAITING_MAX`."""


class Conversations:
    """Holds the conversations of one event loop.

    Args:
        bus: takes the conversations' events.
        worker: arguments of the interpreter that run the worker; by default `WORKER`.
        address: base URL of this service on loopback, with a key that may call `/v1/audio/speech`; None before it listens.
    """

    def __init__(
        self,
        options: ConversationOptions,
        bus: EventBus,
        metrics: Metrics,
        address: Callable[[], Provider | None],
        worker: tuple[str, ...] | None = None,
    ) -> None:
        self._options = options
        self._bus = bus
        self._metrics = metrics
        self._address = address
        self._worker = WORKER if worker is None else worker
        self._conversations: dict[str, OpenedConversation] = {}
        self._models = {
            kind: EmbeddedModel(kind, options.python, options.threads) for kind in ("llm", "stt") if options.python
        }
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._reopening: set[asyncio.TimerHandle] = set()
        self._ready = False

    async def begin(
        self, session_id: str, request: ConversationRequest, *, url: str, token: Callable[[], str], avatar: str
    ) -> dict[str, str]:
        """Opens a conversation and returns the names of its models.

        Raises ProblemError `conversation_unavailable`, `at_capacity`. Cancelling opens none.
        """
        if self._options.python is None:
            raise unavailable("livekit-agents is not installed here")
        if len(self._conversations) >= CONVERSATIONS_MAX:
            raise ProblemError(
                ErrorCode.AT_CAPACITY,
                f"All {CONVERSATIONS_MAX} conversations are taken: try again later.",
                retry_after_s=5,
            )
        tts = self._address()
        if tts is None:
            raise unavailable("the service does not know its own address yet")
        conversation = self._conversations[session_id] = OpenedConversation(session_id, lambda _: opening)
        with ExitStack() as on_error:  # cancelled or failed: the place is given back
            on_error.callback(self._conversations.pop, session_id, None)
            llm = request.llm.provider() if request.llm else self._options.llm
            stt = request.stt.provider() if request.stt else self._options.stt
            embedded_llm, embedded_stt = await asyncio.gather(self._provider("llm", llm), self._provider("stt", stt))
            on_error.pop_all()
        conversation.models = {
            "llm": "embedded" if llm is None else llm.model,
            "stt": "embedded" if stt is None else stt.model,
        }
        opening = OpenConversation(
            session_id=session_id,
            url=url,
            token=token(),
            avatar_identity=avatar,
            instructions=request.instructions,
            greeting=request.greeting,
            language=request.language,
            voice=request.voice or "",
            llm=embedded_llm,
            stt=embedded_stt,
            tts=tts,
            reply_tokens=EMBEDDED_REPLY_TOKENS if llm is None else None,
        )
        conversation.opening = lambda history: opening.model_copy(update={"token": token(), "history": history})
        if self._task is None:
            self._task = asyncio.create_task(
                supervise("conversation-worker", self._run, self._metrics), name="conversation-worker"
            )
        self._open(conversation)
        return conversation.models

    def chat(self, session_id: str, text: str) -> str:
        """Hands the user's text to the conversation; returns the message's id.

        While the worker is away the text waits for it, also one that a worker had when it was lost.

        Raises ProblemError `session_conflict` when the session has no conversation, or as many texts wait as may.
        """
        conversation = self.get(session_id)
        if len(conversation.waiting) >= WAITING_MAX:
            detail = f"{WAITING_MAX} texts of this conversation wait for their answers: try again."
            raise ProblemError(ErrorCode.SESSION_CONFLICT, detail, limit=WAITING_MAX, retry_after_s=2)
        message = ChatMessage(session_id=session_id, message_id=f"msg_{secrets.token_hex(8)}", text=text)
        conversation.waiting[message.message_id] = message
        self._send(message)
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
            conversation.closed = True
            self._send(CloseConversation(session_id=session_id))

    async def aclose(self) -> None:
        """Ends the worker and the models, in bounded time. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        for handle in self._reopening:
            handle.cancel()
        await asyncio.gather(*(model.aclose() for model in self._models.values()))

    def view(self, session_id: str) -> dict[str, Any] | None:
        """The models of a session's conversation; None where it has none."""
        found = self._conversations.get(session_id)
        return None if found is None else dict(found.models)

    async def _provider(self, kind: str, given: Provider | None) -> Provider:
        return given if given is not None else await self._models[kind].provider()

    def _open(self, conversation: OpenedConversation) -> None:
        if not self._send(conversation.opening(tuple(conversation.messages))):
            return  # the worker opens all of them as soon as it runs
        for message in conversation.waiting.values():
            self._send(message)

    def _send(self, message: BaseModel) -> bool:
        process = self._process
        if process is None or process.stdin is None or not self._ready:
            return False
        if process.stdin.transport.get_write_buffer_size() > _UNSENT_BYTES:
            return False
        process.stdin.write(worker_pipe.encode(message.model_dump(mode="json")))
        return True

    # --- the worker

    async def _run(self) -> None:
        delay, loop = BACKOFF_S[0], asyncio.get_running_loop()
        while True:
            begun = loop.time()
            try:
                await self._one_process()
            except WorkerLost as error:
                log.warning("conversation worker lost", extra={"reason": str(error)})
            delay = BACKOFF_S[0] if loop.time() - begun > _SETTLED_S else min(BACKOFF_S[1], 2 * delay)
            await asyncio.sleep(delay)

    async def _one_process(self) -> None:
        pipe = asyncio.subprocess.PIPE
        environment = {
            "PYTHONPATH": os.pathsep.join((str(PLUGIN), str(ROOT))),
            "PYTHONUTF8": "1",
            "OMP_NUM_THREADS": "1",
            "HOME": os.environ.get("HOME", "/"),
            "PATH": os.defpath,
        }
        command = (str(self._options.python), *self._worker)
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment
            )
        except OSError as error:
            raise WorkerLost(f"it cannot be started: {error.strerror}") from error
        self._process = process
        errors = asyncio.create_task(log_errors(process, log, "conversation worker stderr"), name="conversation-stderr")
        try:
            await self._listen(process)
        finally:
            self._ready, self._process = False, None
            await end(process, _EXIT_S)
            errors.cancel()
            await asyncio.wait([errors])

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        patience = _HELLO_S
        while True:
            message = await worker_pipe.receive(process, patience, reports.validate_json)
            patience = SILENCE_S
            if not self._ready:
                self._ready = True
                for conversation in self._conversations.values():
                    self._open(conversation)
            self._take(message)

    def _take(self, message: BaseModel) -> None:
        session_id = getattr(message, "session_id", None)
        conversation = self._conversations.get(session_id) if session_id else None
        if conversation is None:
            return
        if isinstance(message, ConversationEvent):
            conversation.waiting.pop(str(message.data.get("message_id")), None)
            self._bus.publish(conversation.session_id, message.name, message.data)
        elif isinstance(message, MessageAdded):
            conversation.messages.append(message.message)
            del conversation.messages[:-HISTORY_MAX]
        elif isinstance(message, ConversationEnded):
            log.warning(
                "a conversation was lost", extra={"session_id": conversation.session_id, "reason": message.reason}
            )
            self._reopen_later(conversation)

    def _reopen_later(self, conversation: OpenedConversation) -> None:
        def reopen() -> None:
            self._reopening.discard(handle)
            if not conversation.closed:
                self._open(conversation)

        handle = asyncio.get_running_loop().call_later(_REOPEN_S, reopen)
        self._reopening.add(handle)

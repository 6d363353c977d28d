"""A conversation worker that does what the texts of the chat say: the real pipe and the real messages, and no room."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time

from orchestrator import worker_pipe
from orchestrator.conversation.conversation_messages import (
    ChatMessage,
    ConversationEnded,
    ConversationEvent,
    HistoryMessage,
    InterruptReply,
    MessageAdded,
    MicrophoneReport,
    OpenConversation,
    SayLine,
    ToolCall,
    ToolCancelled,
    ToolResult,
    WordsSpoken,
    WorkerBeat,
    commands,
)

WRITING = threading.Lock()


def report(message: object) -> None:
    with WRITING:
        sys.stdout.buffer.write(worker_pipe.encode(message.model_dump(mode="json")))  # type: ignore[attr-defined]
        sys.stdout.buffer.flush()


def beat() -> None:
    while True:
        report(WorkerBeat())
        time.sleep(0.2)  # the interval of the heartbeat; no test waits for it


def read() -> bytes:
    prefix = sys.stdin.buffer.read(worker_pipe.LENGTHS.size)
    if len(prefix) < worker_pipe.LENGTHS.size:
        os._exit(0)
    head, payload = worker_pipe.lengths(prefix)
    return sys.stdin.buffer.read(head + payload)[:head]


def carry_out(command: object) -> None:
    if isinstance(command, OpenConversation):
        data = {
            "text": f"opened with {len(command.history)} messages, {command.llm.model}"
            + command.answer_last * ", one to answer",
            "interrupted": False,
        }
        report(ConversationEvent(session_id=command.session_id, name="reply.finished", data=data))
    elif isinstance(command, ToolResult):
        data = {"text": f"{command.call_id} {command.ok} {command.text}", "interrupted": False}
        report(ConversationEvent(session_id=command.session_id, name="reply.finished", data=data))
    elif isinstance(command, ChatMessage) and command.text.startswith(("call ", "give up ")):
        data = {"text": command.text, "final": True, "message_id": command.message_id}
        report(ConversationEvent(session_id=command.session_id, name="user.transcript", data=data))
        if command.text.startswith("call "):
            report(ToolCall(session_id=command.session_id, **json.loads(command.text[5:])))
        else:
            report(ToolCancelled(session_id=command.session_id, call_id=command.text[8:]))
    elif isinstance(command, InterruptReply):
        data = {"text": "no more", "interrupted": True}
        report(ConversationEvent(session_id=command.session_id, name="reply.finished", data=data))
    elif isinstance(command, SayLine):
        data = {"text": command.text, "message_id": command.message_id}
        report(ConversationEvent(session_id=command.session_id, name="reply.queued", data=data))
    elif isinstance(command, ChatMessage):
        if command.text in (
            "die",
            "babble",
            "leave",
            "hang",
        ):  # it is taken, so that the next worker does not get it again
            data = {"text": command.text, "final": True, "message_id": command.message_id}
            report(ConversationEvent(session_id=command.session_id, name="user.transcript", data=data))
        if command.text == "die":
            os._exit(3)
        if command.text == "hang":
            os.kill(os.getpid(), signal.SIGSTOP)
        if command.text == "babble":
            sys.stdout.buffer.write(b"what is no message at all")
            sys.stdout.buffer.flush()
        elif command.text == "leave":
            report(ConversationEnded(session_id=command.session_id, reason="the room was lost"))
        else:
            data = {"text": command.text, "final": True, "message_id": command.message_id}
            report(ConversationEvent(session_id=command.session_id, name="user.transcript", data=data))
            message = HistoryMessage(id=command.message_id, role="user", text=command.text, created_at=time.time())
            report(MessageAdded(session_id=command.session_id, message=message))
        if command.text in ("thinking", "listening"):
            data = {"state": command.text}
            report(ConversationEvent(session_id=command.session_id, name="conversation.state", data=data))
        if command.text == "turn":
            report(
                ConversationEvent(session_id=command.session_id, name="turn", data={"heard_ms": 400, "thought_ms": 9})
            )
        if command.text == "late":
            report(MicrophoneReport(session_id=command.session_id, state="late"))
        if command.text == "fail":
            data = {"code": "conversation_provider", "part": "llm", "detail": "llm: 503"}
            report(ConversationEvent(session_id=command.session_id, name="warning", data=data))
        if command.text == "speak":
            for words in ("half ", "a "):
                report(WordsSpoken(session_id=command.session_id, text=words))


def main() -> None:
    threading.Thread(target=beat, daemon=True).start()
    while True:
        carry_out(commands.validate_json(read()))


if __name__ == "__main__":
    main()

"""Reads commands on standard input, holds the conversations, and reports on standard output. Ends when its input closes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from typing import BinaryIO, NoReturn

from pydantic import BaseModel, ValidationError

from orchestrator import worker_pipe
from orchestrator.conversation.conversation_messages import (
    ChatMessage,
    CloseConversation,
    InterruptReply,
    OpenConversation,
    SayLine,
    ToolResult,
    WorkerBeat,
    commands,
)
from orchestrator.conversation.worker.awaited_events import AwaitedEvents
from orchestrator.conversation.worker.inline_executor import InlineEventLoop
from orchestrator.conversation.worker.room_conversation import RoomConversation

BEAT_S = 1.0
_UNREAD_BYTES = 1 << 20
"""Past this much unread the service hangs, and gets no more reports."""
_LEAVE_S = 4.0


class ConversationSet:
    """The conversations of this process, by session."""

    def __init__(self, out: asyncio.WriteTransport) -> None:
        self._out = out
        self._conversations: dict[str, RoomConversation] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def report(self, message: BaseModel) -> None:
        """Queues a message for the service; never blocks."""
        if self._out.get_write_buffer_size() < _UNREAD_BYTES:
            self._out.write(worker_pipe.encode(message.model_dump(mode="json")))

    def carry_out(self, header: bytes) -> None:
        """Carries out one command. Raises ValidationError for an invalid one."""
        command = commands.validate_json(header)
        if isinstance(command, OpenConversation):
            self._open(command)
            return
        conversation = self._conversations.get(command.session_id)
        if conversation is None:
            return
        if isinstance(command, ChatMessage):
            conversation.chat(command.message_id, command.text)
        elif isinstance(command, SayLine):
            conversation.say(command.message_id, command.text)
        elif isinstance(command, ToolResult):
            conversation.take(command)
        elif isinstance(command, InterruptReply):
            conversation.interrupt()
        elif isinstance(command, CloseConversation):
            conversation.close()

    async def beat(self) -> None:
        """Reports that the process lives, until cancelled."""
        while True:
            self.report(WorkerBeat())
            await asyncio.sleep(BEAT_S)

    async def aclose(self) -> None:
        """Leaves every room, in bounded time."""
        for conversation in self._conversations.values():
            conversation.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_LEAVE_S)

    def _open(self, opening: OpenConversation) -> None:
        def report(message: BaseModel) -> None:
            if self._conversations.get(opening.session_id) is conversation:  # it was not opened anew meanwhile
                self.report(message)

        before = self._conversations.get(opening.session_id)
        if before is not None:
            before.close()
        conversation = self._conversations[opening.session_id] = RoomConversation(opening, report)
        task = asyncio.create_task(conversation.run(), name=f"conversation-{opening.session_id}")
        self._tasks.add(task)

        def over(ended: asyncio.Task[None]) -> None:
            self._tasks.discard(ended)
            if self._conversations.get(opening.session_id) is conversation:
                del self._conversations[opening.session_id]

        task.add_done_callback(over)


async def _serve(reports: BinaryIO) -> None:
    loop = asyncio.get_running_loop()
    out, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, reports)
    source = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(source), sys.stdin)
    conversations = ConversationSet(out)
    beat = asyncio.create_task(conversations.beat(), name="conversation-beat")
    try:
        while True:
            head, payload = worker_pipe.lengths(await source.readexactly(worker_pipe.LENGTHS.size))
            conversations.carry_out(await source.readexactly(head))
            await source.readexactly(payload)
    except asyncio.IncompleteReadError:
        pass  # the service closed the pipe: the end
    except (worker_pipe.FramingError, ValidationError) as error:
        print(f"a command cannot be read: {error!r}"[:500], file=sys.stderr, flush=True)  # noqa: T201 - the service logs it
    finally:
        beat.cancel()
        await conversations.aclose()


def main() -> NoReturn:
    """Serves until the input closes, and ends the process."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the service ends us by closing the pipe
    reports = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # native code that prints writes to the log, not into the pipe
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    AwaitedEvents.install()
    with asyncio.Runner(loop_factory=InlineEventLoop) as runner:
        runner.run(_serve(reports))
    os._exit(0)  # the rooms are left: the SDK's own clean-up beside its threads panics now and then


if __name__ == "__main__":
    main()

"""A text that is spoken while it is being written, from the side of who writes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.session.speech import Speech, Utterance
from orchestrator.tts.base import SpeechChunk
from orchestrator.tts.sentences import GrowingText

TEXT_BYTES = 64 << 10
"""Longest text, in UTF-8: an hour of speech."""
PAUSE_S = 30.0
"""A text that pauses for longer is taken as complete: what plays after it shall not wait for ever."""
_PIECE = 1024
"""Characters that are cut into sentences at once."""


class Dictation:
    """One text. Its segment is opened by the first word.

    Writing never waits: what the voice is not ready for is kept here, up to `TEXT_BYTES`. So whoever reads a connection can go on
    reading it, and a `clear` is seen whatever waits.
    """

    def __init__(self, speech: Speech, speak: Callable[[GrowingText], AsyncGenerator[SpeechChunk, None]]) -> None:
        self._speech = speech
        self._speak = speak
        self._text = GrowingText()
        self._written = ""
        self._ended = False
        self._changed = asyncio.Event()
        self._drained = asyncio.Event()
        self._feeding: asyncio.Task[None] | None = None
        self._bytes = 0
        self.utterance: Utterance | None = None
        self.over = asyncio.Event()
        """Set when the segment takes no more text."""

    def write(self, piece: str) -> bool:
        """More text. False: the segment is over.

        Raises:
            ProblemError: `message_too_large`, `backlog_exceeded`, and what `speak` raises at once.
        """
        self._bytes += len(piece.encode(errors="replace"))
        if self._bytes > TEXT_BYTES:
            raise ProblemError(
                ErrorCode.MESSAGE_TOO_LARGE,
                f"The text passes {TEXT_BYTES} bytes: end it, and begin another.",
                field="text",
                limit=TEXT_BYTES,
            )
        if self.over.is_set() or self._ended:
            return False
        self._written += piece
        if self.utterance is None and any(c.isalnum() for c in piece):
            self._speech.check()
            self.utterance = self._speech.say(self._speak(self._text), on_over=self._close)
            name = f"dictation-{self.utterance.segment}"
            self._feeding = asyncio.create_task(self._feed(), name=name)
        self._changed.set()
        return True

    async def drain(self) -> None:
        """Waits until the voice has room for all that was written, or the segment is over. Cancelling is harmless."""
        while self._feeding is not None and self._written and not self.over.is_set():
            self._drained.clear()
            await self._drained.wait()

    def end(self) -> None:
        """The text is complete. Safe to call twice."""
        self._ended = True
        self._changed.set()

    async def _feed(self) -> None:
        """Hands the text to the voice as that takes it. Ends with the text, or with the segment."""
        try:
            while not self.over.is_set():
                if self._written:
                    piece, self._written = self._written[:_PIECE], self._written[_PIECE:]
                    await self._text.push(piece)
                elif self._ended:
                    return
                else:
                    self._drained.set()
                    self._changed.clear()
                    await self._changed.wait()
        finally:
            self._text.end()
            self._drained.set()

    def _close(self) -> None:
        self.over.set()
        self._text.abandon()
        self._written = ""
        self._changed.set()
        self._drained.set()

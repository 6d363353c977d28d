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


class Dictation:
    """One text. Its segment is opened by the first word."""

    def __init__(self, speech: Speech, speak: Callable[[GrowingText], AsyncGenerator[SpeechChunk, None]]) -> None:
        self._speech = speech
        self._speak = speak
        self._text = GrowingText()
        self._lead = ""
        self._bytes = 0
        self.utterance: Utterance | None = None
        self.over = asyncio.Event()
        """Set when the segment takes no more text."""

    async def write(self, piece: str) -> bool:
        """More text; waits while the voice is far behind. False: the segment is over. Cancelling loses nothing.

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
        if self.utterance is None:
            self._lead += piece
            if not any(c.isalnum() for c in piece):
                return True
            self._speech.check()
            self.utterance = self._speech.say(self._speak(self._text), on_over=self._close)
            piece, self._lead = self._lead, ""
        return await self._text.push(piece) and not self.over.is_set()

    def end(self) -> None:
        """The text is complete. Safe to call twice."""
        self._text.end()

    def _close(self) -> None:
        self._text.abandon()
        self.over.set()

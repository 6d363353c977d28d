"""Publishes captions as LiveKit transcriptions: a text stream for each line, which grows while the line is spoken.

Streams go under topic `lk.transcription` with the attributes that LiveKit's own agents give them, so that its clients show them as
they are (docs/reference/captions.md).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from livekit import rtc

from musetalk_agent.agent_metrics import CAPTIONS
from musetalk_agent.media.segment import Caption
from musetalk_agent.protocol.sdk_errors import SdkError, sdk_errors
from musetalk_agent.tasks import supervise

log = logging.getLogger(__name__)

TOPIC = "lk.transcription"
SEGMENT_ID, TRACK_ID, FINAL = "lk.segment_id", "lk.transcribed_track_id", "lk.transcription_final"
_MOST_WAITING = 64
"""Words come three a second; as many wait only when the room takes none."""
_TIMEOUT_S = 2.0
_LAST_S = 0.5
"""So long the end waits for what was pushed last."""


class CaptionWriter:
    """Writes what is pushed to a room, in order, by a task of its own. What the room does not take in time is dropped and counted.

    Args:
        track: returns the sid of the track that is heard; None where another participant publishes it.
    """

    def __init__(self, room: rtc.Room, track: Callable[[], str | None]) -> None:
        self._room, self._track = room, track
        self._waiting: deque[Caption] = deque()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._line = ""
        self._stream: rtc.TextStreamWriter | None = None

    def push(self, caption: Caption) -> None:
        """Never waits. Of too many the oldest goes."""
        if len(self._waiting) == _MOST_WAITING:
            self._waiting.popleft()
            CAPTIONS.labels("dropped").inc()
        self._waiting.append(caption)
        self._wake.set()
        if self._task is None:
            self._task = asyncio.create_task(supervise("livekit-captions", self._run), name="livekit-captions")

    async def aclose(self) -> None:
        """Ends, after half a second at the latest; a line that is open then stays as it is."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=_LAST_S)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            while self._waiting:
                await self._take(self._waiting.popleft())
            if self._closing:
                return
            await self._wake.wait()

    async def _take(self, caption: Caption) -> None:
        outcome = "dropped"
        try:
            with sdk_errors():
                async with asyncio.timeout(_TIMEOUT_S):
                    await self._write(caption)
            outcome = "sent"
        except (SdkError, TimeoutError) as error:
            log.info("caption not sent", extra={"line": caption.line, "error": repr(error)})
        finally:
            if outcome == "dropped":
                self._stream = None
            CAPTIONS.labels(outcome).inc()

    async def _write(self, caption: Caption) -> None:
        if caption.line != self._line:
            await self._finish()
        self._line = caption.line
        if caption.text:
            if self._stream is None:
                self._stream = await self._room.local_participant.stream_text(
                    topic=TOPIC, attributes=self._attributes("false")
                )
            await self._stream.write(caption.text)
        if caption.final:
            await self._finish()

    async def _finish(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.aclose(attributes=self._attributes("true"))

    def _attributes(self, final: str) -> dict[str, str]:
        line = f"{self._room.local_participant.identity}.{self._line}"
        sid = self._track()
        return {SEGMENT_ID: line, FINAL: final, **({TRACK_ID: sid} if sid else {})}

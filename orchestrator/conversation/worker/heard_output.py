"""The conversation's audio output: sends captions as their words are heard, and puts into the history what was heard."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from livekit import rtc
from livekit.agents.types import USERDATA_TIMED_TRANSCRIPT
from livekit.plugins.musetalk.output import AvatarOutput

from musetalk_agent.protocol.action_marks import LEAD_S
from orchestrator.conversation.worker.room_captions import RoomCaptions
from orchestrator.conversation.worker.spoken_words import SpokenWords

USERDATA_ACTIONS = "musetalk.actions"
"""Of a frame: clips `(seconds, name)` that are to be played, from the first sample of the whole speech on."""
_TICK_S = 0.02
"""How late a caption may be."""


class HeardOutput(AvatarOutput):  # type: ignore[misc]  # livekit-agents lives in an environment of its own
    """`AvatarOutput` for speech whose frames carry timed words.

    Args:
        captions: takes the words as they are heard.
        sent: takes the words whose sound the avatar got; must not block.
        act: takes the names of clips as their place in the speech is heard; must not block.
    """

    def __init__(
        self,
        room: rtc.Room,
        *,
        destination_identity: str,
        sample_rate: int,
        captions: RoomCaptions,
        sent: Callable[[str], object],
        act: Callable[[str], object],
    ) -> None:
        super().__init__(room, destination_identity=destination_identity, sample_rate=sample_rate)
        self._captions, self._sent, self._act = captions, sent, act
        self._words: list[SpokenWords] = []  # of the segments that are not over
        self._flushed = True
        self._showing: asyncio.Task[None] | None = None

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        if self._flushed:
            self._flushed = False
            self._words.append(SpokenWords())
        words = self._words[-1]
        timed = frame.userdata.get(USERDATA_TIMED_TRANSCRIPT, ())
        for word in timed:
            words.add(str(word), word.start_time)
        words.actions += frame.userdata.get(USERDATA_ACTIONS, ())
        await super().capture_frame(frame)
        if timed:
            self._sent("".join(timed))

    def flush(self) -> None:
        super().flush()
        self._flushed = True

    def on_playback_started(self, *, created_at: float) -> None:
        super().on_playback_started(created_at=created_at)
        if self._showing is None or self._showing.done():
            self._showing = asyncio.create_task(self._show(), name="captions")

    def said(self, position_s: float, interrupted: bool) -> str | None:
        """Also closes the caption: what was heard and not shown yet is shown."""
        words = self._words.pop(0) if self._words else SpokenWords()
        self._flushed = self._flushed or not self._words
        for name in words.due(position_s if interrupted else math.inf):
            self._act(name)
        if not words.texts:
            return None
        heard = words.begun(position_s) if interrupted else len(words.texts)
        self._caption(words, heard)
        self._captions.end()
        return words.heard(position_s) if interrupted else "".join(words.texts).strip()

    async def aclose(self) -> None:
        if self._showing is not None:
            self._showing.cancel()
            await asyncio.gather(self._showing, return_exceptions=True)
        await super().aclose()

    async def _show(self) -> None:
        """Until nothing is heard any more, or the speech is paused."""
        while (position_s := self.position_s) is not None:
            words = self._words[0]
            self._caption(words, words.begun(position_s))
            for name in words.due(position_s + LEAD_S):
                self._act(name)
            await asyncio.sleep(_TICK_S)

    def _caption(self, words: SpokenWords, begun: int) -> None:
        if begun > words.shown:
            self._captions.write("".join(words.texts[words.shown : begun]))
            words.shown = begun

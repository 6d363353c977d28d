"""Says what is known of the users' microphones: one of the reasons why a conversation does not answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Literal

import numpy as np
from livekit import rtc
from livekit.agents.voice.io import AudioInput

State = Literal["none", "muted", "silent", "late", "heard"]
LEVEL = 100
"""Of 32768, -50 dBFS: a louder sample is no silence."""
SILENT_S = 10.0
LATE_S = 10.0
LOOK_S = 1.0


class MicrophoneWatch(AudioInput):  # type: ignore[misc]  # its types are in the environment of livekit-agents
    """Hands audio on as it comes, and notes whether it is silence.

    Args:
        source: the audio that livekit-agents hears.
        room: whose microphones they are.
        report: is called with each new state; must not block.
        dropped: how many pieces of sound this process has dropped.
    """

    def __init__(
        self, source: AudioInput, room: rtc.Room, report: Callable[[State], object], dropped: Callable[[], int]
    ) -> None:
        super().__init__(label="MicrophoneWatch", source=source)
        self._room, self._report, self._dropped = room, report, dropped
        self._loud_at = time.monotonic()
        self._known_dropped = dropped()
        self._late_at = -LATE_S

    async def __anext__(self) -> rtc.AudioFrame:
        frame: rtc.AudioFrame = await super().__anext__()
        if int(np.abs(np.frombuffer(frame.data, np.int16).astype(np.int32)).max(initial=0)) > LEVEL:
            self._loud_at = time.monotonic()
        return frame

    async def run(self) -> None:
        """Looks once a second, until cancelled."""
        known: State | None = None
        while True:
            state = self._state()
            if state != known:
                known = state
                self._report(state)
            await asyncio.sleep(LOOK_S)

    def _state(self) -> State:
        tracks = [
            track
            for participant in self._room.remote_participants.values()
            if participant.kind != rtc.ParticipantKind.PARTICIPANT_KIND_AGENT
            for track in participant.track_publications.values()
            if track.kind == rtc.TrackKind.KIND_AUDIO
        ]
        if not any(not track.muted for track in tracks):
            self._loud_at = time.monotonic()
            return "muted" if tracks else "none"
        now, lost = time.monotonic(), self._dropped()
        if lost != self._known_dropped:
            self._known_dropped, self._late_at = lost, now
        if now - self._late_at < LATE_S:
            return "late"
        return "silent" if now - self._loud_at > SILENT_S else "heard"

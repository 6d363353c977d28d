"""The way of an agent's speech to its avatar: livekit-agents' own, and what is to be done while the avatar is away."""

from __future__ import annotations

import asyncio
import logging
import time

from livekit import rtc
from livekit.agents.voice.avatar import DataStreamAudioOutput

log = logging.getLogger("livekit.plugins.musetalk")

RETURN_S = 8.0
"""An avatar that left says what became of the speech it had within so long, if it only changed its way into the room."""


class AvatarOutput(DataStreamAudioOutput):
    """`DataStreamAudioOutput` that does not wait for an avatar that died.

    When the avatar leaves, speech that was sent to it counts as interrupted after `RETURN_S`, at the place where it was; at once
    when the agent is interrupted. Speech that is still being made waits until the avatar is back, and is spoken then.
    """

    def __init__(self, room: rtc.Room, *, destination_identity: str, sample_rate: int) -> None:
        super().__init__(
            room,
            destination_identity=destination_identity,
            sample_rate=sample_rate,
            wait_remote_track=rtc.TrackKind.KIND_VIDEO,
            wait_playback_start=True,
        )
        self._avatar = destination_identity
        self._began_at: float | None = None
        self._lost: tuple[int, float] | None = (
            None  # segments sent to an avatar that left, and seconds heard of the first
        )
        self._giving_up: asyncio.TimerHandle | None = None
        room.on("participant_disconnected", self._on_left)

    def on_playback_started(self, *, created_at: float) -> None:
        self._began_at = time.monotonic()
        super().on_playback_started(created_at=created_at)

    def clear_buffer(self) -> None:
        if self._lost is not None:
            self._give_up()
        super().clear_buffer()

    async def aclose(self) -> None:
        """Listens no more. Nothing waits for the avatar afterwards."""
        self._room.off("participant_disconnected", self._on_left)
        self._give_up()

    def _on_left(self, who: rtc.RemoteParticipant) -> None:
        if who.identity != self._avatar or not self._started:
            return
        heard_s = time.monotonic() - self._began_at if self._began_at is not None else 0.0
        self.flush()  # what is made from now on is a segment of its own
        self._started, self._start_atask = False, None  # and waits for the avatar as at the beginning
        if self._pending_playback_count and self._lost is None:
            log.warning("the avatar left while it spoke", extra={"avatar": self._avatar})
            self._lost = self.captured_playout_segments, min(heard_s, self._pushed_duration)
            self._giving_up = asyncio.get_running_loop().call_later(RETURN_S, self._give_up)

    def _give_up(self) -> None:
        lost, self._lost = self._lost, None
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None
        if lost is None:
            return
        captured, position_s = lost
        for _ in range(captured - (self.captured_playout_segments - self._pending_playback_count)):
            self.on_playback_finished(playback_position=position_s, interrupted=True)
            position_s = 0.0

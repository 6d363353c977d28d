"""The way of an agent's speech to its avatar: livekit-agents' own, and what is to be done while the avatar is away."""

from __future__ import annotations

import asyncio
import logging
import time

from livekit import rtc
from livekit.agents.voice.avatar import DataStreamAudioOutput

log = logging.getLogger("livekit.plugins.musetalk")

AWAY_S = 30.0
"""An avatar that does not come back within so long has lost the speech it had."""
BACK_S = 2.0
"""One that is back says within so long whether it still has it."""


class AvatarOutput(DataStreamAudioOutput):
    """`DataStreamAudioOutput` that does not wait for an avatar that died.

    An avatar that left and comes back calls `lk.playback_started` when it still has the speech that was sent to it: then all goes
    on. If it does not, it is a new one, and that speech counts as interrupted at the place where it was; at once when the agent is
    interrupted meanwhile. Speech that is still being made waits until this is known, and is spoken then.
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
        self._doubt: tuple[int, float] | None = (
            None  # segments that an avatar had when it left, and seconds heard of the first
        )
        self._certain = asyncio.Event()
        self._certain.set()
        self._giving_up: asyncio.TimerHandle | None = None
        room.on("participant_disconnected", self._on_left)
        room.on("participant_connected", self._on_back)

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await self._certain.wait()
        await super().capture_frame(frame)

    def on_playback_started(self, *, created_at: float) -> None:
        if self._doubt is not None:
            self._settle()
            return
        self._began_at = time.monotonic()
        super().on_playback_started(created_at=created_at)

    def clear_buffer(self) -> None:
        self._give_up()
        super().clear_buffer()

    async def aclose(self) -> None:
        """Listens no more. Nothing waits for the avatar afterwards."""
        self._room.off("participant_disconnected", self._on_left)
        self._room.off("participant_connected", self._on_back)
        self._give_up()

    def _on_left(self, who: rtc.RemoteParticipant) -> None:
        if who.identity != self._avatar or not self._started:
            return
        self.flush()  # what is made from now on is a segment of its own
        self._started, self._start_atask = False, None  # and waits for the avatar as at the beginning
        if self._pending_playback_count and self._doubt is None:
            log.warning("the avatar left while it had speech", extra={"avatar": self._avatar})
            heard_s = time.monotonic() - self._began_at if self._began_at is not None else 0.0
            self._doubt = self.captured_playout_segments, min(heard_s, self._pushed_duration)
            self._certain.clear()
            self._give_up_in(AWAY_S)

    def _on_back(self, who: rtc.RemoteParticipant) -> None:
        if who.identity == self._avatar and self._doubt is not None:
            self._give_up_in(BACK_S)

    def _give_up_in(self, seconds: float) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
        self._giving_up = asyncio.get_running_loop().call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        """What the avatar had is lost: it is reported as the avatar would have done."""
        doubt = self._settle()
        if doubt is None:
            return
        captured, position_s = doubt
        for _ in range(captured - (self.captured_playout_segments - self._pending_playback_count)):
            self.on_playback_finished(playback_position=position_s, interrupted=True)
            position_s = 0.0

    def _settle(self) -> tuple[int, float] | None:
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None
        doubt, self._doubt = self._doubt, None
        self._certain.set()
        return doubt

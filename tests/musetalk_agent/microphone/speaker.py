"""A participant that plays notes into its microphone, and which note a viewer hears of whom."""

from __future__ import annotations

import asyncio

import numpy as np
from livekit import rtc

from musetalk_agent.publishers.livekit.detached_connect import leave
from tests.viewer import Viewer
from tests.waiting import until

RATE, BLOCK = 48_000, 480


class Speaker:
    """A participant with a microphone that is open: silence, or the note it is asked for (Hz)."""

    def __init__(self) -> None:
        self.room = rtc.Room()
        self.note = 0
        self._tracks: list[tuple[rtc.LocalAudioTrack, rtc.LocalTrackPublication, asyncio.Task[None]]] = []

    async def join(self, url: str, token: str) -> Speaker:
        await self.room.connect(url, token, rtc.RoomOptions(auto_subscribe=False))
        return self

    async def publish(
        self, source: rtc.TrackSource.ValueType = rtc.TrackSource.SOURCE_MICROPHONE, note: int | None = None
    ) -> rtc.LocalAudioTrack:
        """Opens a microphone, or another audio track that plays its own `note`."""
        made = rtc.AudioSource(RATE, 1, queue_size_ms=20)
        track = rtc.LocalAudioTrack.create_audio_track("sound", made)
        publication = await self.room.local_participant.publish_track(track, rtc.TrackPublishOptions(source=source))
        self._tracks.append((track, publication, asyncio.create_task(self._play(made, note))))
        return track

    async def _play(self, source: rtc.AudioSource, note: int | None) -> None:
        at = 0
        try:
            while True:
                pitch = self.note if note is None else note
                wave = np.sin(2 * np.pi * pitch * (np.arange(BLOCK) + at) / RATE)
                at += BLOCK
                await source.capture_frame(rtc.AudioFrame((12_000 * wave).astype("<i2").tobytes(), RATE, 1, BLOCK))
        finally:
            await source.aclose()

    async def unpublish(self) -> None:
        """Closes what was published last."""
        _, publication, playing = self._tracks.pop()
        await self.room.local_participant.unpublish_track(publication.sid)
        playing.cancel()
        await asyncio.gather(playing, return_exceptions=True)

    async def leave(self) -> None:
        while self._tracks:
            playing = self._tracks.pop()[2]
            playing.cancel()
            await asyncio.gather(playing, return_exceptions=True)
        await leave(self.room)


def pitch(viewer: Viewer, identity: str) -> int:
    """What is heard of a participant now, in Hz; 0 for silence."""
    newest = [strand for sid, strand in viewer.strands.items() if viewer.owners[sid] == identity and strand]
    if not newest:
        return 0
    heard = np.concatenate([block for _, block in newest[-1][-20:]])
    if len(heard) < 3200 or np.abs(heard).max() < 2000:
        return 0
    return int(np.argmax(np.abs(np.fft.rfft(heard * np.hanning(len(heard))))) * 16_000 / len(heard))


async def until_heard(viewer: Viewer, identity: str, note: int) -> None:
    """Waits until that is what is heard of a participant."""
    await until(lambda: abs(pitch(viewer, identity) - note) < 20)

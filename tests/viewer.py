"""A participant that only watches: every picture and every sample it gets, with the time it came."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import numpy as np
from livekit import api, rtc

from musetalk_agent.publishers.livekit.detached_connect import leave
from musetalk_tools.livekit_server import LiveKitAccess

RATE = 16_000


def join_token(
    access: LiveKitAccess, room: str, identity: str, kind: str = "standard", *, publish: bool = False
) -> str:
    """A token straight from the server's keys."""
    grants = api.VideoGrants(
        room_join=True, room=room, can_publish=publish, can_subscribe=True, can_update_own_metadata=publish
    )
    token = api.AccessToken(access.api_key, access.api_secret).with_kind(kind).with_identity(identity)  # type: ignore[arg-type]
    return token.with_grants(grants).to_jwt()


@dataclass
class Viewer:
    """Joins and writes down. `video` holds (arrival, mean luma of the central quarter, width, height), if it `watches`."""

    room: rtc.Room = field(default_factory=rtc.Room)
    video: list[tuple[float, float, int, int]] = field(default_factory=list)
    sound: list[tuple[float, np.ndarray]] = field(default_factory=list)
    tracks: list[tuple[str, str]] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    strands: dict[str, list[tuple[float, np.ndarray]]] = field(default_factory=dict)  # sound by track
    owners: dict[str, str] = field(default_factory=dict)  # identity by track
    watches: bool = True
    block_ms: int | None = None
    """Of sound; None for the SDK's 10 ms."""
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def join(self, url: str, token: str) -> Viewer:
        self.room.on("track_subscribed", self._subscribed)
        self.room.on("participant_disconnected", lambda who: self.gone.append(who.identity))
        await self.room.connect(url, token)
        return self

    def _subscribed(
        self, track: rtc.Track, publication: rtc.RemoteTrackPublication, who: rtc.RemoteParticipant
    ) -> None:
        self.tracks.append((publication.name, who.identity))
        self.owners[track.sid] = who.identity
        video = track.kind == rtc.TrackKind.KIND_VIDEO
        if video and not self.watches:
            publication.set_subscribed(False)
            return
        self._tasks.append(asyncio.create_task(self._watch(track) if video else self._listen(track)))

    async def _watch(self, track: rtc.Track) -> None:
        stream = rtc.VideoStream(track, format=rtc.VideoBufferType.I420)
        try:
            async for event in stream:
                frame = event.frame
                if frame.width < 16:  # the SFU's blank of a track that ended
                    continue
                luma = np.frombuffer(frame.data, np.uint8, frame.width * frame.height).reshape(
                    frame.height, frame.width
                )
                h, w = luma.shape
                centre = float(luma[h // 4 + 8 : 3 * h // 4 - 8, w // 4 + 8 : 3 * w // 4 - 8].mean())
                at = time.monotonic()
                self.video.append((at, centre, w, h))
                self.saw(at, luma)
        finally:
            await stream.aclose()

    def saw(self, at: float, luma: np.ndarray) -> None:
        """A picture came, uint8 `[h, w]`; for those that look at more of it than `video` keeps."""

    async def _listen(self, track: rtc.Track) -> None:
        stream = rtc.AudioStream(track, sample_rate=RATE, num_channels=1, frame_size_ms=self.block_ms)
        strand = self.strands.setdefault(track.sid, [])
        try:
            async for event in stream:
                heard = (time.monotonic(), np.frombuffer(event.frame.data, np.int16).copy())
                self.sound.append(heard)
                strand.append(heard)
        finally:
            await stream.aclose()

    async def until(self, seconds: float, holds: object) -> bool:
        """Polls `holds()` for up to `seconds`."""
        assert callable(holds)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if holds():
                return True
            await asyncio.sleep(0.01)
        return False

    def whites(self, since: float = 0.0) -> list[float]:
        """Moments at which the centre turned white."""
        seen = [(at, c > 160) for at, c, _, _ in self.video if at >= since]
        return [at for (at, now), (_, before) in zip(seen[1:], seen, strict=False) if now and not before]

    def onsets(self, since: float = 0.0, level: int = 3000) -> list[float]:
        """Moments at which loud sound began after 100 ms of quiet, to the sample."""
        found, last = [], -1.0
        for at, block in self.sound:
            if at < since:
                continue
            for index in np.flatnonzero(np.abs(block.astype(int)) > level):
                moment = at - (len(block) - 1 - int(index)) / RATE
                if moment - last > 0.1:
                    found.append(moment)
                last = moment
        return found

    def heard(self, since: float, level: int = 1500) -> list[float]:
        """Arrival of every block with loud samples."""
        return [at for at, block in self.sound if at >= since and np.abs(block.astype(int)).max(initial=0) > level]

    async def leave(self) -> None:
        self.room.off("track_subscribed", self._subscribed)  # one may come while it leaves
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await leave(self.room)

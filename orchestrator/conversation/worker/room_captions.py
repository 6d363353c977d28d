"""Publishes the avatar's words as LiveKit transcriptions: text streams under `lk.transcription`, one a line."""

from __future__ import annotations

import asyncio
import logging
import secrets

from livekit import rtc

from musetalk_agent.protocol.sdk_errors import SdkError, sdk_errors

log = logging.getLogger(__name__)

TOPIC = "lk.transcription"
PIECES_MAX = 256
"""Pieces that wait for the room; the newest are dropped past it."""


class RoomCaptions:
    """Writes lines in their order. `write` and `end` never block; a room that takes nothing loses words.

    Args:
        room: joined by the conversation.
        avatar: identity of the participant whose audio track the words belong to.
    """

    def __init__(self, room: rtc.Room, avatar: str) -> None:
        self._room = room
        self._avatar = avatar
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue(PIECES_MAX)
        self._open = False

    def write(self, text: str) -> None:
        """Appends to the line; opens one where none is open."""
        if text and not self._pieces.full():
            self._pieces.put_nowait(text)
            self._open = True

    def end(self) -> None:
        """The line is over."""
        if self._open and not self._pieces.full():
            self._pieces.put_nowait(None)
            self._open = False

    async def run(self) -> None:
        """Sends what is written, until cancelled."""
        writer: rtc.TextStreamWriter | None = None
        while True:
            piece = await self._pieces.get()
            try:
                with sdk_errors():
                    if piece is None:
                        if writer is not None:
                            await writer.aclose(attributes={"lk.transcription_final": "true"})
                        writer = None
                        continue
                    if writer is None:
                        writer = await self._room.local_participant.stream_text(
                            topic=TOPIC, attributes=self._attributes()
                        )
                    await writer.write(piece)
            except (SdkError, TimeoutError) as error:  # captions never hold up speech
                log.info("a caption was lost", extra={"error": repr(error)})
                writer = None

    def _attributes(self) -> dict[str, str]:
        line = {"lk.segment_id": f"SG_{secrets.token_hex(6)}", "lk.transcription_final": "false"}
        avatar = self._room.remote_participants.get(self._avatar)
        for publication in avatar.track_publications.values() if avatar is not None else ():
            if publication.kind == rtc.TrackKind.KIND_AUDIO:
                line["lk.transcribed_track_id"] = publication.sid
        return line

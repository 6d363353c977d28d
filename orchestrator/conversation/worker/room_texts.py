"""Receives the users' texts from LiveKit's chat (`lk.chat`), from persons only, bounded in length and rate."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable

from livekit import rtc

from musetalk_agent.protocol.throttle import TokenBucket

TOPIC = "lk.chat"
TEXT_CHARACTERS = 5000
"""As `POST /session/{id}/chat` has it."""
TEXTS_PER_S = 1.0
TEXTS_AT_ONCE = 5
WARNINGS_PER_S = 0.2
READING_MAX = 16
"""Texts that may be read at the same time, of all users."""
_KNOWN_S = 5.0
"""Longest wait for the news of a sender."""
_OWN = ("avatar-ses_", "voice-ses_", "probe-ses_", "conversation-ses_")
_PERSONS = (rtc.ParticipantKind.PARTICIPANT_KIND_STANDARD, rtc.ParticipantKind.PARTICIPANT_KIND_SIP)
log = logging.getLogger(__name__)


class RoomTexts:
    """Reads the room's texts from `open` until `close`.

    Args:
        take: gets a message's id and its text.
        warn: gets a sentence about a text that was dropped; not more often than every five seconds.
        now: the time in seconds.
    """

    def __init__(
        self, room: rtc.Room, take: Callable[[str, str], None], warn: Callable[[str], None], now: Callable[[], float]
    ) -> None:
        self._room = room
        self._take = take
        self._warn = warn
        self._now = now
        self._rates: dict[str, TokenBucket] = {}
        self._warnings = TokenBucket(WARNINGS_PER_S, 1, now())
        self._reading: set[asyncio.Task[None]] = set()
        self._joined = asyncio.Event()

    def open(self) -> None:
        """From now on texts are taken."""
        self._room.on("participant_connected", self._on_joined)
        self._room.register_text_stream_handler(TOPIC, self._on_stream)

    def close(self) -> None:
        """No more texts."""
        self._room.unregister_text_stream_handler(TOPIC)
        self._room.off("participant_connected", self._on_joined)
        for task in self._reading:
            task.cancel()

    def _on_stream(self, reader: rtc.TextStreamReader, identity: str) -> None:
        if len(self._reading) >= READING_MAX:
            reader.close()
            self._drop(f"{READING_MAX} texts are on their way: one of {identity} is dropped")
            return
        task = asyncio.create_task(self._read(reader, identity), name="room-text")
        self._reading.add(task)
        task.add_done_callback(self._reading.discard)

    async def _read(self, reader: rtc.TextStreamReader, identity: str) -> None:
        text = ""
        try:
            if not await self._is_person(identity):
                return
            async for part in reader:
                text += part
                if len(text) > TEXT_CHARACTERS:
                    self._drop(f"a text of {identity} has more than {TEXT_CHARACTERS} characters: it is dropped")
                    return
        except ConnectionError as error:
            log.info("a text was broken off", extra={"error": str(error)})
            return
        finally:
            reader.close()
        if not text.strip():
            return
        if not self._bucket(identity).take(1, self._now()):
            self._drop(f"{identity} sends texts faster than one a second: one is dropped")
            return
        self._take(f"chat_{secrets.token_hex(8)}", text)

    def _on_joined(self, participant: rtc.RemoteParticipant) -> None:
        self._joined.set()

    async def _is_person(self, identity: str) -> bool:
        """A text may come before the news that its sender has joined."""
        try:
            async with asyncio.timeout(_KNOWN_S):
                while (participant := self._room.remote_participants.get(identity)) is None:
                    self._joined.clear()
                    await self._joined.wait()
        except TimeoutError:
            return False
        return participant.kind in _PERSONS and not identity.startswith(_OWN)

    def _bucket(self, identity: str) -> TokenBucket:
        """The rate of one who is in the room."""
        for gone in self._rates.keys() - self._room.remote_participants.keys():
            del self._rates[gone]
        return self._rates.setdefault(identity, TokenBucket(TEXTS_PER_S, TEXTS_AT_ONCE, self._now()))

    def _drop(self, detail: str) -> None:
        if self._warnings.take(1, self._now()):
            self._warn(detail)

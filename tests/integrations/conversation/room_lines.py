"""The lines of text that a conversation sends into its room."""

from __future__ import annotations

import asyncio

from livekit import rtc


def follow_captions(room: rtc.Room, lines: list[tuple[str, dict[str, str], str]]) -> None:
    """Every line of the room: who sent it, its attributes, its text."""
    reading: set[asyncio.Task[None]] = set()

    async def read(reader: rtc.TextStreamReader, identity: str, number: int) -> None:
        attributes, text = dict(reader.info.attributes or {}), await reader.read_all()
        lines[number] = (identity, attributes, text)

    def opened(reader: rtc.TextStreamReader, identity: str) -> None:
        lines.append((identity, {}, ""))
        reading.add(task := asyncio.create_task(read(reader, identity, len(lines) - 1)))
        task.add_done_callback(reading.discard)

    room.register_text_stream_handler("lk.transcription", opened)

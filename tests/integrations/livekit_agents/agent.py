"""An agent of livekit-agents as a process of its own, in an environment of its own: with commands and reports as JSON lines.

Runs with that environment's Python and imports nothing of this repository but the plugin. In: `{"do": "say", "symbols": 20}`,
`{"do": "interrupt"}`, `{"do": "pause"}`, `{"do": "resume"}`, `{"do": "leave"}`, and `{"do": "vanish"}`, which leaves the room and
reports to no one. Out: `{"event": …}` with `ready`, `started`, `finished`, `said`, `left`, and `log` for warnings.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import uuid
from typing import Any

import numpy as np
from livekit import rtc
from livekit.agents import Agent, AgentSession, APIConnectOptions, tts
from livekit.agents.voice.avatar import DataStreamAudioOutput
from livekit.agents.voice.io import PlaybackFinishedEvent
from livekit.agents.voice.room_io import RoomOptions
from livekit.plugins import musetalk

RATE = 24_000


def report(event: str, **facts: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
    sys.stdout.flush()


def tones(symbols: int) -> bytes:
    """As `tests.orchestrator.voice.tones.tone_code`: symbol `k` is 100 ms of 600 + 90·k Hz."""
    count = RATE // 10
    at = np.arange(count) / RATE
    edge = np.minimum(1, np.minimum(np.arange(count), np.arange(count)[::-1]) / (0.003 * RATE))
    pieces = [np.sin(2 * np.pi * (600 + 90 * k) * at) * edge for k in range(symbols)]
    return (np.concatenate(pieces) * 9000).astype("<i2").tobytes()


class Tones(tts.TTS):
    """Says "35 symbols" as 35 tones, and anything else as ten."""

    def __init__(self) -> None:
        super().__init__(capabilities=tts.TTSCapabilities(streaming=False), sample_rate=RATE, num_channels=1)

    def synthesize(self, text: str, *, conn_options: APIConnectOptions = APIConnectOptions()) -> tts.ChunkedStream:  # noqa: B008
        return _Spoken(tts=self, input_text=text, conn_options=conn_options)


class _Spoken(tts.ChunkedStream):
    async def _run(self, output_emitter: tts.AudioEmitter) -> None:
        output_emitter.initialize(
            request_id=uuid.uuid4().hex, sample_rate=RATE, num_channels=1, mime_type="audio/pcm", frame_size_ms=100
        )
        first = self.input_text.split()[0]
        output_emitter.push(tones(int(first) if first.isdigit() else 10))
        output_emitter.flush()


class _Telling(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        report("log", level=record.levelname, text=record.getMessage())


async def _say(session: AgentSession, symbols: int) -> None:
    handle = session.say(f"{symbols} symbols")
    await handle.wait_for_playout()
    report("said", interrupted=handle.interrupted)


async def _obey(session: AgentSession, room: rtc.Room) -> None:
    """Returns when it is to leave."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    saying: set[asyncio.Task[None]] = set()
    while line := await reader.readline():
        order = json.loads(line)
        if order["do"] == "say":
            saying.add(task := asyncio.create_task(_say(session, order["symbols"])))
            task.add_done_callback(saying.discard)
        elif order["do"] == "interrupt":
            session.interrupt()
        elif order["do"] in ("pause", "resume"):
            getattr(session.output.audio, order["do"])()
        elif order["do"] == "vanish":
            await room.disconnect()
            os._exit(0)
        else:
            return


async def main() -> None:
    logging.getLogger().addHandler(_Telling(logging.WARNING))
    room = rtc.Room()
    await room.connect(os.environ["LIVEKIT_URL"], os.environ["LIVEKIT_TOKEN"])
    session: AgentSession[None] = AgentSession(tts=Tones())
    avatar = musetalk.AvatarSession(engine="pattern")
    await avatar.start(session, room=room)
    tail = session.output.audio
    assert isinstance(tail, DataStreamAudioOutput)
    tail.on("playback_started", lambda _: report("started"))

    def finished(event: PlaybackFinishedEvent) -> None:
        sent = tail._pushed_duration  # livekit-agents adds some silence to what the voice said
        report("finished", position=event.playback_position, interrupted=event.interrupted, sent=sent)

    tail.on("playback_finished", finished)
    quiet = RoomOptions(audio_input=False, close_on_disconnect=False)
    await session.start(Agent(instructions=""), room=room, room_options=quiet)
    await avatar.wait_for_join()
    report("ready", session_id=avatar.session_id, avatar=avatar.avatar_identity, audio=tail.label)
    await _obey(session, room)
    await session.aclose()
    await avatar.aclose()
    await room.disconnect()
    report("left")


if __name__ == "__main__":
    asyncio.run(main())

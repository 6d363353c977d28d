"""Captions at a real viewer: in step with the sound, cut where the voice was, and said on by another agent."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator

import numpy as np
import pytest

from musetalk_agent.protocol.messages import CaptionWord
from musetalk_tools.livekit_server import LiveKitAccess
from orchestrator.tts.synthesizer import SpeechChunk, SpeechOptions, VoiceInfo
from orchestrator.tts.voices import Voices
from tests.orchestrator.voice.stack import ROOM, Stack, stack
from tests.reader import Line, Reader
from tests.waiting import NEVER_S

pytestmark = pytest.mark.livekit
RATE = 16_000
BEAT_S = 0.5
LONG = " ".join(f"word{k}" for k in range(9))


class Metronome:
    """A voice that beeps at the beginning of each word, which lasts half a second; the first comes after a quarter."""

    async def open(self) -> None: ...

    async def aclose(self) -> None: ...

    def names(self) -> list[VoiceInfo]:
        return [VoiceInfo("beep:one", "en", "beep", RATE)]

    async def speak(self, text: str, voice: str, options: SpeechOptions) -> AsyncGenerator[SpeechChunk, None]:
        beat = np.zeros(round(RATE * BEAT_S))
        beat[: RATE // 5] = 12_000 * np.sin(2 * np.pi * 440 * np.arange(RATE // 5) / RATE)
        at = RATE // 4
        yield SpeechChunk(bytes(2 * at), RATE, ())
        for word in text.split():
            said = CaptionWord(text=f"{word} ", start=at, end=at + len(beat))
            yield SpeechChunk(beat.astype("<i2").tobytes(), RATE, (), (said,))
            at += len(beat)


async def say(running: Stack, session_id: str, text: str) -> None:
    answer = await running.stage.http.post(f"/session/{session_id}/speak", json={"text": text})
    assert answer.status_code == 202


def lags(line: Line, onsets: list[float]) -> list[float]:
    """How long after the nearest beep each piece came (s)."""
    return [at - min(onsets, key=lambda onset: abs(onset - at)) for at, _ in line.pieces]


@pytest.mark.network
async def test_captions_follow_the_voice(livekit_server: LiveKitAccess) -> None:
    voices = Voices(synthesizers=[Metronome()])
    async with stack(livekit_server, voices=voices) as running:
        reader = Reader().read(running.ears.room)
        lines = reader.lines
        async with running.stage.live(room=ROOM) as (started, line):
            avatar, session_id = started["avatar_identity"], started["session_id"]
            assert await running.ears.until(NEVER_S, lambda: bool(running.ears.by_track))

            await say(running, session_id, "in step with the lips")
            assert await running.ears.until(NEVER_S, lambda: bool(lines) and lines[0].over)
            first = lines[0]
            assert first.text == "in step with the lips " and len(first.pieces) == 5 and first.identity == avatar
            (sid,) = running.ears.by_track
            assert first.attributes == {
                "lk.segment_id": f"{avatar}.1",
                "lk.transcribed_track_id": sid,
                "lk.transcription_final": "true",
            }
            late = lags(first, running.ears.onsets())
            print("captions against sound, ms:", [round(1000 * lag) for lag in late])
            assert abs(float(np.median(late))) < 1.0  # a wide bar: on a machine that does nothing else it is 100 ms

            begun_at = time.monotonic()
            await say(running, session_id, LONG)
            assert await running.ears.until(NEVER_S, lambda: len(lines) == 2 and len(lines[1].pieces) == 3)
            await running.stage.http.post(f"/session/{session_id}/interrupt")
            assert await running.ears.until(NEVER_S, lambda: lines[1].over)
            words = len(lines[1].text.split())
            assert LONG.startswith(lines[1].text) and 3 <= words < 9
            assert abs(words - len(running.ears.onsets(begun_at))) <= 1, "as many as were heard; one was being said"
            assert lines[1].attributes["lk.transcription_final"] == "true"

            begun_at = time.monotonic()
            await say(running, session_id, LONG)
            assert await running.ears.until(NEVER_S, lambda: len(lines) == 3 and len(lines[2].pieces) == 4)
            running.agent_of(started).kill()
            await line.wait("playback.finished", count=3)
            assert await running.ears.until(NEVER_S, lambda: len(lines) == 4 and lines[3].over)
            begun, rest = lines[2].text.split(), lines[3].text.split()
            assert lines[3].attributes["lk.segment_id"].startswith(f"{avatar}.3+")
            assert rest[-1] == "word8" and len(rest) < 9
            heard = len(running.ears.onsets(begun_at))
            assert heard >= len(begun) + len(rest) - 1 >= 8, (
                begun,
                rest,
                heard,
            )  # what is doubled at the seam was heard twice

        async with running.stage.live(room=ROOM, captions=False) as (started, line):
            await say(running, started["session_id"], "silent")
            await line.wait("playback.finished")
            assert len(lines) == 4
        await reader.aclose()

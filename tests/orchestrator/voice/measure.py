"""Figures of docs/explanation/voice.md: `python -m tests.orchestrator.voice.measure kill|joined|skew [ROUNDS]`."""

from __future__ import annotations

import asyncio
import sys
import time

import numpy as np

from musetalk_tools.livekit_server import LiveKitAccess, LiveKitServer, find
from tests.musetalk_agent.stand import bursts
from tests.orchestrator.voice.stack import ROOM, speak, stack
from tests.orchestrator.voice.tones import heard_all, tone_code


async def kill(access: LiveKitAccess, standby: str) -> None:
    """One agent is killed after 1.2 s of a sentence of 6 s."""
    async with stack(access, voice_standby=standby) as running, running.stage.live(room=ROOM) as (started, line):
        ears = running.ears
        sending = asyncio.create_task(speak(line, tone_code(60)))
        await heard_all(ears, 12, settle_s=0)
        pictures = len(ears.video)
        running.agent_of(started).kill()
        killed = time.monotonic()
        await heard_all(ears, 59)
        await sending
        await line.wait("playback.finished")
        voice = next((sid for sid, who in ears.speakers.items() if who.startswith("voice-") and ears.spoken(sid)), None)
        last = ears.spoken(voice)[-1][0] if voice else float("nan")
        first = ears.spoken(ears.who_said(59))[0][0]
        pauses = np.diff([at for at, *_ in ears.video[max(0, pictures - 5) :]])
        durations = ears.durations(60)
        print(
            f"{standby}: voice gap {1000 * ears.longest_gap():.0f} ms, no picture {max(pauses):.2f} s, "
            f"avatar speaks {first - killed:.2f} s after, seam {1000 * (first - last - 0.02):+.0f} ms, "
            f"symbols lost {int((durations[1:] < 0.05).sum())}, heard {durations.sum():.2f} of 6.00 s",
            flush=True,
        )


async def skew(access: LiveKitAccess) -> None:
    """Bursts whose pictures are white: how much later than its sound a picture is seen."""
    for speaker in ("agent", "orchestrator"):
        async with (
            stack(access, agents=1) as running,
            running.stage.live(room=ROOM, speaker=speaker) as (_, line),
        ):
            ears = running.ears
            await ears.until(10, lambda ears=ears: len(ears.tracks) == 2)
            begun = time.monotonic()
            await speak(line, bursts(20).tobytes())
            await line.wait("playback.finished")
            whites = ears.whites(begun)
            skews = 1000 * np.array([min((w - at for w in whites), key=abs) for at in ears.onsets(begun)])
            p50, p95 = np.percentile(skews, 50), np.percentile(np.abs(skews), 95)
            print(
                f"speaker={speaker}: {len(skews)} bursts, skew p50 {p50:+.0f} ms, p95 of its amount {p95:.0f} ms",
                flush=True,
            )


async def main(what: str, rounds: int) -> None:
    """Starts a server for each round."""
    program = find()
    assert program is not None
    for _ in range(rounds):
        server = LiveKitServer(program, log_level="error")
        await server.start()
        try:
            await (skew(server.access) if what == "skew" else kill(server.access, "warm" if what == "kill" else what))
        finally:
            await server.stop()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1))

"""`python -m tests.bench.pacing`: how many rooms one process paces, with an engine that costs little and real publishers.

Whole sessions of the agent (pattern engine, compositor, player, failover publisher, LiveKit's SDK) in this process, all speaking
throughout, and a livekit-server beside it. Nobody watches, so that no decoder takes the cores: the SDK encodes all the same, as it
is reported here; with `--unwatched` it does not, as in an agent. With `--engine warp --sessions 1` the demo's face speaks, and
`encoding` is what the codec costs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import psutil
from livekit import rtc
from pydantic import SecretStr

from musetalk_agent.agent_settings import AgentSettings
from musetalk_agent.factory import Factory
from musetalk_agent.protocol.http import DEMO_AVATAR_ID, AgentStartRequest, AvatarSource, Picture, VideoCodec
from musetalk_agent.publishers.livekit.stats import TransportStats, read
from musetalk_agent.session.session import Session
from musetalk_tools.livekit_server import LiveKitAccess, LiveKitServer, obtain
from tests.bench.figures import Figure, percentile
from tests.bench.talkers import RATE, speech
from tests.viewer import join_token

BLOCK = 1600
"""Samples: 100 ms, about as much as the orchestrator sends at once of what it has."""
SETTLE_S, UNWATCHED_S = 5.0, 12.0
"""Until the estimation of bandwidth has opened up, and all sessions speak; until the SDK knows that there is no viewer."""
RATE_BAR, SKEW_BAR_MS, SESSIONS_BAR = 1.0, 40.0, 8
_TICK_S = 0.01
_ONE_THREAD = "OPENBLAS_NUM_THREADS"
_GROUPS = {"VideoEncoderQue": "encoding", "python": "event loop", "media": "composing"}


@dataclass(frozen=True)
class Paced:
    """How `sessions` went: the least of their frame rates, in frames a second; milliseconds; cores of this process by part."""

    sessions: int
    fps: float
    late_p95_ms: float
    late_worst_ms: float
    missing: int  # frames dropped or held, and segments that ran dry
    loop_p99_ms: float
    parts: dict[str, float]
    server: float

    @property
    def cores(self) -> float:
        """Of this process."""
        return sum(self.parts.values())


def thread_times() -> Counter[str]:
    """CPU seconds of this process's threads, by what they do. The SDK's threads have names of their own."""
    found: Counter[str] = Counter()
    ticks = os.sysconf("SC_CLK_TCK")
    for task in Path("/proc/self/task").iterdir():
        try:
            name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
        except (FileNotFoundError, ProcessLookupError):  # a thread that ends as it is looked at
            continue
        main = int(task.name) == os.getpid()
        words = rest.split()
        group = "event loop" if main else _GROUPS.get(name, "python threads" if name.startswith("python") else "SDK")
        group = "python threads" if group == "event loop" and not main else group
        found[group] += (int(words[11]) + int(words[12])) / ticks
    return found


async def frames_sent(session: Session) -> tuple[float, TransportStats]:
    """When they were read, and the statistics of the session's room."""
    room: rtc.Room = session.publisher._transports.room._room  # type: ignore[attr-defined]  # a bench looks inside
    reading = read((await room.get_rtc_stats()).publisher_stats)
    return time.monotonic(), reading


async def watch_loop(lags: list[float]) -> None:
    """Notes by how much each wake-up of the event loop comes late, in ms."""
    while True:
        due = time.monotonic() + _TICK_S
        await asyncio.sleep(_TICK_S)
        lags.append(1000 * (time.monotonic() - due))


async def talk(session: Session, pcm: np.ndarray, offset_s: float) -> None:
    """PCM at the pace of the clock, for as long as it is not cancelled."""
    session.receiver.take('{"type":"segment.start","segment":1,"sample_rate":16000}')
    begun, at = time.monotonic() + offset_s, 0
    while True:
        block = np.take(pcm, range(at, at + BLOCK), mode="wrap")
        await asyncio.sleep(max(0.0, begun + (at + BLOCK) / RATE - time.monotonic()))
        session.receiver.take(block.astype("<i2").tobytes())
        at += BLOCK


async def together(
    factory: Factory, access: LiveKitAccess, server: psutil.Process, count: int, options: argparse.Namespace
) -> Paced:
    """`count` sessions in rooms of their own speak for `options.seconds`."""
    pcm, lags = speech(30), list[float]()
    async with AsyncExitStack() as ending:
        sessions = [await begin(factory, access, number, options, ending) for number in range(count)]
        tasks = [
            asyncio.create_task(talk(one, pcm[number * 4_000 :], number / count / 25))
            for number, one in enumerate(sessions)
        ]
        tasks.append(asyncio.create_task(watch_loop(lags)))
        for task in tasks:
            ending.callback(task.cancel)
        await asyncio.sleep(UNWATCHED_S if options.unwatched else SETTLE_S)
        lags.clear()
        for one in sessions:
            one.pipeline.player.statistics.late_ms.clear()
        missed = sum(map(missing, sessions))
        before, threads, served = [await frames_sent(one) for one in sessions], thread_times(), used_s(server)
        begun = time.monotonic()
        await asyncio.sleep(options.seconds)
        took, spent, serving = time.monotonic() - begun, thread_times(), used_s(server) - served
        after = [await frames_sent(one) for one in sessions]
        late = [ms for one in sessions for ms in one.pipeline.player.statistics.late_ms]
        rates = [
            (two.frames_sent - one.frames_sent) / (end - start)
            for (start, one), (end, two) in zip(before, after, strict=True)
        ]
        return Paced(
            count,
            min(rates),
            percentile(late, 95),
            max(late),
            sum(map(missing, sessions)) - missed,
            percentile(lags, 99),
            {name: (spent[name] - threads[name]) / took for name in sorted(spent)},
            serving / took,
        )


def missing(session: Session) -> int:
    """Frames dropped or held, and times that the voice ran dry."""
    report = session.pipeline.player.report()
    return sum(int(report[name] or 0) for name in ("dropped", "held", "underruns"))


def used_s(process: psutil.Process) -> float:
    """Its CPU seconds."""
    times = process.cpu_times()
    return float(times.user + times.system)


async def begin(
    factory: Factory, access: LiveKitAccess, number: int, options: argparse.Namespace, ending: AsyncExitStack
) -> Session:
    """A session on air, which ends with `ending`."""
    room = f"pacing-{number}"
    request = AgentStartRequest(
        session_id=f"s{number}",
        room=room,
        livekit_url=access.url,
        livekit_token=join_token(access, room, "avatar", "agent", publish=True),
        avatar=AvatarSource(avatar_id=DEMO_AVATAR_ID),
        picture=Picture(width=options.width, height=options.height, fps=options.fps),
        engine=options.engine,
        video_codec=VideoCodec(options.codec),
        simulcast=options.simulcast,
    )
    session = await factory.session(request)
    await session.start()
    ending.push_async_callback(session.stop)
    return session


async def pacing(options: argparse.Namespace) -> list[Figure]:
    """Runs every count in turn, and prints each as it is known."""
    server = LiveKitServer(await obtain(), log_level="error")
    found: list[Paced] = []
    with tempfile.TemporaryDirectory() as cache:
        settings = AgentSettings(agent_api_key=SecretStr("bench"), engine=options.engine, cache_dir=Path(cache))
        factory = Factory(settings)
        await factory.start()
        try:
            await server.start()
            process = next(one for one in psutil.Process().children() if "livekit" in one.name())
            for count in options.sessions:
                found.append(await together(factory, server.access, process, count, options))
                print(row(found[-1]), flush=True)
        finally:
            await server.stop()
            await factory.aclose()
    least = options.fps * (1 - RATE_BAR / 100)
    paced = [p.sessions for p in found if p.fps >= least and p.late_p95_ms <= SKEW_BAR_MS]
    note = f"{options.engine}, {options.codec}, {options.width}×{options.height}; load of the machine {os.getloadavg()[0]:.1f}"
    return [Figure("sessions paced by one process", max(paced, default=0), "", SESSIONS_BAR, at_least=True, note=note)]


def row(paced: Paced) -> str:
    """One line for people."""
    parts = ", ".join(f"{name} {cores:.2f}" for name, cores in paced.parts.items())
    late = f"late p95 {paced.late_p95_ms:.1f}, worst {paced.late_worst_ms:.0f} ms, event loop p99 {paced.loop_p99_ms:.1f} ms"
    cores = f"{paced.cores:.2f} cores ({parts}), SFU {paced.server:.2f}"
    return f"{paced.sessions:2} sessions: least {paced.fps:.2f} fps; {late}; missing {paced.missing}; {cores}"


def encoding_all(options: type[rtc.RoomOptions]) -> Callable[..., rtc.RoomOptions]:
    """Makes options with which the SDK encodes what nobody subscribes to."""
    return lambda **given: options(**{**given, "dynacast": False})


def main() -> int:
    """Prints a line for each number of sessions, then the figure."""
    parser = argparse.ArgumentParser(prog="pacing", description=__doc__)
    parser.add_argument("--sessions", type=lambda text: [int(word) for word in text.split(",")], default=[1, 4, 8, 12])
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each measurement (default 10)")
    parser.add_argument("--engine", choices=["pattern", "warp"], default="pattern")
    parser.add_argument("--codec", choices=[codec.value for codec in VideoCodec], default=VideoCodec.VP8.value)
    parser.add_argument("--simulcast", action="store_true")
    parser.add_argument(
        "--unwatched", action="store_true", help="video that nobody subscribes to is not made (from 10 s on)"
    )
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--fps", type=int, default=25)
    options = parser.parse_args()
    if _ONE_THREAD not in os.environ:  # as `musetalk-agent` has it, and read when numpy is loaded
        os.execve(sys.executable, [*sys.orig_argv], {**os.environ, _ONE_THREAD: "1"})
    with nullcontext() if options.unwatched else patch.object(rtc, "RoomOptions", encoding_all(rtc.RoomOptions)):
        for figure in asyncio.run(pacing(options)):
            print(figure.line())
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a viewer sees and hears: through the services, the SFU and the jitter buffer."""

from __future__ import annotations

import asyncio
import http.server
import io
import threading
import zipfile
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager

import cv2
import numpy as np

from musetalk_agent.avatars.library import DEMO_ASSET
from tests.bench.engine import speech
from tests.bench.figures import Figure, pairs, percentile
from tests.bench.stack import Demo, Live, demo
from tests.musetalk_agent.stand import tone
from tests.waiting import until

DEMO = {"avatar_id": "demo"}
_FIRST = 20
"""Avatars whose first session is measured."""
_MATTE_S = 9.0
"""For the matte of a still picture, which is made once it is ready."""


def bursts(count: int) -> np.ndarray:
    """One second of silence, then bursts of five frames every twenty-five."""
    period = np.concatenate([tone(0.2), np.zeros(12_800, np.int16)])
    return np.concatenate([np.zeros(16_000, np.int16), np.tile(period, count)])


@contextmanager
def served(body: bytes) -> Iterator[str]:
    """A loopback address under which `body` lies."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/clip.zip"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def new_clip(frames: int = 100) -> bytes:
    """The demo face on 1280×720, swaying, with noise that no cache has seen."""
    face = cv2.resize(cv2.imread(str(DEMO_ASSET)), (720, 720))
    rng, out = np.random.default_rng(), io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for k in range(frames):
            picture = rng.integers(90, 100, (720, 1280, 3), np.uint8)
            shift = int(8 * np.sin(k / 8))
            picture[:, 280 + shift : 1000 + shift] = face
            archive.writestr(f"{k}.png", cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())
    return out.getvalue()


async def start(seconds: int) -> list[Figure]:
    """`/session/start` to the first picture at a subscriber."""
    async with demo("--allow-private-urls") as stack:
        async with stack.live(**DEMO):
            pass
        cached = []
        for _ in range(20):
            async with stack.live(**DEMO) as live:
                cached.append(live.viewer.video[0][0] - live.asked)
        with served(new_clip()) as url:
            async with stack.live(frames_zip_url=url) as live:
                fresh = live.viewer.video[0][0] - live.asked
    return [
        Figure(
            "start to first picture, cached, p95 of 20",
            percentile(cached, 95),
            "s",
            1.0,
            note=f"median {np.median(cached):.2f}",
        ),
        Figure("start to first picture, 100 frames of 720p never seen", fresh, "s", 6.0),
    ]


async def first_session(seconds: int) -> list[Figure]:
    """The first session of avatars that are ready: to the first picture at a subscriber. Each has a picture of its own."""
    waits, with_background = [], []
    async with demo() as stack:
        async with stack.live(**DEMO):
            pass
        for number in range(_FIRST):
            avatar_id = await _ready(stack, number)
            async with stack.live(avatar_id=avatar_id) as live:
                waits.append(live.viewer.video[0][0] - live.asked)
            if number % 4 == 0:
                await asyncio.sleep(_MATTE_S)
                async with stack.live(avatar_id=avatar_id, avatar_settings={"background": "blur"}) as live:
                    with_background.append(live.viewer.video[0][0] - live.asked)
    return [
        Figure(
            f"a ready avatar's first session to its first picture, p95 of {_FIRST}",
            percentile(waits, 95),
            "s",
            1.0,
            note=f"median {np.median(waits):.2f}",
        ),
        Figure(
            "the first one with a background, some seconds after it was ready, most",
            max(with_background),
            "s",
            1.0,
            note=f"median {np.median(with_background):.2f} of {len(with_background)}",
        ),
    ]


async def _ready(stack: Demo, number: int) -> str:
    """An avatar of the library that was never seen, when it is ready."""
    face = cv2.imread(str(DEMO_ASSET))
    face[:8, :8] = np.random.default_rng().integers(0, 256, (8, 8, 3))
    picture = cv2.imencode(".png", face)[1].tobytes()
    answer = await stack.http.post("/avatars", content=picture, headers={"X-Filename": f"{number}.png"})
    avatar_id = str(answer.raise_for_status().json()["avatar_id"])

    async def over() -> bool:
        return bool((await stack.http.get(f"/avatars/{avatar_id}")).json()["state"] != "preparing")

    await until(over)
    return avatar_id


async def in_step(seconds: int) -> list[Figure]:
    """Skew, drift, latency and smoothness with the pattern engine."""
    async with demo() as stack, stack.live(engine="pattern") as live:
        await asyncio.sleep(1.5)
        begun = asyncio.get_running_loop().time()
        sent = await live.send(bursts(seconds))
        await asyncio.sleep(1.5)
        viewer = live.viewer
        heard, seen = viewer.onsets(begun), viewer.whites(begun)
        matched = pairs(heard, seen, 0.5)
        skews = [1000 * (white - sound) for sound, white in matched]
        minutes = [(sound - matched[0][0]) / 60 for sound, _ in matched]
        drift = float(np.polyfit(minutes, skews, 1)[0])
        spoken = [sent[25 + 25 * k] for k in range(seconds)]
        delays = [1000 * (white - said) for said, white in pairs(spoken, seen, 0.9)]
        times = np.array([at for at, *_ in viewer.video if begun + 1 < at < begun + seconds])
        gaps = 1000 * np.diff(times)
        rate = (len(times) - 1) / (times[-1] - times[0])
    slope_error = float(np.std(skews)) / minutes[-1] * 3.5 / len(skews) ** 0.5
    noise = f"over {minutes[-1]:.1f} min; the slope's own noise is {slope_error:.2f}"
    reported = f"{len(heard)} of {seconds} bursts heard, {len(seen)} seen"
    return [
        Figure("A/V skew at the subscriber, |median|", abs(float(np.median(skews))), "ms", 20, note=reported),
        Figure("A/V skew at the subscriber, p95", percentile(np.abs(skews).tolist(), 95), "ms", 40),
        Figure(
            "A/V drift",
            abs(drift),
            "ms/min",
            1,
            note=noise,
        ),
        Figure(
            "real-time PCM to white seen, p95",
            percentile(delays, 95),
            "ms",
            250,
            note=f"median of the first minute {np.median(delays[:60]):.0f}, of the last {np.median(delays[-60:]):.0f}",
        ),
        Figure(
            "real-time PCM to sound heard, p95",
            percentile([1000 * (b - a) for a, b in pairs(spoken, heard, 0.9)], 95),
            "ms",
            250,
        ),
        Figure("frame rate while speaking, |fps - 25|", abs(float(rate) - 25), "1/s", 0.3),
        Figure(
            "largest gap between pictures while speaking",
            float(gaps.max()),
            "ms",
            120,
            note=f"p99 {np.percentile(gaps, 99):.0f}",
        ),
    ]


async def barge_in(seconds: int) -> list[Figure]:
    """Interrupt to silence and to a dark picture."""
    hushed, darkened = [], []
    async with demo() as stack, stack.live(engine="pattern") as live:
        for _ in range(20):
            await live.say("audio.start")
            await live.send(tone(4), paced=False, block=3200)
            await asyncio.sleep(1.0)
            asked = asyncio.get_running_loop().time()
            await live.interrupt()
            await asyncio.sleep(0.8)
            hushed.append(1000 * (max([asked, *live.viewer.heard(asked)]) - asked))
            darkened.append(
                1000 * (max([asked, *(at for at, c, *_ in live.viewer.video if at > asked and c > 160)]) - asked)
            )
    return [
        Figure("barge-in to silence at the subscriber, p95 of 20", percentile(hushed, 95), "ms", 200),
        Figure("barge-in to dark at the subscriber, p95 of 20", percentile(darkened, 95), "ms", 200),
    ]


async def cycles(seconds: int) -> list[Figure]:
    """Fifty start/speak/interrupt/stop cycles and what they leave behind."""
    async with demo() as stack:
        for count in range(50):
            async with stack.live(**DEMO) as live:
                await live.send(speech()[:16_000], paced=False)
                await live.interrupt()
            if count == 9:
                await asyncio.sleep(2)
                before, members = stack.usage(), stack.memory_mb()
        await asyncio.sleep(3)
        after, memory = stack.usage(), stack.memory_mb()
    return [
        Figure("50 cycles: threads more after the tenth", after["threads"] - before["threads"], "", 2),
        Figure("50 cycles: open files more after the tenth", after["files"] - before["files"], "", 4),
        Figure(
            "50 cycles: memory of our processes more after the tenth",
            sum(v - members[k] for k, v in memory.items() if "livekit-server" not in k),
            "MB",
            20,
            note=", ".join(f"{k} {members[k]:.0f} to {v:.0f}" for k, v in memory.items()),
        ),
    ]


async def capacity(seconds: int) -> list[Figure]:
    """Sessions of 512 px that all speak at once (warp), until pictures come late; viewers' decoding is on the same cores."""
    most, notes = 0, []
    async with demo() as stack:
        for count in range(1, 9):
            late, figures = await together(stack, count)
            notes.append(f"{count}: {figures}")
            if late:
                break
            most = count
    return [
        Figure(
            "sessions all speaking on this machine, 512 px (viewers included)", most, "sessions", note="; ".join(notes)
        )
    ]


async def together(stack: Demo, count: int, seconds: int = 10) -> tuple[bool, str]:
    """Whether pictures came late while `count` sessions spoke for more than two seconds, each with a viewer, and the figures."""
    pcm = np.tile(speech(), 4)[: seconds * 16_000]
    async with AsyncExitStack() as open_sessions:
        lives: list[Live] = [await open_sessions.enter_async_context(stack.live(**DEMO)) for _ in range(count)]
        before = stack.usage()["cpu_s"]
        begun = asyncio.get_running_loop().time()
        await asyncio.gather(*(live.send(pcm) for live in lives))
        took = asyncio.get_running_loop().time() - begun
        cores = (stack.usage()["cpu_s"] - before) / took
        statistics = [await live.statistics() for live in lives]
        rates = []
        for live in lives:
            times = [at for at, *_ in live.viewer.video if begun + 1 < at < begun + seconds - 0.5]
            rates.append((len(times) - 1) / (times[-1] - times[0]))
    p95 = max(s["lip_latency_p95_ms"] or 0 for s in statistics)
    lost = sum(s["dropped"] + s["held"] for s in statistics) / sum(s["spoken"] for s in statistics)
    late = p95 > 160 or lost > 0.01 or min(rates) < 24.7
    return late, f"p95 {p95:.0f} ms, {100 * lost:.1f} % late, least {min(rates):.1f} fps, stack {cores:.2f} cores"

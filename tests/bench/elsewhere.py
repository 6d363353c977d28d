"""An avatar that is ready, at an agent that never saw it, and another avatar in a session that runs.

Each round of `elsewhere` prepares an avatar at one agent, starts another one whose cache is empty, ends the first, and starts a
session: its clip goes from the library to the new agent, which prepares it then, or has done so when it is warmed.
"""

from __future__ import annotations

import asyncio
import functools
import secrets
import shutil
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import httpx
import numpy as np

from musetalk_agent.avatars.library import DEMO_ASSET
from musetalk_tools.livekit_server import LiveKitServer, obtain
from musetalk_tools.processes import Child, free_port
from orchestrator.agents.pool import HEALTH_TTL_S
from tests.bench.engine import speech
from tests.bench.figures import Figure, percentile
from tests.bench.room import DEMO, new_clip
from tests.bench.stack import Demo, Live, demo
from tests.musetalk_agent.engines.warp.faces import demo_picture, demo_points
from tests.musetalk_agent.stand import tone
from tests.viewer import RATE, Viewer
from tests.waiting import until

KINDS = {"photo, at once": 20, "clip of 100 frames of 720p, warmed": 10, "the same clip, at once": 2}
"""How many first sessions of each kind are measured: as soon as the agent is there, or when the service has warmed it."""
SETTLED_S = 1.0
"""From the artefacts' file to the end of the preparation."""
SWITCHES = 10
SHADES = 40, 220
"""Levels of the corner by which a viewer knows one avatar from the other."""
CORNER = 0.08
"""Of the picture's side."""
READY_S = 90.0
EVERY_S = 6.0
"""From one change to the next."""
TONE = 9_000
"""Level above which only the tones before and after the speech are."""
STALL_MOST, LAG_MOST, STEP, SMOOTH_S = 1.5, 0.3, 0.01, 0.05
"""How far the sounds of the two times may be apart, within which lips are compared, how finely, and how smooth (seconds)."""


@dataclass
class Fleet:
    """An orchestrator with two addresses of agents, at one of which at a time an agent runs, each with a cache of its own."""

    stack: Demo
    folder: Path
    ports: tuple[int, int]
    key: str
    running: dict[int, Child] = field(default_factory=dict)
    caches: dict[int, Path] = field(default_factory=dict)

    async def start(self, number: int) -> None:
        """Starts an agent with an empty cache at one of the addresses, and has it hold a session once."""
        port = self.ports[number]
        self.caches[number] = self.folder / f"cache-{secrets.token_hex(4)}"
        environment = {
            "AGENT_API_KEY": self.key,
            "AGENT_ENGINE": "warp",
            "AGENT_DRAIN_S": "0",
            "LOG_LEVEL": "ERROR",
            "AVATAR_CACHE_DIR": str(self.caches[number]),
        }
        command = [sys.executable, "-m", "musetalk_agent", "serve", "--host", "127.0.0.1", "--port", str(port)]
        child = Child(f"agent {number}", command, environment)
        await child.start()
        self.running[number] = child
        await child.ready(f"http://127.0.0.1:{port}/health", READY_S)

    def made(self, number: int) -> int:
        """How many avatars have all that their sessions need in that agent's cache."""
        return len(list(self.caches[number].glob("bundles/*/engines/*/warp.npz")))

    async def warmed(self, number: int) -> None:
        """Returns when the service has had that agent prepare an avatar beside the demo's."""
        await until(lambda: self.made(number) > 1)
        await asyncio.sleep(SETTLED_S)

    async def stop(self, number: int) -> None:
        """Ends the agent at that address."""
        await self.running.pop(number).stop()


@asynccontextmanager
async def fleet() -> AsyncIterator[Fleet]:
    """Starts livekit-server and the orchestrator, and ends everything."""
    async with AsyncExitStack() as opened:
        folder = Path(opened.enter_context(TemporaryDirectory()))
        server = LiveKitServer(await obtain(), "error", log_path=folder / "livekit.log")
        opened.push_async_callback(server.stop)
        await server.start()
        ports, port = (free_port(), free_port()), free_port()
        agent_key, key = "agent_" + secrets.token_urlsafe(8), "key_" + secrets.token_urlsafe(8)
        environment = {
            "LIVEKIT_URL": server.access.url,
            "LIVEKIT_API_KEY": server.access.api_key,
            "LIVEKIT_API_SECRET": server.access.api_secret,
            "ORCHESTRATOR_API_KEY": key,
            "AGENT_URL": ",".join(f"http://127.0.0.1:{port}" for port in ports),
            "AGENT_API_KEY": agent_key,
            "STORE_PATH": ":memory:",
            "AVATARS_DIR": str(folder / "avatars"),
            "DRAIN_S": "0",
            "LOG_LEVEL": "ERROR",
            "CONVERSATION_PYTHON": "",
        }
        command = [sys.executable, "-m", "orchestrator", "serve", "--host", "127.0.0.1", "--port", str(port)]
        orchestrator = Child("orchestrator", command, environment)
        opened.push_async_callback(orchestrator.stop)
        await orchestrator.start()
        http = await opened.enter_async_context(
            httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}",
                headers={"Authorization": f"Bearer {key}"},
                timeout=60,
                trust_env=False,
            )
        )
        info = {"livekit_url": server.access.url}
        found = Fleet(Demo(info, http, None), folder, ports, agent_key)  # type: ignore[arg-type]  # no process of its own
        try:
            await found.start(0)
            await orchestrator.ready(f"http://127.0.0.1:{port}/health", READY_S)
            yield found
        finally:
            for number in list(found.running):
                await found.stop(number)


async def elsewhere(seconds: int) -> list[Figure]:
    """The first session of ready avatars at agents that never saw them, to the first picture at a subscriber."""
    waits: dict[str, list[float]] = {kind: [] for kind in KINDS}
    async with fleet() as running:
        kinds = [kind for kind, count in KINDS.items() for _ in range(count)]
        for number, kind in enumerate(kinds):
            here, there = number % 2, 1 - number % 2
            body = new_clip() if "clip" in kind else portrait(number)
            avatar_id = await ready(running.stack, body, f"{number}.{'zip' if 'clip' in kind else 'png'}")
            await running.start(there)
            await running.stop(here)
            await asyncio.sleep(HEALTH_TTL_S + 0.2)  # until then the pool believes what the agents last said
            async with running.stack.live(**DEMO):
                pass  # the process is warm; the avatar is what it does not know
            if "warmed" in kind:
                await running.warmed(there)
            async with running.stack.live(avatar_id=avatar_id) as live:
                waits[kind].append(live.viewer.video[0][0] - live.asked)
            await asyncio.to_thread(shutil.rmtree, running.caches[here], ignore_errors=True)
    return [
        Figure(
            f"a ready avatar's first session at an agent that never saw it, {kind}, p95 of {len(found)}",
            percentile(found, 95),
            "s",
            None if "at once" in kind and "clip" in kind else 2.5,
            note=f"median {np.median(found):.2f}, most {max(found):.2f}",
        )
        for kind, found in waits.items()
        if found
    ]


def portrait(number: int, shade: int | None = None) -> bytes:
    """The demo face as a PNG that no cache has seen, with a corner of `shade`, if any."""
    face = cv2.imread(str(DEMO_ASSET))
    height, width = face.shape[:2]
    if shade is not None:
        face[: int(2 * CORNER * height), : int(2 * CORNER * width)] = shade
    face[-4:, -4:] = np.random.default_rng().integers(0, 256, (4, 4, 3))
    return cv2.imencode(".png", face)[1].tobytes()


async def ready(stack: Demo, body: bytes, name: str) -> str:
    """The id of an avatar of the library, when it is ready."""
    answer = await stack.http.post("/avatars", content=body, headers={"X-Filename": name})
    avatar_id = str(answer.raise_for_status().json()["avatar_id"])

    async def over() -> bool:
        state = (await stack.http.get(f"/avatars/{avatar_id}")).json()["state"]
        assert state != "failed"
        return bool(state == "ready")

    await until(over)
    return avatar_id


@dataclass
class FaceViewer(Viewer):
    """Writes down of each picture, too: (arrival, level of the corner, level of the mouth)."""

    faces: list[tuple[float, float, float]] = field(default_factory=list)

    def saw(self, at: float, luma: np.ndarray) -> None:
        height, width = luma.shape
        corner = luma[: int(CORNER * height), : int(CORNER * width)]
        x0, y0, x1, y1 = mouth_box()
        mouth = luma[int(y0 * height) : int(y1 * height), int(x0 * width) : int(x1 * width)]
        self.faces.append((at, float(corner.mean()), float(mouth.mean())))


@functools.cache
def mouth_box() -> tuple[float, float, float, float]:
    """Where the demo face's mouth opens, in shares of the picture: left, top, right, bottom."""
    points = demo_points() / np.array(demo_picture().shape[1::-1])
    (left, _), (right, _), (_, top) = points[[61, 291, 13]]
    wide = right - left
    return left + 0.2 * wide, top - 0.1 * wide, right - 0.2 * wide, top + 0.5 * wide


async def switch(seconds: int) -> list[Figure]:
    """Another avatar in a session that speaks: until it is seen, pictures that are missing, and lips in step with what is heard.

    The same speech is said twice, the second time over changes: its lips are compared with those of the first time.
    """
    waits: list[float] = []
    async with demo("--engine", "warp") as stack:
        avatars = [await ready(stack, portrait(k, SHADES[k % 2]), f"{k}.png") for k in range(SWITCHES + 1)]
        async with stack.live(viewer=FaceViewer(), avatar_id=avatars[0]) as live:
            viewer = live.viewer
            assert isinstance(viewer, FaceViewer)
            said = marked_speech(EVERY_S * SWITCHES + 2)
            await live.send(said)
            first = await _heard(viewer, 0.0)
            ends = [await _heard(viewer, first + 1.0) - first]
            begun = asyncio.get_running_loop().time()
            speaking = asyncio.create_task(live.send(said))
            second = await _heard(viewer, begun)
            changed = []
            for number, avatar_id in enumerate(avatars[1:], 1):
                await asyncio.sleep(max(0.0, second + EVERY_S * number - 1 - time.monotonic()))
                changed.append(time.monotonic() - second)
                waits.append(await _shown(live, viewer, avatar_id, SHADES[number % 2]))
            await speaking
            ends.append(await _heard(viewer, second + 1.0) - second)
    length = len(said) / RATE
    half = EVERY_S / 2
    lags, alike = zip(*(_lag(viewer, first, second, at, at + half) for at in changed), strict=True)
    before, _ = zip(*(_lag(viewer, first, second, at - half, at) for at in changed), strict=True)
    lip_note = f"median {1000 * np.median(np.abs(lags)):.0f}; in the {half:.0f} s before each change "
    lip_note += f"{1000 * float(np.abs(before).max()):.0f}, median {1000 * np.median(np.abs(before)):.0f}; "
    lip_note += f"correlation {np.median(alike):.2f}, least {min(alike):.2f}"
    still, gaps = (1000 * np.diff([at for at, *_ in viewer.faces if s < at < s + length]) for s in (first, second))
    p99 = [float(np.percentile(each, 99)) for each in (gaps, still)]
    gap_note = f"p99 {p99[0]:.0f}; without a change {still.max():.0f}, p99 {p99[1]:.0f}"
    return [
        Figure(f"another avatar while it speaks: request to its first picture, most of {SWITCHES}", max(waits), "s", 1.0,
               note=f"median {np.median(waits):.2f}, p95 {percentile(waits, 95):.2f}"),
        Figure("the same: largest gap between pictures", float(gaps.max()), "ms", 120, note=gap_note),
        Figure("the same: lips against those without a change, most", 1000 * float(np.abs(lags).max()), "ms", 40, note=lip_note),
        Figure("the same: speech that is longer or shorter than without a change", 1000 * abs(ends[1] - ends[0]), "ms", 20),
    ]  # fmt: skip


def marked_speech(seconds: float) -> np.ndarray:
    """Speech with a loud tone before and after it, int16 at 16 kHz."""
    voice = speech()
    body = np.tile(voice, -(-int(seconds * RATE) // len(voice)))[: int(seconds * RATE)]
    mark, pause = tone(0.2), np.zeros(RATE // 2, np.int16)
    quieter = (body * min(1.0, 0.7 * TONE / max(1, int(np.abs(body).max())))).astype(np.int16)
    return np.concatenate([mark, pause, quieter, pause, mark])


async def _heard(viewer: Viewer, since: float) -> float:
    """When the first tone after `since` is heard."""
    await until(lambda: viewer.onsets(since, TONE))
    return viewer.onsets(since, TONE)[0]


async def _shown(live: Live, viewer: FaceViewer, avatar_id: str, shade: int) -> float:
    """Asks for another avatar: seconds until its first picture."""
    bright, asked = shade > 128, time.monotonic()
    answer = await live.demo.http.post(f"/session/{live.started['session_id']}/avatar", json={"avatar_id": avatar_id})
    assert answer.is_success, answer.text

    def first() -> float | None:
        return next((at for at, level, _ in viewer.faces if at > asked and (level > 128) == bright), None)

    assert await viewer.until(20, lambda: first() is not None), "the other avatar was not seen"
    seen = first()
    assert seen is not None
    return seen - asked


def _lag(viewer: FaceViewer, first: float, second: float, begin: float, end: float) -> tuple[float, float]:
    """By how many seconds the lips of the second time are later against its sound than those of the first against theirs, and how
    alike they are then."""
    lips = np.array([(at, level) for at, _, level in viewer.faces])
    sound = np.array([(at, float(np.square(block.astype(float)).mean()) ** 0.5) for at, block in viewer.sound])
    one, other = (since + np.arange(begin, end, STEP) for since in (first, second))
    heard, _ = _apart(sound, one, other, STALL_MOST)
    return _apart(lips, one, other + heard, LAG_MOST)


def _apart(signal: np.ndarray, one: np.ndarray, other: np.ndarray, most: float) -> tuple[float, float]:
    """How much later (`most` seconds at most) a signal (arrival, level) is at the moments `other` than at `one`, and how alike."""
    at, level = signal.T
    box = np.full(round(SMOOTH_S / STEP), STEP / SMOOTH_S)
    grid = np.arange(at[0], at[-1], STEP)
    smooth = np.convolve(np.interp(grid, at, level), box, "same")
    before = np.interp(one, grid, smooth)
    ways = np.arange(-most, most + 1e-9, STEP)
    found = [float(np.corrcoef(before, np.interp(other + way, grid, smooth))[0, 1]) for way in ways]
    best = int(np.argmax(found))
    return float(ways[best]), found[best]

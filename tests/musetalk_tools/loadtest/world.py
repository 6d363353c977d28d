"""A service under load and its viewers, on virtual time: every delay is known, so that every figure of the report is."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from musetalk_tools.loadtest.deployment import CallError, Json
from musetalk_tools.loadtest.load_session import Message, SenderLost
from musetalk_tools.loadtest.speech_source import BLOCK, RATE, Loudness, Pcm
from musetalk_tools.loadtest.viewer_messages import Left, Link, Seen
from musetalk_tools.loadtest.viewer_pool import ViewerLost, Watch

FPS = 25
REPORT_S = 0.5
"""As the viewers' processes report."""


@dataclass
class World:
    """The deployment (`Deployment`'s calls) and the viewers (`ViewerPool`'s) in one, with the delays of both.

    Attributes:
        start_s: until a start is answered.
        first_picture_s: from there to the first picture; None: none comes.
        sound_s: from a sample that was sent to its sound at the viewer.
        skew_s: by how much the picture of a sound comes after it.
        hush_s: from an interruption to silence.
        errors: of a call, by its name, what it raises.
        calls: names of the calls, in their order.
        lingers: how often a session is listed after it was stopped.
    """

    start_s: float = 0.8
    first_picture_s: float | None = 0.3
    sound_s: float = 0.2
    skew_s: float = 0.02
    hush_s: float = 0.15
    engine: str = "pattern"
    errors: dict[str, Exception] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    bodies: list[Json] = field(default_factory=list)
    sessions: dict[str, Json] = field(default_factory=dict)
    watches: dict[str, Watch] = field(default_factory=dict)
    senders: list[Speaker] = field(default_factory=list)
    shows: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    seen: dict[str, Seen] = field(default_factory=dict)
    counted: Left = field(default_factory=lambda: Left(name="", packets_received=1000, packets_lost=3, freezes=1))
    metrics_text: str = ""
    debugged: Json = field(default_factory=lambda: {"engine": "pattern", "device": "cpu", "sessions": []})

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.errors:
            raise self.errors[name]

    # --- the deployment

    async def token(self, room: str, identity: str) -> Json:
        self._call("token")
        return {"livekit_url": "ws://livekit", "token": f"{room} {identity}"}

    async def start(self, body: Json) -> Json:
        self._call("start")
        self.bodies.append(body)
        session_id = f"ses_{len(self.bodies) - 1}"
        self.sessions[session_id] = {"session_id": session_id, "room": body["room"], "state": "starting"}
        await asyncio.sleep(self.start_s)
        self.sessions[session_id]["state"] = "ready"
        name = body["room"].rpartition("-")[2]
        if self.first_picture_s is not None:
            self.shows[name] = asyncio.create_task(self._show(name, self.first_picture_s))
        url = f"ws://service/audio?session_id={session_id}&name={name}"
        return {"session_id": session_id, "engine": self.engine, "fps": FPS, "audio_url": url}

    async def interrupt(self, session_id: str) -> None:
        self._call("interrupt")
        name = session_id.rpartition("_")[2]
        self.seen[name].offsets.append(time.monotonic() + self.hush_s)

    async def stop(self, session_id: str) -> None:
        self._call(f"stop {session_id}")
        if "stop" in self.errors:
            raise self.errors["stop"]
        self.sessions[session_id]["state"] = "stopped"

    async def running(self, rooms: str) -> list[Json]:
        self._call("running")
        return [each for each in self.sessions.values() if each["state"] != "stopped"]

    async def debug(self) -> Json:
        self._call("debug")
        return self.debugged

    async def metrics(self) -> str:
        self._call("metrics")
        return self.metrics_text

    # --- the crowd

    async def join(self, watch: Watch, url: str, token: str) -> None:
        self._call(f"join {watch.name} {url} {token}")
        if "join" in self.errors:
            raise self.errors["join"]
        self.watches[watch.name] = watch
        self.seen[watch.name] = Seen(name=watch.name)

    async def leave(self, watch: Watch) -> Left:
        self.calls.append(f"leave {watch.name}")
        show = self.shows.pop(watch.name, None)
        if show is None:
            return Left(name=watch.name)
        show.cancel()
        await asyncio.gather(show, return_exceptions=True)
        return self.counted.model_copy(update={"name": watch.name})

    async def aclose(self) -> None:
        self.calls.append("close")

    def lose_viewer(self, name: str, reason: str = "SERVER_SHUTDOWN") -> None:
        """Its connection to the room ends."""
        self.watches[name].on_link(Link(name=name, state="disconnected", reason=reason))

    async def _show(self, name: str, after_s: float) -> None:
        """Pictures at an even pace; what came is reported twice a second."""
        await asyncio.sleep(after_s)
        begun = time.monotonic()
        for reported in itertools.count():
            seen = self.seen[name]
            count = round(REPORT_S * FPS) if reported % 2 else round(REPORT_S * FPS) + 1
            first = reported // 2 * FPS + reported % 2 * (round(REPORT_S * FPS) + 1)
            seen.frames = [begun + (first + n) / FPS for n in range(count)]
            self.seen[name] = Seen(name=name)
            self.watches[name].on_seen(seen)
            await asyncio.sleep(REPORT_S)


class Speaker:
    """A `Sender` of this world: what it sends is heard by the session's viewer."""

    def __init__(self, world: World, url: str, on_message: Callable[[Message], None]) -> None:
        world.senders.append(self)
        self.world, self.on_message = world, on_message
        self.name = url.rpartition("=")[2]
        self.said: list[tuple[str, float]] = []
        self.reconnects = 0
        self.closed = False
        self._loud = Loudness(RATE)

    async def open(self) -> None:
        if "open" in self.world.errors:
            raise self.world.errors["open"]

    async def say(self, kind: str) -> None:
        self.said.append((kind, time.monotonic()))
        if kind == "audio.end":
            self.on_message({"type": "playback.finished"})

    async def send(self, pcm: Pcm, *, paced: bool = True, on_block: Callable[[int, float], None] | None = None) -> None:
        for at in range(0, len(pcm), BLOCK):
            block = pcm[at : at + BLOCK]
            if "send" in self.world.errors:
                raise self.world.errors["send"]
            if paced:
                await asyncio.sleep(len(block) / RATE)
                self._hear(block)
            if on_block is not None:
                on_block(at + len(block), time.monotonic())

    def _hear(self, block: Pcm) -> None:
        seen = self.world.seen[self.name]
        self._loud.push(time.monotonic() + self.world.sound_s, block)
        seen.onsets += self._loud.onsets
        seen.whites += [onset + self.world.skew_s for onset in self._loud.onsets]
        self._loud.onsets.clear()

    async def aclose(self) -> None:
        self.closed = True


def inhabit(world: World, patch: pytest.MonkeyPatch) -> World:
    """Sessions and runs of the load test meet this world from now on."""
    patch.setattr("musetalk_tools.loadtest.load_session.Sender", lambda url, reported: Speaker(world, url, reported))
    patch.setattr("musetalk_tools.loadtest.run.ViewerPool", lambda: world)
    return world


REFUSED: dict[str, tuple[Exception, str]] = {
    "token": (CallError("unauthorized", "no key"), "unauthorized"),
    "join": (ViewerLost("could not join: no room"), "viewer_lost"),
    "start": (CallError("at_capacity", "All 2 agents are full."), "at_capacity"),
    "open": (SenderLost("refused_404"), "refused_404"),
    "send": (SenderLost("backlog_exceeded"), "backlog_exceeded"),
    "interrupt": (CallError("session_ended", "It is over."), "session_ended"),
}
"""Where a session can fail: what is raised there, and the code that its row then has."""

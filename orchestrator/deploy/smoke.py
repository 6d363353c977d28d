"""One session from its start to its end at a running deployment: a throw-away room, the demo's face, a sentence, a viewer."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx
from livekit import rtc

from musetalk_agent.protocol.http import DEMO_AVATAR_ID

SENTENCE = "If you can read this from my lips, the deployment works."
_START_S = 300.0
"""A cold container loads its weights within it."""
_SPOKEN_S = 60.0
_PICTURES_S = 20.0
_POLL_S = 0.2


class SmokeFailed(Exception):
    """The message says which step failed and what was answered."""


@dataclass
class SmokeReport:
    """Figures of one session; seconds. `diagnosis` is the worst that was told while the avatar spoke."""

    engine: str = ""
    start_s: float = 0.0
    first_picture_s: float | None = None
    speech_s: float = 0.0
    pictures: int = 0
    diagnosis: str = "no_audio"
    funnel: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether lips moved, as the agent tells, and somebody saw a picture."""
        return self.diagnosis == "ok" and self.pictures > 0

    def lines(self) -> list[str]:
        """For people."""
        return [f"{name:16} {value}" for name, value in asdict(self).items()] + [f"{'ok':16} {self.ok}"]


async def smoke(url: str, key: str, **order: Any) -> SmokeReport:
    """Runs it. Whatever happens, the session is stopped and the viewer leaves; cancelling too.

    Args:
        url, key: the orchestrator and one of its keys.
        order: fields of `/session/start` other than the room and the demo's avatar.

    Raises SmokeFailed, and httpx.HTTPError when the orchestrator does not answer.
    """
    report = SmokeReport()
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30, trust_env=False) as http:
        begun = time.monotonic()
        body = {"room": f"smoke-{secrets.token_hex(6)}", "avatar_id": DEMO_AVATAR_ID, **order}
        session = _told(await http.post("/session/start", json=body, timeout=_START_S), "start")
        path = f"/session/{session['session_id']}"
        try:
            report.engine, report.start_s = session["engine"], round(time.monotonic() - begun, 2)
            async with _watching(session, report):
                await _speak(http, path, report)
        finally:
            _told(await http.post(f"{path}/stop"), "stop")
    return report


async def _speak(http: httpx.AsyncClient, path: str, report: SmokeReport) -> None:
    begun = time.monotonic()
    while not report.pictures and time.monotonic() - begun < _PICTURES_S:  # noqa: ASYNC110 - a matter of time too
        await asyncio.sleep(_POLL_S)
    begun = time.monotonic()
    _told(await http.post(f"{path}/speak", json={"text": SENTENCE}), "speak")
    spoke = False
    while time.monotonic() - begun < _SPOKEN_S:
        told = _told(await http.get(path), "session")
        speaking = told["state"] == "speaking"
        if speaking and told["playback"]["position_s"] > 0:
            report.diagnosis = told["diagnosis"]["code"]
        if spoke and not speaking:
            break
        spoke = spoke or speaking
        await asyncio.sleep(_POLL_S)
    else:
        raise SmokeFailed(f"speak: not heard within {_SPOKEN_S:g} s; the session says {report.diagnosis}")
    report.speech_s = round(time.monotonic() - begun, 2)
    debug = _told(await http.get("/debug/musetalk"), "debug")
    found = next((each for each in debug["sessions"] if path.endswith(each["session_id"])), None)
    report.funnel = {stage["stage"]: stage["count"] for stage in found["funnel"]} if found else {}


@asynccontextmanager
async def _watching(session: dict[str, Any], report: SmokeReport) -> AsyncIterator[None]:
    """A viewer who counts pictures."""
    room, begun = rtc.Room(), time.monotonic()
    tasks: list[asyncio.Task[None]] = []

    async def count(track: rtc.Track) -> None:
        stream = rtc.VideoStream(track)
        try:
            async for _ in stream:
                report.first_picture_s = report.first_picture_s or round(time.monotonic() - begun, 2)
                report.pictures += 1
        finally:
            await stream.aclose()

    @room.on("track_subscribed")
    def subscribed(track: rtc.Track, *_: object) -> None:
        if track.kind == rtc.TrackKind.KIND_VIDEO:
            tasks.append(asyncio.create_task(count(track)))

    try:
        await room.connect(session["livekit_url"], session["viewer_token"])
    except rtc.ConnectError as error:
        raise SmokeFailed(f"the viewer could not join {session['livekit_url']}: {error.message}") from error
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await room.disconnect()


def _told(answer: httpx.Response, step: str) -> dict[str, Any]:
    if answer.is_error:
        raise SmokeFailed(f"{step}: HTTP {answer.status_code} {answer.text[:500]}")
    told: dict[str, Any] = answer.json()
    return told

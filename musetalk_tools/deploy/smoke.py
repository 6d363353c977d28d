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
from musetalk_agent.protocol.retries import CALL, NO_ANSWER, RetryVerdict, Tries, retry_after_s, verdict

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
    """Figures of one session; seconds. `diagnosis` is the last that was reported while the avatar spoke."""

    engine: str = ""
    start_s: float = 0.0
    first_picture_s: float | None = None
    speech_s: float = 0.0
    pictures: int = 0
    diagnosis: str = "no_audio"
    funnel: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether lips moved, by the agent's report, and a viewer got a frame."""
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
        once = {"Idempotency-Key": secrets.token_hex(16)}
        session = await _call(http, "start", "POST", "/session/start", json=body, timeout=_START_S, headers=once)
        path = f"/session/{session['session_id']}"
        try:
            report.engine, report.start_s = session["engine"], round(time.monotonic() - begun, 2)
            async with _watching(session, report):
                await _speak(http, path, report)
        finally:
            await _call(http, "stop", "POST", f"{path}/stop")
    return report


async def _speak(http: httpx.AsyncClient, path: str, report: SmokeReport) -> None:
    begun = time.monotonic()
    while not report.pictures and time.monotonic() - begun < _PICTURES_S:  # noqa: ASYNC110 - a matter of time too
        await asyncio.sleep(_POLL_S)
    begun = time.monotonic()
    await _call(http, "speak", "POST", f"{path}/speak", repeatable=False, json={"text": SENTENCE})
    spoke = False
    while time.monotonic() - begun < _SPOKEN_S:
        answered = await _call(http, "session", "GET", path)
        speaking = answered["state"] == "speaking"
        if speaking and answered["playback"]["position_s"] > 0:
            report.diagnosis = answered["diagnosis"]["code"]
        if spoke and not speaking:
            break
        spoke = spoke or speaking
        await asyncio.sleep(_POLL_S)
    else:
        raise SmokeFailed(f"speak: not heard within {_SPOKEN_S:g} s; the session says {report.diagnosis}")
    report.speech_s = round(time.monotonic() - begun, 2)
    report.funnel = {stage["stage"]: stage["count"] for stage in answered["funnel"]}


@asynccontextmanager
async def _watching(session: dict[str, Any], report: SmokeReport) -> AsyncIterator[None]:
    """A viewer who counts frames."""
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


async def _call(
    http: httpx.AsyncClient, step: str, method: str, path: str, *, repeatable: bool = True, **options: Any
) -> dict[str, Any]:
    """The answer's object. A refusal that may pass is asked again, as every client of ours does; one that may have been carried out
    only when the call is `repeatable`. Raises SmokeFailed, httpx.HTTPError.
    """
    tries = Tries(CALL)
    while True:
        failure: SmokeFailed | httpx.TransportError
        try:
            answer = await http.request(method, path, **options)
        except httpx.TransportError as error:
            failure, status, code, asked_s = error, NO_ANSWER, "", None
        else:
            answered = _object(answer)
            if answer.is_success:
                return answered
            failure = SmokeFailed(f"{step}: HTTP {answer.status_code} {answer.text[:500]}")
            status, code = answer.status_code, str(answered.get("code", ""))
            asked_s = retry_after_s(answer.headers.get("Retry-After"))
        again = verdict(status, code)
        if again is RetryVerdict.FINAL or (again is RetryVerdict.UNKNOWN and not repeatable):
            raise failure
        wait_s = tries.next_wait_s(asked_s)
        if wait_s is None:
            raise failure
        await asyncio.sleep(wait_s)


def _object(answer: httpx.Response) -> dict[str, Any]:
    try:
        answered = answer.json()
    except ValueError:
        return {}
    return answered if isinstance(answered, dict) else {}

"""The ways media take: WebRTC made impossible, the link cut, the SFU started again; what was seen and heard meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from tests.bench.figures import Figure, pairs, percentile
from tests.bench.stack import Live
from tests.net.coded import Seen, account, coded, decode
from tests.net.hearing import heard, lines
from tests.net.stack import Stack, stack
from tests.net.world import NEAR, World
from tests.servers.nginx_rtmp import NginxRtmp
from tests.servers.puller import Puller, Received
from tests.viewer import Viewer, join_token

PATTERN = {"engine": "pattern"}
_LEAD_S = 6.0


class Watcher(Puller):
    """Pulls from the RTMP server and notes when each picture and each sound came, on the monotonic clock."""

    def __init__(self, url: str) -> None:
        self.pictures_at: list[float] = []
        self.sounds_at: list[float] = []
        super().__init__(url)

    def keep(self, frame: Any) -> None:
        super().keep(frame)
        (self.sounds_at if hasattr(frame, "samples") else self.pictures_at).append(time.monotonic())

    def speaks_at(self) -> float | None:
        """When a sound that is loud first came."""
        return next(
            (at for at, (_, block) in zip(self.sounds_at, self.sound, strict=False) if np.abs(block).max() > 0.05), None
        )


def pieces(received: Received) -> list[Seen]:
    """The pieces of coded speech in a stream, by stream time."""
    found: list[Seen] = []
    run: list[np.ndarray] = []
    begun = end = 0.0
    for at, block in [*received.sound, (float("inf"), np.zeros(0, np.float32))]:
        if run and abs(at - end) > 0.05:
            wave = np.concatenate(run)
            wave = wave[: len(wave) // 3 * 3].reshape(-1, 3).mean(axis=1)
            found += decode(begun, (32767 * np.clip(wave, -1, 1)).astype(np.int16))
            run = []
        if not run:
            begun = at
        run.append(block)
        end = at + len(block) / 48_000
    return found


def stream_skews(received: Received) -> list[float]:
    """Milliseconds from each burst's sound to its picture, by stream time."""
    try:
        onsets = received.onsets()
    except (AssertionError, IndexError):  # a stream with a hole: each run would need its own
        onsets = [piece.at for piece in pieces(received) if piece.number % 10 == 0]
    return [abs(1000 * (white - onset)) for onset, white in pairs(onsets, received.whites(), 0.5)]


@asynccontextmanager
async def rtmp_server() -> AsyncIterator[NginxRtmp]:
    """An nginx that keeps what it is sent."""
    server = NginxRtmp(NEAR)
    try:
        await server.start()
        yield server
    finally:
        await server.aclose()


async def wait(seconds: float, *conditions: Any) -> None:
    """Polls until all hold, or for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not all(condition() for condition in conditions):  # noqa: ASYNC110
        await asyncio.sleep(0.02)


def longest_without(times: Sequence[float], begun: float, ended: float) -> float:
    """The longest time without a picture, seconds."""
    inside = [begun, *sorted(t for t in times if begun <= t <= ended), ended]
    return float(np.diff(inside).max())


async def finished(live: Live, within_s: float) -> bool:
    """Whether all that was sent is spoken."""
    path = f"/session/{live.started['session_id']}"
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        reported = (await live.demo.http.get(path)).json()
        if reported["playback"]["buffered_s"] == 0 and reported["state"] == "ready":
            return True
        await asyncio.sleep(0.25)
    return False


async def to_rtmp(world: World, udp_only: bool = False, seconds: int = 30, stay_s: float = 6.0) -> list[dict[str, Any]]:
    """WebRTC made impossible mid-sentence: to RTMP, and back once it is possible again after `stay_s` of the stream."""
    async with rtmp_server() as server, stack(world) as running:
        url = server.url(app="kept")
        watcher = Watcher(url)
        async with running.live(rtmp_url=url, **PATTERN) as live:
            await asyncio.sleep(2)
            begun = time.monotonic()
            sending = asyncio.create_task(live.send(coded(seconds)))
            await asyncio.sleep(min(_LEAD_S, seconds / 4))
            if udp_only:
                await world.block()
            else:
                await running.make_webrtc_impossible()
            broken = time.monotonic()
            await wait(20, lambda: watcher.pictures_at, watcher.speaks_at)
            seen_after = watcher.pictures_at[0] - broken if watcher.pictures_at else 99.0
            spoken = watcher.speaks_at()
            await asyncio.sleep(stay_s)
            await world.drop()
            opened = time.monotonic()
            viewer = live.viewer
            await wait(30, lambda: [at for at, *_ in viewer.video if at > opened + 0.2])
            back = next((at for at, *_ in viewer.video if at > opened + 0.2), opened + 99)
            await sending
            await finished(live, 20)
            await asyncio.sleep(2)
            transport = (await live.demo.http.get(f"/session/{live.started['session_id']}")).json()["transport"]
        watcher.close()
        pushes = [await server.kept(number) for number in range(len(list(server.files())))]
    streamed = [piece for push in pushes for piece in pieces(push)]
    reported = account([*heard(viewer, begun), *streamed], seconds)
    skews = [skew for push in pushes for skew in stream_skews(push)]
    dark = longest_without([*watcher.pictures_at, *(at for at, *_ in viewer.video)], opened, back + 2)
    how = "UDP blocked" if udp_only else "WebRTC impossible"
    return lines(
        Figure(f"{how}: picture at the RTMP server", seen_after, "s", 3),
        Figure(f"{how}: speech at the RTMP server", spoken - broken if spoken else 99.0, "s", 3),
        Figure(f"{how}: speech lost", reported.lost_ms, "ms", 0, note=f"pieces {reported.lost}"),
        Figure(
            f"{how}: speech heard twice, room and stream together",
            reported.doubled_ms,
            "ms",
            note=f"{reported.doubled}",
        ),
        Figure(f"{how}: skew in the stream, p95", percentile(skews, 95), "ms", 40, note=f"{len(skews)} bursts"),
        Figure(f"{how}: possible again to picture in the room", back - opened, "s", 10, note=str(transport)),
        Figure(f"{how}: on the way back, longest without a picture anywhere", dark, "s", 1),
    )


async def to_ingress(world: World, seconds: int = 40) -> list[dict[str, Any]]:
    """The same where LiveKit has Ingress: the avatar comes back to its own room by RTMP, under its own identity."""
    async with stack(world, ingress=True) as running:
        figures = await _by_ingress(running, seconds)
        left = await running.ingresses()
    return lines(*figures, Figure("ingress: ingresses left", left, "", 0))


async def _by_ingress(running: Stack, seconds: int) -> list[Figure]:
    async with running.live(**PATTERN, speaker="somebody") as live:
        viewer, identity = live.viewer, live.started["avatar_identity"]
        await asyncio.sleep(2)
        begun = time.monotonic()
        sending = asyncio.create_task(live.send(coded(seconds)))
        await asyncio.sleep(_LEAD_S)
        await running.make_webrtc_impossible()
        broken = time.monotonic()
        await asyncio.sleep(1)
        await wait(20, lambda: _came(viewer, broken + 1), lambda: list(heard(viewer, broken + 1)))
        seen = _came(viewer, broken + 1) or broken + 99
        spoken = min((piece.at for piece in heard(viewer, broken + 1)), default=broken + 99)
        await asyncio.sleep(8)
        present = await running.participant(live.started["room"], identity)
        ingressed = time.monotonic()
        await running.world.drop()
        opened = time.monotonic()
        await wait(30, lambda: _tracks(viewer, identity) >= 6)
        joined = time.monotonic()
        await wait(10, lambda: viewer.video[-1][0] > joined)
        back = viewer.video[-1][0] - opened if viewer.video[-1][0] > joined else 99.0
        await sending
        spoke = await finished(live, 30)
        await asyncio.sleep(3)
        again = await running.participant(live.started["room"], identity)
        reported = account(heard(viewer, begun), seconds)
        times = [at for at, *_ in viewer.video]
        onsets, whites = viewer.onsets(seen + 2), viewer.whites(seen + 2)
        skews = [abs(1000 * (w - s)) for s, w in pairs(onsets, whites, 0.5) if s < ingressed]
        dark = longest_without(times, opened, min(opened + 20, times[-1]))
        made = await running.ingresses()
    return [
        Figure("ingress: the avatar seen in its room again", seen - broken, "s", 6),
        Figure("ingress: the avatar heard in its room again", spoken - broken, "s", 6, note=str(present)),
        Figure("ingress: speech lost", reported.lost_ms, "ms", 0, note=f"pieces {reported.lost}; all spoken {spoke}"),
        Figure("ingress: speech heard twice", reported.doubled_ms, "ms", note=f"pieces {reported.doubled}"),
        Figure("ingress: skew in the room meanwhile, p95", percentile(skews, 95), "ms", note=f"{len(skews)} bursts"),
        Figure("ingress: possible again to picture by WebRTC", back, "s", 10),
        Figure("ingress: on the way back, longest without a picture", dark, "s", 1, note=str(again)),
        Figure("ingress: ingresses while the session ran", made, "", 1),
    ]


def _came(viewer: Viewer, since: float) -> float | None:
    return next((at for at, *_ in list(viewer.video) if at > since), None)


def _tracks(viewer: Viewer, identity: str) -> int:
    return sum(who == identity for who in viewer.owners.values())


async def cut(world: World, length_s: float = 10.0, seconds: int = 20) -> list[dict[str, Any]]:
    """The link between agent and SFU cut for a while mid-sentence, with no other way out."""
    async with stack(world) as running, running.live(**PATTERN) as live:
        await asyncio.sleep(2)
        begun = time.monotonic()
        sending = asyncio.create_task(live.send(coded(seconds)))
        await asyncio.sleep(_LEAD_S)
        await running.make_webrtc_impossible()
        broken = time.monotonic()
        await asyncio.sleep(length_s)
        await world.drop()
        opened = time.monotonic()
        viewer = live.viewer
        await wait(60, lambda: (_came(viewer, opened) or 0) > 0)
        back = (_came(viewer, opened) or opened + 99) - opened
        await sending
        spoke = await finished(live, length_s + 40)
        await asyncio.sleep(2)
        reported = account(heard(viewer, begun), seconds)
        transport = (await live.demo.http.get(f"/session/{live.started['session_id']}")).json()["transport"]
        dark = longest_without([at for at, *_ in viewer.video], broken, opened + back + 1)
    name = f"link cut for {length_s:g} s"
    note = f"longest without a picture {dark:.1f} s; {transport['changes']} changes, now {transport['rung']}"
    return lines(
        Figure(f"{name}: from its end to a picture", back, "s", note=note),
        Figure(f"{name}: speech lost", reported.lost_ms, "ms", note=f"pieces {reported.lost}; all spoken: {spoke}"),
        Figure(f"{name}: speech heard twice", reported.doubled_ms, "ms", note=f"pieces {reported.doubled}"),
        Figure(f"{name}: longest silence within speech", reported.longest_gap_s, "s"),
    )


async def sfu_restart(world: World, seconds: int = 20) -> list[dict[str, Any]]:
    """The SFU killed mid-sentence and started again; a viewer that joins anew sees and hears the rest."""
    async with stack(world) as running, running.live(**PATTERN) as live:
        await asyncio.sleep(2)
        begun = time.monotonic()
        sending = asyncio.create_task(live.send(coded(seconds)))
        await asyncio.sleep(_LEAD_S)
        assert running.server.child.pid is not None
        os.kill(running.server.child.pid, signal.SIGKILL)
        await running.server.child.ended()
        await asyncio.sleep(1)
        await running.server.start()
        up = time.monotonic()
        second = await Viewer().join(running.access.url, join_token(running.access, live.started["room"], "second"))
        try:
            await wait(60, lambda: second.video)
            back = (second.video[0][0] - up) if second.video else 99.0
            await sending
            spoke = await finished(live, 60)
            await asyncio.sleep(2)
            reported = account([*heard(live.viewer, begun), *heard(second)], seconds)
        finally:
            await second.leave()
    return lines(
        Figure("SFU killed and started again: from its start to a picture", back, "s"),
        Figure("SFU killed: speech lost", reported.lost_ms, "ms", note=f"pieces {reported.lost}; all spoken: {spoke}"),
    )

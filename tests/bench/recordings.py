"""A recorded session that is interrupted, falls back to RTMP and loses its agent: what its film has of what was heard."""

from __future__ import annotations

import asyncio
import io
import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import Coroutine, Iterable
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np

from tests.bench.figures import Figure, pairs, percentile
from tests.bench.reliability_failover import PATTERN, Watcher, finished, pieces, rtmp_server, wait
from tests.bench.stack import Live
from tests.net.coded import RATE, Seen, coded, decode, strand
from tests.net.hearing import lines, smoothness
from tests.net.stack import Stack, stack
from tests.net.world import World
from tests.servers.nginx_rtmp import NginxRtmp
from tests.servers.puller import Received

_UTTERANCE_S = 10
_TAIL_S = 0.5
"""Longer than any pause in what is said: after it the viewer has heard the end."""
_COPY_EVERY_S = 15
_RTMP_S = 6
"""How long the session stays on RTMP before WebRTC works again."""
_SAME_S = 8.0
"""A piece that comes again within this is the same one: heard in two places, or said again. Numbers repeat after 51 s."""


async def recorded(world: World, seconds: int = 300, interruptions: int = 6) -> list[dict[str, Any]]:
    """So long, with so many interruptions, one fallback to RTMP and one agent killed."""
    with TemporaryDirectory() as folder:
        async with rtmp_server() as server, stack(world, agents=2, RECORDING_DIR=folder) as running:
            return await _session(running, server, seconds, interruptions)


async def _session(running: Stack, server: NginxRtmp, seconds: int, interruptions: int) -> list[dict[str, Any]]:
    watcher = Watcher(url := server.url(app="kept"))
    async with running.live(rtmp_url=url, record=True, **PATTERN) as live:
        begun, copies = time.monotonic(), _Copies(live)
        happens = [
            _at(begun + seconds / 4, _fall_back(running, watcher)),
            _at(begun + seconds * 5 / 8, _kill(running)),
            copies.take(),
        ]
        happening = [asyncio.create_task(each) for each in happens]
        await _talk(live, begun, seconds, interruptions)
        await asyncio.gather(*happening[:2])
        happening[2].cancel()
        spoke, ended = await finished(live, 30), time.monotonic()
        await wait(10, lambda: _quiet_s(live) > _TAIL_S)
        state, film = await _stopped(live)
        rate, dark = smoothness(live.viewer, begun, ended)
        in_room, by_voice = _heard(live, begun)
    watcher.close()
    streamed = [piece for push in range(len(server.files())) for piece in _heard_by(watcher, await server.kept(push))]
    filmed, skews = _filmed(film)
    lost, unheard = _missing([*in_room, *streamed], filmed), _missing(by_voice, filmed)
    note = f"{state['parts']} parts, {state['seconds']:.0f} s, {state['bytes'] / 1e6:.1f} MB; all spoken: {spoke}"
    return lines(
        Figure("film: bursts", len(skews), "", note=note),
        Figure("film: skew, median", abs(float(np.median(skews))), "ms", 20),
        Figure("film: skew, p95", percentile([abs(skew) for skew in skews], 95), "ms", 40),
        Figure("film: heard from the avatar and not in it", 100.0 * len(lost), "ms", 0, note=f"pieces {lost}"),
        Figure("film: heard from the stand-in voice and not in it", 100.0 * len(unheard), "ms", 0, note=f"{unheard}"),
        Figure("film: copies taken meanwhile that did not play", copies.broken, "", 0, note=f"{copies.played} played"),
        Figure("film: frames left out", state["dropped_frames"], "", note=f"{state['lost_fragments']} fragments lost"),
        Figure("room: pictures a second, median", rate, "/s", note=f"longest without one {dark:.1f} s"),
    )


class _Copies:
    """Fetches the film again and again while it grows, and plays what there is."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self.played = self.broken = 0

    async def take(self) -> None:
        while True:
            await asyncio.sleep(_COPY_EVERY_S)
            answer = await self._live.demo.http.get(f"/session/{self._live.started['session_id']}/recording.mp4")
            try:
                with av.open(io.BytesIO(answer.content)) as container:
                    shown = sum(1 for packet in container.demux(video=0) if packet.size)
                self.played += shown > 0
            except av.FFmpegError:
                self.broken += 1


async def _at(moment: float, what: Coroutine[Any, Any, None]) -> None:
    try:
        await asyncio.sleep(moment - time.monotonic())
    except asyncio.CancelledError:
        what.close()
        raise
    await what


async def _fall_back(running: Stack, watcher: Watcher) -> None:
    await running.make_webrtc_impossible()
    await wait(20, lambda: watcher.pictures_at, watcher.speaks_at)
    await asyncio.sleep(_RTMP_S)
    await running.world.drop()


async def _kill(running: Stack) -> None:
    from tests.bench.reliability_agents import _serving

    child = running.agents[await _serving(running)]
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)


async def _talk(live: Live, begun: float, seconds: int, interruptions: int) -> None:
    """Utterances of ten seconds; some of them are interrupted after four."""
    count = seconds // _UTTERANCE_S
    broken = {round((k + 0.7) * count / interruptions) for k in range(interruptions)}
    for number in range(count):
        await live.say("audio.start")
        said = coded(_UTTERANCE_S - 1, 10 * _UTTERANCE_S * number)
        if number in broken:
            await live.send(said[: 4 * RATE])
            await live.interrupt()
        else:
            await live.send(said)
            await live.say("audio.end")
        await asyncio.sleep(max(0.0, begun + (number + 1) * _UTTERANCE_S - time.monotonic()))


async def _stopped(live: Live) -> tuple[dict[str, Any], bytes]:
    address = f"/session/{live.started['session_id']}/recording"
    state = (await live.demo.http.post(address, json={"state": "stopped"})).raise_for_status().json()
    return state, (await live.demo.http.get(f"{address}.mp4")).raise_for_status().content


def _heard(live: Live, begun: float) -> tuple[list[Seen], list[Seen]]:
    """What came from the avatar, and from the stand-in voice."""
    of: dict[bool, list[Seen]] = {True: [], False: []}
    for track, blocks in list(live.viewer.strands.items()):
        found = [piece for at, pcm in strand(blocks) for piece in decode(at, pcm) if piece.at >= begun]
        of[live.viewer.owners.get(track, "").startswith("voice-")] += found
    return of[False], of[True]


def _heard_by(watcher: Watcher, kept: Received) -> list[Seen]:
    """The pieces of a push that was kept, at the times at which the watcher heard them; its stream has a time of its own."""
    watched, found = _watched(watcher), pieces(kept)
    shifts = [heard.at - piece.at for heard in watched for piece in found if piece.number == heard.number]
    if not shifts:
        return []  # no one heard it
    often = Counter(round(shift) for shift in shifts).most_common(1)[0][0]
    shift = float(np.median([shift for shift in shifts if abs(shift - often) <= 1]))
    return [Seen(piece.number, piece.at + shift, piece.ms) for piece in found]


def _watched(watcher: Watcher) -> list[Seen]:
    """The pieces that the watcher heard, by its own clock: each pull has another stream's time."""
    found = []
    for first, last in itertools.pairwise([*watcher.begun, len(watcher.sound)]):
        sound, came = watcher.sound[first:last], watcher.sounds_at[first:last]
        if came:
            late = float(np.median([came_at - at for came_at, (at, _) in zip(came, sound, strict=False)]))
            found += [Seen(piece.number, piece.at + late, piece.ms) for piece in pieces(Received(sound=sound))]
    return found


def _quiet_s(live: Live) -> float:
    """Seconds since the viewer heard something loud."""
    return time.monotonic() - max(live.viewer.heard(0.0), default=0.0)


def _filmed(film: bytes) -> tuple[list[Seen], list[float]]:
    """The pieces in a film, and how much later each flash is than its burst (ms)."""
    times, whites, resampler, blocks = [], [], av.AudioResampler(format="s16", layout="mono", rate=RATE), []
    with av.open(io.BytesIO(film)) as container:
        for frame in container.decode(video=0):
            picture = frame.to_ndarray(format="gray")
            height, width = picture.shape
            times.append(float(frame.time))
            whites.append(picture[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4].mean() > 160)
    with av.open(io.BytesIO(film)) as container:
        for sound in container.decode(audio=0):
            blocks += [each.to_ndarray()[0] for each in resampler.resample(sound)]
    pcm = np.concatenate(blocks)
    rises = [times[i] for i in range(1, len(times)) if whites[i] and not whites[i - 1]]
    loud = np.flatnonzero(np.abs(pcm.astype(np.int32)) > 3000)
    onsets = [float(i) / RATE for i in loud[np.insert(np.diff(loud) > RATE // 10, 0, True)]]
    return decode(0.0, pcm), [1000 * (white - onset) for onset, white in pairs(onsets, rises, 0.5)]


def _counts(seen: Iterable[Seen]) -> Counter[int]:
    """How often each piece was said."""
    counts: Counter[int] = Counter()
    last: dict[int, float] = {}
    for piece in sorted(seen, key=lambda piece: piece.at):
        counts[piece.number] += piece.at - last.get(piece.number, -1e9) > _SAME_S
        last[piece.number] = piece.at
    return counts


def _missing(heard: Iterable[Seen], filmed: Iterable[Seen]) -> list[int]:
    """Numbers of pieces that were heard more often than they are in the film."""
    return sorted((_counts(piece for piece in heard if piece.ms >= 60) - _counts(filmed)).elements())

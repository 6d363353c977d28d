"""Hosts that lie, stall, drip or flood. Every fetch ends with a code, in time, holding a bounded number of bytes."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from musetalk_agent.avatars.library import AvatarLibrary
from musetalk_agent.errors import AvatarEmpty, AvatarError, AvatarFetchFailed, AvatarTooLarge, AvatarUndecodable
from musetalk_agent.protocol.http import AvatarSource, Picture
from tests.musetalk_agent.avatars.clips import frames_zip, moving, video
from tests.musetalk_agent.avatars.hostile.conftest import PATIENT
from tests.musetalk_agent.avatars.hosts import Reply, Write, hosting, ok, redirect
from tests.waiting import NEVER_S, until

HEAD = b"HTTP/1.1 200 OK\r\n"
ZIP = frames_zip(moving(2, 96))


async def drip(write: Write) -> None:
    await write(HEAD + b"\r\n")
    while True:
        await write(b"P")
        await asyncio.sleep(0.05)


async def drip_headers(write: Write) -> None:
    await write(HEAD)
    while True:
        await write(b"X-Slow: 1\r\n")
        await asyncio.sleep(0.2)


async def silence(write: Write) -> None:
    await asyncio.Event().wait()


async def stall(write: Write) -> None:
    await write(HEAD + b"Content-Length: 100000\r\n\r\nPK\x03\x04")
    await asyncio.Event().wait()


async def flood(write: Write) -> None:
    await write(HEAD + b"\r\nPK\x03\x04")
    while True:
        await write(bytes(1 << 20))


async def endless_headers(write: Write) -> None:
    await write(HEAD)
    while True:
        await write(b"X-Long: " + b"a" * 8000 + b"\r\n")


async def hang_up(write: Write) -> None:
    raise ConnectionResetError


CASES: list[tuple[str, Reply, type[AvatarError]]] = [
    ("404", b"HTTP/1.1 404 No\r\nContent-Length: 4\r\n\r\ngone", AvatarFetchFailed),
    ("500", b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", AvatarFetchFailed),
    ("204", b"HTTP/1.1 204 Nothing\r\n\r\n", AvatarFetchFailed),
    ("206", b"HTTP/1.1 206 Part\r\nContent-Length: 2\r\n\r\nPK", AvatarFetchFailed),
    ("redirect without a place", b"HTTP/1.1 302 Where\r\nContent-Length: 0\r\n\r\n", AvatarFetchFailed),
    ("redirect loop", redirect("/a"), AvatarFetchFailed),
    ("not HTTP", b"SSH-2.0-OpenSSH_9.2\r\n\r\n", AvatarFetchFailed),
    ("nothing at all", b"", AvatarFetchFailed),
    ("hangs up", hang_up, AvatarFetchFailed),
    ("promises 50 GB", HEAD + b"Content-Length: 53687091200\r\n\r\nPK", AvatarTooLarge),
    ("a length that is no number", HEAD + b"Content-Length: ten\r\n\r\nPK", AvatarFetchFailed),
    ("two lengths", HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nPKx", AvatarFetchFailed),
    ("a negative length", HEAD + b"Content-Length: -1\r\n\r\nPK", AvatarFetchFailed),
    ("promises more than it sends", HEAD + b"Content-Length: %d\r\n\r\n" % (len(ZIP) + 100) + ZIP, AvatarFetchFailed),
    ("a broken chunk", HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nPK", AvatarFetchFailed),
    ("chunks that do not end", HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nPK\x03\x04\r\n", AvatarFetchFailed),
    ("gzip that was not asked for", ok(gzip.compress(ZIP), "Content-Encoding: gzip"), AvatarFetchFailed),
    ("an encoding nobody knows", ok(ZIP, "Content-Encoding: zstd, br"), AvatarFetchFailed),
    ("floods", flood, AvatarTooLarge),
    ("headers without end", endless_headers, AvatarFetchFailed),
    ("an empty file", ok(b""), AvatarEmpty),
    ("a page", ok(b"<html><body>Sign in</body></html>", "Content-Type: application/zip"), AvatarUndecodable),
    ("a video instead of a zip", ok(video(moving(2, 96))), AvatarUndecodable),
    ("a playlist", ok(b"#EXTM3U\nfile:///etc/passwd\n"), AvatarUndecodable),
]
HANGING: list[tuple[str, Reply, str, dict[str, float]]] = [
    ("drips for ever", drip, "16384 bytes per second are needed", {"fetch_grace_seconds": 0.5}),
    ("drips headers for ever", drip_headers, "did not deliver the file within 3 s", {"fetch_seconds": 3.0}),
    ("says nothing", silence, "", {"fetch_silence_seconds": 1.0}),
    ("stalls in the middle", stall, "", {"fetch_silence_seconds": 1.0}),
]
"""Hosts that never come to an end, and the deadline that catches each; the others are as long as ever."""


@pytest.mark.parametrize(("reply", "error"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
async def test_refused_in_time(library: AvatarLibrary, reply: Reply, error: type[AvatarError]) -> None:
    async with asyncio.timeout(NEVER_S), hosting() as host:
        host.replies["/a"] = reply
        with pytest.raises(error) as caught:
            await library.prepare(AvatarSource(frames_zip_url=host.url("/a?secret=sesame")), Picture())
    assert caught.value.field == "frames_zip_url" and caught.value.status == 422
    assert "sesame" not in caught.value.detail


@pytest.mark.parametrize(
    ("reply", "words", "limits"),
    [(reply, words, replace(PATIENT, **short)) for _, reply, words, short in HANGING],
    ids=[case[0] for case in HANGING],
)
async def test_a_host_that_hangs_is_left(library: AvatarLibrary, reply: Reply, words: str) -> None:
    async with asyncio.timeout(NEVER_S), hosting() as host:
        host.replies["/a"] = reply
        with pytest.raises(AvatarFetchFailed) as caught:
            await library.prepare(AvatarSource(frames_zip_url=host.url("/a?secret=sesame")), Picture())
    assert words in caught.value.detail and "sesame" not in caught.value.detail


async def test_nobody_listens(library: AvatarLibrary) -> None:
    async with hosting() as host:
        url = host.url()
    with pytest.raises(AvatarFetchFailed, match="cannot be connected to"):
        await library.prepare(AvatarSource(idle_video_url=url), Picture())


async def test_a_zip_where_a_video_belongs(library: AvatarLibrary) -> None:
    async with hosting() as host:
        host.replies["/a"] = ok(ZIP)
        with pytest.raises(AvatarUndecodable, match="a zip archive") as caught:
            await library.prepare(AvatarSource(idle_video_url=host.url()), Picture())
    assert caught.value.field == "idle_video_url"


@pytest.mark.parametrize("write", [flood, drip])
async def test_leaving_a_hostile_host_leaves_nothing(
    library: AvatarLibrary, write: Callable[[Write], Awaitable[None]]
) -> None:
    async with hosting() as host:
        host.replies["/a"] = write
        task = asyncio.create_task(library.prepare(AvatarSource(frames_zip_url=host.url()), Picture()))
        await until(lambda: host.asked)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not [t for t in asyncio.all_tasks() if t.get_name().startswith("avatar ")])
        await until(lambda: not host.connections)

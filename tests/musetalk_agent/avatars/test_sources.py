"""Bytes of a clip as they come: looked at, counted, hashed, and kept only when they are whole."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import ssl
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musetalk_agent.avatars.cache import AvatarCache
from musetalk_agent.avatars.library import AvatarLibrary
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.avatars.media_probe import PICTURES, SNIFF_BYTES, MediaKind
from musetalk_agent.avatars.sources import Fetcher, SourceWriter
from musetalk_agent.errors import (
    AvatarEmpty,
    AvatarError,
    AvatarFetchFailed,
    AvatarTooLarge,
    AvatarUndecodable,
    AvatarUrlForbidden,
)
from musetalk_agent.protocol.http import AvatarSource, Picture
from tests.waiting import NEVER_S

from .clips import flat, frames_zip, moving, video
from .hosts import hosting, ok, redirect


async def fetched(fetcher: Fetcher, url: str) -> bytes:
    got = bytearray()

    async def write(piece: bytes) -> None:
        got.extend(piece)

    await fetcher.fetch(url, write)
    return bytes(got)


def private(limits: AvatarLimits | None = None) -> Fetcher:
    return Fetcher(limits or AvatarLimits(), allow_private=True)


async def test_a_file_comes_whole() -> None:
    body = bytes(range(256)) * 5000
    async with hosting() as host:
        host.replies["/a"] = ok(body)
        assert await fetched(private(), host.url("/a?signature=x%2Fy")) == body
        assert host.asked == [("GET /a?signature=x%2Fy HTTP/1.1", f"127.0.0.1:{host.port}")]


async def test_chunked_and_unmeasured_answers() -> None:
    async with hosting() as host:
        host.replies["/c"] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        host.replies["/u"] = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabcde"
        assert await fetched(private(), host.url("/c")) == b"abcde"
        assert await fetched(private(), host.url("/u")) == b"abcde"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_followed(status: int) -> None:
    async with hosting() as host:
        host.replies |= {"/a": redirect("/b?c=1", status), "/b": ok(b"here")}
        assert await fetched(private(), host.url()) == b"here"


async def test_five_redirects_and_no_more() -> None:
    async with hosting() as host:
        host.replies |= {f"/{k}": redirect(f"/{k + 1}") for k in range(6)} | {"/5": ok(b"here")}
        assert await fetched(private(), host.url("/0")) == b"here"
        host.replies |= {"/5": redirect("/6"), "/6": ok(b"here")}
        with pytest.raises(AvatarFetchFailed, match="more than 5"):
            await fetched(private(), host.url("/0"))


async def test_the_name_is_asked_for_once_and_the_checked_address_is_connected_to() -> None:
    """DNS rebinding: the second answer would be another one, but nobody asks a second time."""
    asked: list[str] = []

    async def resolver(name: str, port: int) -> list[str]:
        asked.append(name)
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    async with hosting() as host:
        host.replies["/a"] = ok(b"here")
        fetcher = Fetcher(AvatarLimits(), allow_private=True, resolver=resolver)
        assert await fetched(fetcher, host.url(host="rebind.example")) == b"here"
        assert asked == ["rebind.example"]
        assert host.asked[0][1] == f"rebind.example:{host.port}"  # the name still goes into the Host header


async def test_a_name_that_turns_private_between_hops() -> None:
    async def resolver(name: str, port: int) -> list[str]:
        return ["127.0.0.1"] if name == "first.example" else ["169.254.169.254"]

    async with hosting() as host:
        host.replies["/a"] = redirect("http://second.example/latest/meta-data/")
        with pytest.raises(AvatarUrlForbidden, match=r"second\.example"):
            await fetched(
                Fetcher(AvatarLimits(), allow_private=True, resolver=resolver), host.url(host="first.example")
            )


async def test_one_private_address_among_public_ones_is_enough_to_refuse() -> None:
    async def resolver(name: str, port: int) -> list[str]:
        return ["93.184.216.34", "10.0.0.7"]

    with pytest.raises(AvatarUrlForbidden):
        await fetched(Fetcher(AvatarLimits(), resolver=resolver), "http://mixed.example/a")


async def test_the_next_address_is_tried_when_one_does_not_answer() -> None:
    async def resolver(name: str, port: int) -> list[str]:
        return ["127.0.0.9", "127.0.0.1"]

    async with hosting() as host:
        host.replies["/a"] = ok(b"here")
        fetcher = Fetcher(AvatarLimits(), allow_private=True, resolver=resolver)
        assert await fetched(fetcher, host.url(host="two.example")) == b"here"


async def test_https_is_verified_against_the_name(tmp_path: Path) -> None:
    """The certificate is for `tls.example`, the connection goes to 127.0.0.1: the name decides."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=tls.example"
    await asyncio.to_thread(
        subprocess.run,
        [*command.split(), "-addext", "subjectAltName=DNS:tls.example", "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(certificate, key)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ok(b"secret"))
        await writer.drain()
        writer.close()

    async def resolver(name: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=served)
    port = server.sockets[0].getsockname()[1]
    trust = ssl.create_default_context(cafile=str(certificate))
    fetcher = Fetcher(AvatarLimits(), allow_private=True, resolver=resolver, ssl_context=trust)
    try:
        assert await fetched(fetcher, f"https://tls.example:{port}/a") == b"secret"
        with pytest.raises(AvatarFetchFailed):
            await fetched(fetcher, f"https://other.example:{port}/a")
    finally:
        server.close()


async def test_no_proxy_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with hosting() as host:
        host.replies["/a"] = ok(b"here")
        assert await fetched(private(), host.url()) == b"here"


async def test_cancelling_closes_the_connection() -> None:
    async with hosting() as host:
        begun, gone = asyncio.Event(), asyncio.Event()

        async def endless(write: object) -> None:
            begun.set()
            try:
                while True:
                    await write(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(1 << 16))  # type: ignore[operator]
            finally:
                gone.set()

        host.replies["/a"] = endless
        task = asyncio.create_task(fetched(private(), host.url()))
        await asyncio.wait_for(begun.wait(), NEVER_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(gone.wait(), NEVER_S)


async def test_from_address_to_bundle(library: AvatarLibrary, tmp_path: Path) -> None:
    async with hosting() as host:
        host.replies |= {"/z": ok(frames_zip(moving(5, 128))), "/v": ok(video(moving(7, 128)))}
        both = AvatarSource(frames_zip_url=host.url("/z"), idle_video_url=host.url("/v"))
        assert len(await library.prepare(both, Picture())) == 5  # the zip wins
        assert len(await library.prepare(AvatarSource(idle_video_url=host.url("/v")), Picture())) == 7
        again = await library.prepare(AvatarSource(frames_zip_url=host.url("/z")), Picture())
        assert again.report.cached
        by_id = AvatarSource(avatar_id=again.report.avatar_id, idle_video_url=host.url("/nowhere"))
        assert len(await library.prepare(by_id, Picture())) == 5  # the id wins
    assert not list((tmp_path / "cache" / "parts").iterdir())


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        pytest.param(None, "avatar_fetch_failed", id="nothing there"),
        pytest.param(ok(b"<html>Not found</html>"), "avatar_undecodable", id="a page"),
        pytest.param(ok(frames_zip([flat(), flat(127, 64, 64)])), "avatar_sizes_differ", id="of two sizes"),
        pytest.param(ok(frames_zip([flat()] * 3)), "no_face_in_avatar", id="without a face"),
    ],
)
async def test_the_video_is_tried_when_the_zip_cannot_be_used(
    library: AvatarLibrary, reply: bytes | None, code: str
) -> None:
    async with hosting() as host:
        host.replies |= {"/v": ok(video(moving(30, 128)))} | ({"/z": reply} if reply else {})
        both = AvatarSource(frames_zip_url=host.url("/z"), idle_video_url=host.url("/v"))
        for cached in (False, True):
            report = (await library.prepare(both, Picture())).report
            assert (report.frames, report.cached) == (30, cached)
            reported = [warning for warning in report.warnings if warning.code == "frames_zip_failed"]
            assert len(reported) == 1 and code in reported[0].message
        alone = await library.prepare(AvatarSource(idle_video_url=host.url("/v")), Picture())
        assert alone.report.cached and "frames_zip_failed" not in [w.code for w in alone.report.warnings]


async def test_when_neither_can_be_used_both_reasons_are_reported(library: AvatarLibrary) -> None:
    async with hosting() as host:
        host.replies |= {"/v": ok(b"<html>No such film</html>"), "/z": ok(b"")}
        both = AvatarSource(frames_zip_url=host.url("/z"), idle_video_url=host.url("/v"))
        with pytest.raises(
            AvatarUndecodable, match=r"an HTML page.*The zip cannot be used either .avatar_empty."
        ) as caught:
            await library.prepare(both, Picture())
        assert caught.value.field == "idle_video_url"
        with pytest.raises(AvatarEmpty) as alone:
            await library.prepare(AvatarSource(frames_zip_url=host.url("/z")), Picture())
        assert alone.value.field == "frames_zip_url"


async def test_callers_who_come_together_fetch_once(library: AvatarLibrary) -> None:
    async with hosting() as host:
        host.replies["/z"] = ok(frames_zip(moving(3, 128)))
        source = AvatarSource(frames_zip_url=host.url("/z"))
        await asyncio.gather(*(library.prepare(source, Picture()) for _ in range(4)))
        assert len(host.asked) == 1


LIMIT = 3 << 20
LIMITS = replace(AvatarLimits(), source_bytes=LIMIT)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8
ACCEPTED = PICTURES | {MediaKind.ZIP}


def receiver(folder: Path, name: str = "the picture of the request") -> SourceWriter:
    return SourceWriter(AvatarCache(folder, 1 << 30), LIMITS, name, ACCEPTED)


async def received(folder: Path, pieces: list[bytes]) -> tuple[Path, str]:
    async with receiver(folder) as made:
        for piece in pieces:
            await made.write(piece)
        return await made.finish()


def left(folder: Path) -> list[str]:
    """Whatever lies in the cache's folders, but for their own names."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.parent != folder)


@settings(max_examples=25)
@given(st.lists(st.integers(0, 700), max_size=6))
def test_any_pieces_give_the_same_file_and_its_digest(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    places = sorted({0, len(PNG), *(min(cut, len(PNG)) for cut in cuts)})
    pieces = [PNG[a:b] for a, b in itertools.pairwise(places)]
    path, digest = asyncio.run(received(folder, pieces))
    assert digest == hashlib.sha256(PNG).hexdigest() == path.name
    assert path.read_bytes() == PNG and left(folder) == [f"sources/{digest}"]


async def test_a_file_larger_than_a_block_is_written_as_it_comes(tmp_path: Path) -> None:
    data = PNG + bytes((1 << 20) + 5)
    async with receiver(tmp_path) as made:
        await made.write(data)
        (part,) = (path for path in tmp_path.rglob("source"))
        assert part.stat().st_size == len(data), "it waits for no more"
        path, digest = await made.finish()
    assert path.stat().st_size == len(data) and digest == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(("extra", "passes"), [(0, True), (1, False)])
async def test_the_limit_is_the_last_byte_that_is_taken(tmp_path: Path, extra: int, passes: bool) -> None:
    pieces = [PNG, bytes(LIMIT - len(PNG) + extra)]
    if passes:
        await received(tmp_path, pieces)
        return
    with pytest.raises(AvatarTooLarge, match=f"^The picture of the request has more than {LIMIT} bytes") as caught:
        await received(tmp_path, pieces)
    assert caught.value.limit == LIMIT and left(tmp_path) == []


async def test_what_it_is_not_is_said_as_soon_as_it_can_be_known(tmp_path: Path) -> None:
    """After the first bytes, not after the whole of a large upload."""
    async with receiver(tmp_path) as made:
        await made.write(b"<html>" + bytes(SNIFF_BYTES - 7))
        with pytest.raises(AvatarUndecodable):
            await made.write(b"\0")


@pytest.mark.parametrize(
    ("data", "error", "reported"),
    [
        (b"", AvatarEmpty, "The picture of the request is empty (0 bytes)."),
        (b"<html></html>", AvatarUndecodable, "looks like an HTML page; expected is "),
        (b"OggS" + bytes(60), AvatarUndecodable, "Export the video as MP4 (H.264)."),
        (b"\x00\x00\x00\x18ftypmp42" + bytes(40), AvatarUndecodable, "looks like an MP4 or MOV video"),
    ],
)
async def test_what_is_not_accepted_is_named_with_what_is(
    tmp_path: Path, data: bytes, error: type[AvatarError], reported: str
) -> None:
    with pytest.raises(error) as caught:
        await received(tmp_path, [data] if data else [])
    assert reported in caught.value.detail and left(tmp_path) == []


async def test_all_that_is_accepted_is_listed(tmp_path: Path) -> None:
    with pytest.raises(AvatarUndecodable) as caught:
        await received(tmp_path, [b"text"])
    assert all(kind.value in caught.value.detail for kind in ACCEPTED) and " or " in caught.value.detail
    assert caught.value.value == MediaKind.TEXT.value


async def test_leaving_before_the_end_leaves_nothing(tmp_path: Path) -> None:
    async with receiver(tmp_path) as made:
        await made.write(PNG * 600)
    assert left(tmp_path) == []


async def test_being_cancelled_leaves_nothing(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def upload() -> None:
        async with receiver(tmp_path) as made:
            await made.write(PNG * 600)
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(upload())
    await begun.wait()
    assert left(tmp_path) != []
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert left(tmp_path) == []


async def test_two_of_the_same_bytes_at_once_are_one_source(tmp_path: Path) -> None:
    results = await asyncio.gather(*[received(tmp_path, [PNG]) for _ in range(4)])
    assert len(set(results)) == 1 and left(tmp_path) == [f"sources/{results[0][1]}"]


async def test_a_receiver_that_was_not_entered_says_so(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="not entered"):
        made = receiver(tmp_path)
        await made.write(PNG)
        await made.finish()

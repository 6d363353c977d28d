"""RTMP against a real nginx: what is pushed arrives whole and in step, and no fault of the server loses speech."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from musetalk_agent.clock import MonotonicClock
from musetalk_agent.publishers.rtmp.address import RtmpAddress, check_rtmp
from musetalk_agent.publishers.rtmp.connection import RtmpLink
from musetalk_agent.publishers.rtmp.sink import RtmpSink
from musetalk_agent.publishers.stream.sink import StreamOptions
from tests.musetalk_agent.publishers.feed import AHEAD_S, BLOCK, FPS, feed, picture, speech
from tests.servers.nginx_rtmp import NginxRtmp
from tests.servers.puller import RATE, Puller
from tests.waiting import NEVER_S, until


@pytest.fixture
async def nginx() -> AsyncIterator[NginxRtmp]:
    server = NginxRtmp()
    try:
        await server.start()
        yield server
    finally:
        await server.aclose()


@contextlib.asynccontextmanager
async def pushing(
    url: str, bitrate: int = 800_000, changed: Callable[[], None] = lambda: None, connect_s: float = NEVER_S
) -> AsyncIterator[RtmpSink]:
    sink = RtmpSink(StreamOptions(url, FPS, 256, 256, bitrate, await check_rtmp(url, True)), MonotonicClock(), changed)
    sink.start()
    try:
        if connect_s:
            await until(lambda: sink.state.connected, connect_s)
        yield sink
    finally:
        await sink.aclose()


@contextlib.contextmanager
def pulling(url: str) -> Iterator[Puller]:
    puller = Puller(url)
    try:
        yield puller
    finally:
        puller.close()


def place(part: np.ndarray, wave: np.ndarray) -> tuple[int, float]:
    """Where `part` lies in `wave`, and how well it correlates there."""
    size = 1 << (len(wave) + len(part)).bit_length()
    spectrum = np.fft.rfft(wave, size) * np.conj(np.fft.rfft(part, size))
    at = int(np.argmax(np.fft.irfft(spectrum, size)[: max(1, len(wave) - len(part) + 1)]))
    there = wave[at : at + len(part)]
    return at, float(np.corrcoef(there, part[: len(there)])[0, 1])


async def test_everything_arrives_whole_and_in_step(nginx: NginxRtmp) -> None:
    said = speech(4)
    flash = [picture(235), picture(16)]
    async with pushing(nginx.url(app="kept")) as sink:
        start = await feed(sink, 4 * FPS, said, lambda frame: flash[frame % FPS not in (5, 6, 7)])
        assert sink.state.delivered_at is not None and sink.state.delivered_at > start + 3
    received = await nginx.kept()
    assert sink.state.frames_sent == len(received.pictures) == 4 * FPS
    assert sink.state.dropped == sink.state.lost_audio == 0
    keys = received.keys()
    assert [round(b - a, 2) for a, b in itertools.pairwise(keys)] == [2.0]
    first, wave = received.wave()
    assert len(wave) >= len(said)
    for second in range(4):
        part = said[second * RATE : (second + 1) * RATE].astype(float)
        at, likeness = place(part, wave)
        assert likeness > 0.9, second
        # heard AHEAD_S after the picture that was offered with it; the first picture is the stream's beginning
        assert abs(first + at / RATE - second - AHEAD_S - received.pictures[0][0]) < 0.015, second
    whites = received.whites()
    assert len(whites) == 4
    for number, white in enumerate(whites):
        assert abs(white - received.pictures[0][0] - number - 5 / FPS) < 0.015


async def test_a_viewer_sees_flash_and_burst_in_step_also_after_silence(nginx: NginxRtmp) -> None:
    with pulling(nginx.url()) as puller:
        async with pushing(nginx.url()) as sink:
            white, black = picture(235), picture(16)
            burst = (10_000 * np.sin(2 * np.pi * 1000 * np.arange(BLOCK) / RATE)).astype(np.int16)
            start = time.monotonic()
            for frame in itertools.count():
                if frame % FPS == 0 and (len(puller.pictures) > FPS or frame > NEVER_S * FPS):
                    break  # it has seen a second of it, from the key frame on with which it joined
                at = start + frame / FPS
                if (frame + 1) % FPS in (5, 6, 7):  # sound is offered only where it is loud, a frame ahead
                    sink.offer_audio(at + 1 / FPS, burst)
                sink.offer_video(at, white if frame % FPS in (5, 6, 7) else black)
                await asyncio.sleep(max(0.0, at + 1 / FPS - time.monotonic()))
    whites, onsets = puller.whites(), puller.onsets()
    assert len(whites) >= 1
    assert max(min(abs(onset - white) for onset in onsets) for white in whites) < 0.015


async def test_a_server_that_dies_and_comes_back_misses_no_word(nginx: NginxRtmp) -> None:
    said = speech(4.6)
    grey = picture(90)

    async def fail(frame: int) -> None:
        if frame == FPS:
            await nginx.kill()
        elif frame == FPS + 15:
            await nginx.start()

    async with pushing(nginx.url(app="kept")) as sink:
        await feed(sink, 115, said, lambda frame: grey, fail)
        await until(lambda: sink.state.connected)
        assert sink.state.reconnects == 1 and sink.state.lost_audio == 0
    before, after = [(await nginx.kept(push)).wave()[1] for push in (0, 1)]
    wave = said.astype(float)
    tail, head = before[-RATE // 2 :], after[4096 : 4096 + RATE // 2]
    (ended, likeness), (begun, again) = place(tail, wave), place(head, wave)
    assert likeness > 0.9 and again > 0.9
    missing = (begun - 4096 - ended - len(tail)) / RATE
    assert -0.5 < missing < 0.05, "what lies between the two streams"
    at, likeness = place(wave[-RATE:], after)
    assert likeness > 0.9 and abs(len(wave) - RATE - begun - (at - 4096)) < 0.02 * RATE, "the rest is whole"


async def test_a_server_that_stops_reading_is_noticed_and_old_pictures_are_dropped(nginx: NginxRtmp) -> None:
    async with pushing(nginx.url()) as sink:
        rng = np.random.default_rng(1)
        noisy = [picture(0) for _ in range(3)]
        for one in noisy:
            one.i420[:] = rng.integers(0, 255, len(one.i420))
        longest, noticed = 0.0, False

        def watch(frame: int) -> None:
            nonlocal longest, noticed
            longest = max(longest, sink.state.queue_s)
            noticed = noticed or sink.state.error is not None

        await feed(sink, FPS // 2, speech(0.5), lambda frame: noisy[frame % 3], watch)
        nginx.freeze(signal.SIGSTOP)
        try:
            async with asyncio.timeout(NEVER_S):
                while not (noticed and sink.state.dropped):
                    await feed(sink, FPS // 2, speech(0.5), lambda frame: noisy[frame % 3], watch)
            assert longest < 3.5
            async with asyncio.timeout(NEVER_S):
                await sink.aclose()
        finally:
            nginx.freeze(signal.SIGCONT)


async def test_a_port_that_says_nothing_or_refuses_does_not_hold_up_the_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"rtmp://127.0.0.1:{silent.getsockname()[1]}/live/key"
        async with pushing(url, connect_s=0) as sink:
            with pytest.raises(AssertionError):
                await until(lambda: sink.state.connected, 0.5)
            async with asyncio.timeout(NEVER_S):
                await sink.aclose()
                await sink.aclose()
    reported = asyncio.Event()
    async with pushing(url, changed=reported.set, connect_s=0) as sink:
        await asyncio.wait_for(reported.wait(), NEVER_S)
        assert sink.state.error == "Connection refused" and not sink.state.connected
    for thread in [thread for thread in threading.enumerate() if thread.name == "rtmp-sink"]:
        await asyncio.to_thread(thread.join, NEVER_S)  # it says that it has ended just before it does
        assert not thread.is_alive()


async def test_quality_goes_down_and_up_in_a_running_stream(nginx: NginxRtmp) -> None:
    async with pushing(nginx.url(), bitrate=1_200_000) as sink:
        rng = np.random.default_rng(1)
        noisy = [picture(0) for _ in range(5)]
        for one in noisy:
            one.i420[: 256 * 256] = np.kron(rng.integers(40, 200, (64, 64)), np.ones((4, 4))).reshape(-1)
        sent: list[tuple[int, int]] = []

        async def watch(frame: int) -> None:
            if frame % 30 == 0:
                await until(lambda: sink.state.queue_s == 0)  # what was offered has been sent
                connection = sink._current
                assert connection is not None
                sent.append((connection.sent, sink.state.frames_sent))
            if frame == 30:
                sink.set_quality(bitrate=200_000, fps_divisor=2)

        await feed(sink, 61, None, lambda frame: noisy[frame % 5], watch)
        await sink.aclose()
        (a, b, c) = sent
        assert (c[0] - b[0]) < 0.6 * (b[0] - a[0])
        assert abs((c[1] - b[1]) - 15) <= 2 and abs((b[1] - a[1]) - 30) <= 2
        assert sink.state.reconnects == 0


async def test_rtmps_goes_to_the_checked_address_and_checks_the_name(nginx: NginxRtmp, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    await asyncio.to_thread(
        subprocess.run,
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=stream.test", "-addext", "subjectAltName=DNS:stream.test", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward, back = await asyncio.open_connection("127.0.0.1", nginx.port)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            try:
                while data := await source.read(65_536):
                    sink.write(data)
                    await sink.drain()
            except OSError:
                pass
            finally:
                sink.close()

        relays.add(task := asyncio.ensure_future(asyncio.gather(pump(reader, back), pump(onward, writer))))
        await task

    relays: set[asyncio.Future[object]] = set()
    tls = await asyncio.start_server(relay, "127.0.0.1", 0, ssl=server)
    port = tls.sockets[0].getsockname()[1]

    def push(host: str) -> None:
        address = RtmpAddress("rtmps", host, port, "live", "k", ("127.0.0.1",))
        link = RtmpLink(address, tls=lambda: ssl.create_default_context(cafile=str(certificate)))
        try:
            link.open()
            link.poll()
            link.finish()
        finally:
            link.close()

    try:
        await asyncio.to_thread(push, "stream.test")
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.to_thread(push, "other.test")
    finally:
        tls.close()
        await asyncio.gather(*relays)


async def test_a_refusal_that_quotes_the_key_is_reported_without_it(nginx: NginxRtmp) -> None:
    url = nginx.url("topsecret-key", app="nowhere")
    reported = asyncio.Event()
    async with pushing(url, changed=reported.set, connect_s=0) as sink:
        await asyncio.wait_for(reported.wait(), NEVER_S)
        assert sink.state.error and "topsecret" not in sink.state.error
        assert "topsecret" not in repr(sink.options) and "topsecret" not in repr(sink.state)


async def test_two_pushes_of_one_key_are_not_both_taken(nginx: NginxRtmp) -> None:
    reported = asyncio.Event()
    async with pushing(nginx.url()), pushing(nginx.url(), changed=reported.set, connect_s=0) as second:
        await asyncio.wait_for(reported.wait(), NEVER_S)
        assert second.state.error == "The server refuses: NetStream.Publish.BadName."

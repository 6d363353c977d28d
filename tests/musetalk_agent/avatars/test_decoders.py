"""Decoder processes: what ends one, what the caller hears of it, and that nothing else suffers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from musetalk_agent.avatars import decoder_pool
from musetalk_agent.avatars.decoder_pool import DecoderPool, DecoderPools, DecoderProcess
from musetalk_agent.avatars.library import AvatarLibrary
from musetalk_agent.avatars.limits import AvatarLimits
from musetalk_agent.errors import AtCapacity, AvatarError, AvatarTooLarge, AvatarUndecodable
from musetalk_agent.protocol.http import AvatarSource, Picture
from musetalk_agent.weights import ModelStore
from tests.musetalk_agent.avatars.hostile.test_files import jpeg_of_scans
from tests.waiting import NEVER_S, until

from .clips import encoded, face, frames_zip, moving

SLOW = jpeg_of_scans(60_000)
"""Two megabytes that take minutes to decode; only a limit of the tests' own lets it come to a decoder."""
LENIENT = AvatarLimits(jpeg_scans=10**9, jpeg_scan_pixels=10**15, decoder_step_cpu_seconds=1_000)


class Shop:
    """A library with decoder processes of its own."""

    def __init__(self, folder: Path, models: ModelStore) -> None:
        self._folder, self._models = folder, models
        self.decoders = DecoderPools(models.directory)
        self._made: list[AvatarLibrary] = []

    def library(self, limits: AvatarLimits | None = None) -> AvatarLibrary:
        """Libraries of several limits, over one cache."""
        self._made.append(AvatarLibrary(self._folder, self._models, limits=limits, decoders=self.decoders))
        return self._made[-1]

    def close(self) -> None:
        for library in self._made:
            library.close()
        self.decoders.close()


@pytest.fixture
async def shop(tmp_path: Path, models: ModelStore, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shop]:
    monkeypatch.setattr(decoder_pool, "DecoderProcess", _Watched)
    _at_work.clear()
    made = Shop(tmp_path / "cache", models)
    _others.clear()
    _others.update(decoder_processes())
    yield made
    made.close()
    await until(lambda: not children() and not any(t.get_name().startswith("avatar") for t in asyncio.all_tasks()))
    parts = tmp_path / "cache" / "parts"
    assert not parts.exists() or not list(parts.iterdir())


_others: set[int] = set()
"""Decoder processes that were there before the test: those of the fixture that other tests share."""


def children() -> list[int]:
    """Decoder processes of this test."""
    return [pid for pid in decoder_processes() if pid not in _others]


def decoder_processes() -> list[int]:
    found = []
    for process in psutil.Process().children():
        try:
            if decoder_pool._MODULE in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


async def prepare(library: AvatarLibrary, data: bytes, **more: object) -> int:
    source = AvatarSource(avatar_id=await library.add(data))
    return len(await library.prepare(source, Picture(), **more))  # type: ignore[arg-type]  # whatever the test passes on


async def decoding(shop: Shop) -> asyncio.Task[int]:
    """A clip that is being decoded, for minutes, in the shop's one process that works."""
    library = shop.library(LENIENT)
    avatar_id = await library.add(SLOW + os.urandom(8))
    before = set(_busy())
    task = asyncio.create_task(_prepared(library, avatar_id))
    await until(lambda: bool(set(_busy()) - before) or task.done())
    assert not task.done()
    return task


async def _prepared(library: AvatarLibrary, avatar_id: str) -> int:
    return len(await library.prepare(AvatarSource(avatar_id=avatar_id), Picture()))


def _busy() -> list[int]:
    """Decoder processes of this test that have begun with a clip and are not done with it."""
    return [pid for pid in children() if pid in _at_work]


_at_work: set[int] = set()


class _Watched(DecoderProcess):
    """Notes when it has begun with a request, and when it is done."""

    def _receive(self, deadline: float, aborted: Callable[[], bool]) -> dict[str, Any]:
        answer = super()._receive(deadline, aborted)
        if "begun" in answer:
            _at_work.add(self.pid)
        elif answer.keys() & decoder_pool._LAST:
            _at_work.discard(self.pid)
        return answer


@pytest.mark.parametrize(
    ("limits", "data", "limit", "words"),
    [
        pytest.param(replace(LENIENT, decoder_step_cpu_seconds=1), SLOW, 1, "more than 1 s to decode", id="CPU"),
        pytest.param(replace(LENIENT, decoder_seconds=0.5), SLOW, 0.5, "prepared in 0.5 s", id="time"),
        pytest.param(
            AvatarLimits(decoder_bytes=1 << 20, decoder_bytes_per_pixel=1),
            encoded(face(1024), ".jpg"),
            None,
            "memory",
            id="memory",
        ),
    ],
)
async def test_a_limit_refuses_the_clip_and_the_next_one_is_prepared(
    shop: Shop, limits: AvatarLimits, data: bytes, limit: float | None, words: str
) -> None:
    with pytest.raises(AvatarTooLarge, match=words) as caught:
        await prepare(shop.library(limits), data)
    assert caught.value.status == 422 and caught.value.field == "avatar_id" and caught.value.limit == limit
    assert await prepare(shop.library(), frames_zip(moving(3, 128))) == 3


async def test_a_process_that_dies_over_a_clip_refuses_it(shop: Shop) -> None:
    task = await decoding(shop)
    for pid in _busy():
        os.kill(pid, signal.SIGSEGV)
    with pytest.raises(AvatarUndecodable, match="made its decoder fail"):
        await task
    assert await prepare(shop.library(), frames_zip(moving(3, 128))) == 3


async def test_a_process_that_died_while_it_waited_costs_nobody_a_clip(shop: Shop) -> None:
    library = shop.library()
    assert await prepare(library, frames_zip(moving(3, 128))) == 3
    await until(lambda: len(shop.decoders.builders.pids) == 2)
    for pid in shop.decoders.builders.pids:
        os.kill(pid, signal.SIGKILL)
    assert await prepare(library, frames_zip(moving(4, 128))) == 4


async def test_who_leaves_frees_the_process_at_once(shop: Shop) -> None:
    first, second = await decoding(shop), await decoding(shop)
    waiting = asyncio.create_task(prepare(shop.library(), frames_zip(moving(3, 128))))
    gone = set(_busy())
    for task in (first, second):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await waiting == 3
    await until(lambda: not gone & set(children()))


async def test_cached_avatars_and_uploads_wait_for_no_clip(shop: Shop) -> None:
    library = shop.library()
    clip = frames_zip(moving(3, 128))
    threads = []

    def derive(bundle: object) -> None:
        threads.append(threading.current_thread().name)

    await prepare(library, clip, derive=derive, fingerprint="engine")
    (bundle,) = (library._cache._bundles).iterdir()
    (bundle / "engines" / "engine").mkdir(parents=True)
    busy = [await decoding(shop), await decoding(shop)]
    new = asyncio.create_task(prepare(library, frames_zip(moving(4, 128))))
    assert await prepare(library, clip, derive=derive, fingerprint="engine") == 3
    assert not any(task.done() for task in (*busy, new))
    assert threads[0].startswith("avatar-derive") and threads[1].startswith("avatar-cache")
    for task in (*busy, new):
        task.cancel()
    await asyncio.gather(*busy, new, return_exceptions=True)


async def test_closing_ends_what_decodes(shop: Shop) -> None:
    task = await decoding(shop)
    shop.close()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not children())


async def test_more_than_may_wait_are_refused_with_a_code(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    library = shop.library()
    avatar_id = await library.add(frames_zip(moving(3, 128)))
    monkeypatch.setattr(decoder_pool, "WAITING_MAX", 0)
    with pytest.raises(AtCapacity) as caught:
        await library.prepare(AvatarSource(avatar_id=avatar_id), Picture())
    assert caught.value.status == 503 and caught.value.retry_after_s


async def test_a_process_is_replaced_after_its_share_of_clips(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_pool, "CLIPS_MAX", 1)
    library = shop.library()
    seen: set[int] = set()
    for count in (3, 4, 5):
        assert await prepare(library, frames_zip(moving(count, 128))) == count
        await until(lambda: len(shop.decoders.builders.pids) == 2)
        seen |= set(shop.decoders.builders.pids)
    assert len(seen) >= 4


async def test_a_process_has_no_secret_no_socket_and_no_core(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_API_KEY", "a-secret-of-the-agent")
    shop.decoders.builders.warm()
    await until(lambda: len(shop.decoders.builders.pids) == 2)
    assert await prepare(shop.library(), frames_zip(moving(3, 128))) == 3
    pid = shop.decoders.builders.pids[-1]
    process = psutil.Process(pid)
    try:
        variables, files = process.environ(), [os.readlink(f) for f in Path(f"/proc/{pid}/fd").iterdir()]
    except (psutil.AccessDenied, PermissionError):
        pytest.skip("only root may look into such a process")
    assert "AGENT_API_KEY" not in variables
    assert not [name for name in files if name.startswith("socket:")]
    assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0)
    assert process.rlimit(psutil.RLIMIT_NOFILE)[1] == 64
    most = AvatarLimits().decoder_bytes_per_pixel * AvatarLimits().picture_pixels
    assert 0 < process.rlimit(psutil.RLIMIT_DATA)[1] < most + (1 << 30)
    assert process.nice() > psutil.Process().nice() or process.nice() == 19


async def test_a_process_ends_with_the_agent() -> None:
    """Killed outright, the agent has no time to end anything."""
    program = (
        "import time; from musetalk_agent.avatars.decoder_pool import DecoderProcess\n"
        "process = DecoderProcess(); print(process.pid, flush=True); time.sleep(600)"
    )
    agent = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=subprocess.PIPE)
    try:
        assert agent.stdout is not None
        pid = int(await agent.stdout.readline())
        assert psutil.pid_exists(pid)
    finally:
        agent.kill()
        await agent.wait()
    await until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize("lie", ["nonsense", "list", "endless line", "endless progress", "foreign error", "silence"])
async def test_a_process_that_was_taken_over_is_not_believed(monkeypatch: pytest.MonkeyPatch, lie: str) -> None:
    monkeypatch.setattr(decoder_pool, "_MODULE", "tests.fakes.lying_decoder")
    pool = DecoderPool(1, Path(lie))
    limits = AvatarLimits(frames=50, decoder_silence_seconds=NEVER_S if lie != "silence" else 0.2)
    try:
        with pytest.raises(AvatarError) as caught:
            await pool.run(lambda call: call({"do": "build"}), limits)
        assert caught.value.status == 422 and len(caught.value.detail) < 300
    finally:
        pool.close()


async def test_an_error_of_such_a_process_is_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_pool, "_MODULE", "tests.fakes.lying_decoder")
    pool = DecoderPool(1, Path("long error"))
    try:
        with pytest.raises(AvatarTooLarge) as caught:
            await pool.run(lambda call: call({"do": "build"}), AvatarLimits())
        assert len(caught.value.detail) == 1_000 and len(str(caught.value.value)) == 1_000
    finally:
        pool.close()


async def test_a_process_that_the_kernel_keeps_holds_up_no_end(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    library = shop.library()
    assert await prepare(library, frames_zip(moving(3, 128))) == 3
    await until(lambda: len(shop.decoders.builders.pids) == 2 and len(shop.decoders.checkers.pids) == 1)
    kept = [process._process for process in shop.decoders.builders._idle]
    with monkeypatch.context() as patch:

        def never(*_: object) -> int:
            raise subprocess.TimeoutExpired("decoder", 5.0)

        for process in kept:
            patch.setattr(process, "wait", never)
        shop.decoders.close()
    for process in kept:
        process.wait(NEVER_S)
    await until(lambda: not children())  # the checkers' process, too
    assert shop.decoders.builders._alive == 0

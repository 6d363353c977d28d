"""Renders at Modal: containers that see each other's files when they are asked to, and calls that Modal may bring twice."""

from __future__ import annotations

import asyncio
import inspect
import time
import wave
from collections.abc import Callable
from pathlib import Path

import modal
import numpy as np
import pytest
from modal._utils.async_utils import synchronizer
from pydantic import SecretStr

from musetalk_agent.agent_settings import AgentSettings
from musetalk_agent.protocol.modal_renders import ModalRenders
from musetalk_agent.protocol.render_queue import RenderTicket
from musetalk_agent.protocol.renders import (
    RenderEnd,
    RenderFolder,
    RenderOrder,
    RenderRequest,
    RenderState,
    new_render_id,
)
from musetalk_agent.renders.modal_worker import ModalWorker
from tests.fakes.modal_cloud import HERE, Cloud, container, modal_cloud
from tests.modal.inspected import inspected
from tests.musetalk_agent.renders.test_render_job import bursts, film

APP, TARGET, WORK, RATE = "shop", "modal://shop", "do", 16_000


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Cloud:
    return modal_cloud(monkeypatch, APP)


def order(folder: RenderFolder, seconds: int) -> str:
    render_id = new_render_id("key", None)
    request = RenderRequest.model_validate({"text": "x", "engine": "pattern", "width": 64, "height": 64})
    folder.create(RenderOrder(render_id=render_id, key="key", created_at=0.0, request=request))
    with wave.open(str(folder.path(render_id) / "voice.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(bursts(seconds).astype("<i2").tobytes())
    return render_id


async def ordered(cloud: Cloud, front: Path, seconds: int) -> str:
    """An order as the orchestrator's container writes it, with its first ticket."""
    HERE.set(front)
    sharing = ModalRenders(TARGET)
    render_id = order(RenderFolder(front, sharing), seconds)
    await asyncio.to_thread(sharing.put, RenderTicket(render_id=render_id))
    return render_id


async def worker(tmp_path: Path, name: str) -> tuple[ModalWorker, Path]:
    root = container(tmp_path, name)
    settings = AgentSettings(
        agent_api_key=SecretStr("k"),
        engine="pattern",
        cache_dir=tmp_path / "cache",
        renders_dir=root,
        renders_queue=SecretStr(TARGET),
    )
    return await ModalWorker(settings).start(), root


async def does(cloud: Cloud, workers: list[tuple[ModalWorker, Path]], *, again: bool = False) -> int:
    """The workers do all calls, in turn, each with its own copy; with `again` Modal brings every call twice."""
    count = 0
    while cloud.calls:
        call = cloud.calls.pop(0)
        for _ in range(2 if again else 1):
            made, root = workers[count % len(workers)]
            HERE.set(root)
            await made.do(*call)
            count += 1
    return count


@pytest.mark.parametrize("again", [False, True])
async def test_a_film_by_two_containers_is_whole_and_ends_once(cloud: Cloud, tmp_path: Path, again: bool) -> None:
    front = container(tmp_path, "front")
    render_id = await ordered(cloud, front, 70)
    workers = [await worker(tmp_path, "one"), await worker(tmp_path, "two")]
    try:
        assert await does(cloud, workers, again=again) >= 4, "three stretches and a beginning"
    finally:
        for made, _ in workers:
            await made.aclose()
    HERE.set(front)
    folder = RenderFolder(front, ModalRenders(TARGET))
    assert folder.ended(render_id) is None, "it is not seen before it is fetched"
    assert folder.fetch()
    end = folder.ended(render_id)
    assert end is not None and end.state is RenderState.DONE
    result = front / render_id / "result.mp4"
    times, lumas, sound_s = film(result)
    assert len(times) == 70 * 25 and abs(sound_s - 70) < 0.2 and end.bytes == result.stat().st_size
    assert np.mean([luma > 100 for luma in lumas]) == pytest.approx(0.5, abs=0.06)
    assert not (front / render_id / "parts").exists() or not list((front / render_id / "parts").iterdir())


async def test_of_two_that_end_a_render_one_does_and_both_know(cloud: Cloud, tmp_path: Path) -> None:
    one, two = container(tmp_path, "one"), container(tmp_path, "two")
    render_id = await ordered(cloud, one, 1)
    HERE.set(two)
    second = RenderFolder(two, ModalRenders(TARGET))
    assert second.fetch() and not second.ends(render_id)
    HERE.set(one)
    first = RenderFolder(one, ModalRenders(TARGET))
    assert first.end(render_id, RenderEnd(state=RenderState.CANCELLED, at=1.0))
    HERE.set(two)
    assert second.ends(render_id) and second.ended(render_id) is None, "known before it is fetched"
    assert not second.end(render_id, RenderEnd(state=RenderState.DONE, at=2.0))
    ended = second.ended(render_id)
    assert ended is not None and ended.state is RenderState.CANCELLED
    assert second.mark(render_id, "reported")
    HERE.set(one)
    assert not first.mark(render_id, "reported") and not first.end("ren_" + "0" * 24, ended)


async def test_an_end_that_its_container_did_not_live_to_write_is_written_by_the_next(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = container(tmp_path, "one")
    render_id = await ordered(cloud, root, 1)
    folder = RenderFolder(root, ModalRenders(TARGET))
    end = RenderEnd(state=RenderState.FAILED, at=time.time())
    with monkeypatch.context() as lost:
        lost.setattr(RenderFolder, "_write", staticmethod(_dies))
        with pytest.raises(KeyboardInterrupt):
            folder.end(render_id, end)
    assert folder.ended(render_id) is None
    folder.end(render_id, RenderEnd(state=RenderState.FAILED, at=time.time() + 1))
    assert folder.ended(render_id) == end


def _dies(path: Path, text: str) -> None:
    raise KeyboardInterrupt


async def test_a_worker_that_cannot_see_the_others_files_does_nothing_and_is_asked_again(
    cloud: Cloud, tmp_path: Path
) -> None:
    render_id = await ordered(cloud, container(tmp_path, "front"), 1)
    made, root = await worker(tmp_path, "one")
    try:
        HERE.set(root)
        (root / "held").write_bytes(b"")
        with (root / "held").open("rb"):
            RenderFolder(root, ModalRenders(TARGET)).publish()
            with pytest.raises(RuntimeError, match="open here"):
                await made.do(render_id, None)
        await does(cloud, [(made, root)])
        assert RenderFolder(root).ended(render_id) is not None
    finally:
        await made.aclose()


async def test_a_render_that_is_cancelled_is_stopped_by_its_worker(cloud: Cloud, tmp_path: Path) -> None:
    front = container(tmp_path, "front")
    render_id = await ordered(cloud, front, 20)
    made, root = await worker(tmp_path, "one")
    try:
        HERE.set(root)
        await made.do(*cloud.calls.pop(0))
        cloud.put(f"{render_id}.end", RenderEnd(state=RenderState.CANCELLED, at=1.0).model_dump_json())
        await made.do(*cloud.calls.pop(0))
        assert RenderFolder(root).parts(render_id) == set() and RenderFolder(root).ended(render_id) is None
    finally:
        await made.aclose()


def test_what_the_package_raises_is_an_error_of_the_disk(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise modal.exception.AuthError("Token missing")

    sharing = ModalRenders(TARGET)
    for name in ("commit", "reload", "put", "contains"):
        monkeypatch.setattr(cloud, name, broken)
    for call in (
        sharing.publish,
        sharing.fetch,
        lambda: sharing.first("a", "b"),
        lambda: sharing.known("a"),
        lambda: sharing.put(RenderTicket(render_id="ren_" + "0" * 24)),
    ):
        with pytest.raises(OSError, match="Modal: Token missing"):
            call()
    monkeypatch.setattr(cloud, "reload", lambda: (_ for _ in ()).throw(RuntimeError("something else")))
    with pytest.raises(OSError, match="Modal: something else"):
        sharing.fetch()


@pytest.mark.parametrize("target", ["modal://", "modal", "redis://x"])
def test_an_address_without_an_app_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match="modal://APP"):
        ModalRenders(target)


def test_the_names_and_arguments_are_the_packages() -> None:
    def arguments(of: Callable[..., object]) -> list[str]:
        return list(inspect.signature(of).parameters)

    assert arguments(modal.Volume.from_name)[0] == arguments(modal.Dict.from_name)[0] == "name"
    assert "create_if_missing" in arguments(modal.Dict.from_name)
    assert arguments(modal.Cls.from_name)[:2] == ["app_name", "name"]
    for kind, names in ((modal.Volume, ("commit", "reload")), (modal.Dict, ("get", "put", "contains"))):
        for name in names:
            assert arguments(getattr(Cloud, name)) == arguments(getattr(kind, name)), name
    assert inspect.signature(modal.Dict.put).return_annotation in (bool, "bool")
    assert issubclass(modal.exception.AuthError, modal.Error)


def test_a_ticket_is_a_call_of_the_deployed_class(monkeypatch: pytest.MonkeyPatch) -> None:
    method = ModalRenders(TARGET)._worker().do  # the real package: it looks nothing up
    assert isinstance(method, modal.Function) and callable(method.spawn)
    here = inspected(monkeypatch, MODAL_APP=APP)
    assert here.asked["Renderer.*"]["app"] == APP
    do = synchronizer._translate_in(synchronizer._translate_in(here.module.Renderer)._user_cls.__dict__[WORK])
    assert list(inspect.signature(do.raw_f).parameters) == ["self", "render_id", "span"]

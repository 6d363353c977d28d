"""A dub by the real factory: who speaks in the footage speaks, and every other pixel is the footage's before it is encoded."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from pydantic import SecretStr, ValidationError

from musetalk_agent.agent_settings import AgentSettings, offline_settings
from musetalk_agent.avatars.face import FaceNet
from musetalk_agent.avatars.identity import PlainDescriber
from musetalk_agent.factory import Factory
from musetalk_agent.media_types import VideoFrame
from musetalk_agent.protocol.render_queue import RenderTicket
from musetalk_agent.protocol.renders import RenderEnd, RenderFormat, RenderRequest, RenderState
from musetalk_agent.renders.dub import dub_job
from musetalk_agent.renders.dub import footage as footage_module
from musetalk_agent.renders.dub.scanning import look_at
from musetalk_agent.weights import Manifest, ModelStore
from tests.musetalk_agent.judge.conftest import GoodFilm, good, judge
from tests.musetalk_agent.measure.test_measure_sync import RATE
from tests.musetalk_agent.renders.dub.films import decoded, write_video
from tests.musetalk_agent.renders.test_render_job import Bench

__all__ = ["good", "judge"]

PAUSE, SCENE = 10, 40
BEGIN = 30
"""The frame of the good film from which on it speaks."""


@dataclass(frozen=True)
class Footage:
    """Black, one who speaks, a title, two of whom the left one speaks, one who listens to the other."""

    path: Path
    looked: Path
    planes: list[np.ndarray]
    alone: range
    two: range
    listens: range


@pytest.fixture(scope="module")
def footage(good: GoodFilm, tmp_path_factory: pytest.TempPathFactory) -> Footage:
    talks, silent = good.frames[BEGIN : BEGIN + SCENE], [good.frames[k % 5] for k in range(SCENE)]
    wall = np.full((320, 160, 3), 90, np.uint8)
    black, title = np.zeros((320, 640, 3), np.uint8), np.full((320, 640, 3), 140, np.uint8)
    title[140:180, 80:560] = 250
    frames = [
        *[black] * PAUSE,
        *[np.hstack([wall, frame, wall]) for frame in talks],
        *[title] * PAUSE,
        *[np.hstack([frame, other[:, ::-1]]) for frame, other in zip(talks, silent, strict=True)],
        *[np.hstack([wall, frame[:, ::-1], wall]) for frame in silent],
    ]
    said = good.voice[BEGIN * RATE // 25 :][: SCENE * RATE // 25]
    pause = np.zeros(PAUSE * RATE // 25, np.int16)
    path = tmp_path_factory.mktemp("footage") / "footage.mp4"
    write_video(path, frames, sound=np.concatenate([pause, said, pause, said, said]), sound_rate=RATE)
    at = [PAUSE, 2 * PAUSE + SCENE, 2 * PAUSE + 2 * SCENE]
    scenes = [range(begin, begin + SCENE) for begin in at]
    return Footage(path, path.with_name("looked"), decoded(path)[1], *scenes)


class Dubs(Bench):
    """Keeps the frames that go to the encoder."""

    frames: dict[int, np.ndarray]

    def again(self, footage: Footage, sound: np.ndarray, **fields: object) -> str:
        """A dub of the footage, which is looked at once for all tests."""
        render_id = self.dub(footage.path, sound, **fields)
        for found in footage.looked.iterdir():
            shutil.copy(found, self.folder.path(render_id) / "dub")
        return render_id

    def dub(self, footage: Path, sound: np.ndarray, **fields: object) -> str:
        render_id = self.order(sound, video_url="(a file)", engine="warp", width=None, height=None, **fields)
        own = self.folder.path(render_id) / "dub"
        own.mkdir()
        (own / "footage").symlink_to(footage)
        return render_id


@pytest.fixture(scope="module")
def looked(footage: Footage) -> Footage:
    """The footage, looked at."""
    models = ModelStore(offline_settings().models_dir, Manifest.load())
    footage.looked.mkdir()
    aside = footage.looked.with_name("aside")
    source = footage_module.Footage(footage.path, footage_module.footage_limits(60, 1 << 30))
    look_at(source, aside, footage.looked, FaceNet(models), PlainDescriber(), lambda done: None)
    return footage


@pytest.fixture
async def dubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Dubs]:
    settings = AgentSettings(agent_api_key=SecretStr("k"), engine="warp", cache_dir=tmp_path / "cache")
    factory = Factory(settings)
    await factory.start()
    made = Dubs(tmp_path / "renders", factory)
    made.frames = {}
    real: Callable[..., Any] = dub_job.part_writer

    def recording(path: Path, *args: Any) -> Any:
        writer = real(path, *args)
        write = writer.write

        def noted(frame: VideoFrame) -> None:
            made.frames[frame.idle_index] = frame.i420.copy()
            write(frame)

        writer.write = noted
        return writer

    monkeypatch.setattr(dub_job, "part_writer", recording)
    try:
        yield made
    finally:
        await factory.aclose()


def changed(dubs: Dubs, footage: Footage) -> np.ndarray:
    """Which pixels of each frame differ from the footage before encoding: bool `[n, 320, 640]`."""
    assert sorted(dubs.frames) == list(range(len(footage.planes)))
    return np.stack([dubs.frames[k].reshape(480, 640)[:320] != plane[:320] for k, plane in enumerate(footage.planes)])


def chroma_differs(dubs: Dubs, footage: Footage) -> set[int]:
    return {
        k for k, plane in enumerate(footage.planes) if (dubs.frames[k].reshape(480, 640)[320:] != plane[320:]).any()
    }


async def test_who_speaks_is_dubbed_and_nothing_else_is_touched(dubs: Dubs, footage: Footage, good: GoodFilm) -> None:
    voice = np.concatenate([good.voice[BEGIN * RATE // 25 :]] * 4)[: 10 * RATE]
    render_id = dubs.dub(footage.path, voice, judge=True)
    end = await dubs.make(render_id)
    assert end is not None and end.state is RenderState.DONE, end
    assert end.judge is not None and not {"black", "identity"} & set(end.judge["faults"]), (
        "the footage is the reference"
    )
    plan = dubs.folder.plan(render_id)
    assert plan is not None and plan.found is not None and plan.found["speaker"] == "auto"
    assert plan.found["shots"] == 5
    differs = changed(dubs, footage)
    spoken = differs.any((1, 2))
    assert set(np.flatnonzero(spoken)) | chroma_differs(dubs, footage) <= {*footage.alone, *footage.two}
    assert spoken[footage.alone].mean() > 0.95 and spoken[footage.two].mean() > 0.95
    assert not differs[footage.two][:, :, 320:].any(), "the listener's half"
    share = differs[footage.alone].mean()
    assert 0 < share < 0.05, "the mouth and no more"

    times, _ = decoded(dubs.folder.result(render_id, RenderFormat.MP4))
    assert times == decoded(footage.path)[0]
    with av.open(str(dubs.folder.result(render_id, RenderFormat.MP4))) as film:
        samples = sum(frame.samples for frame in film.decode(audio=0))
    assert samples / RATE == pytest.approx(len(footage.planes) / 25, abs=0.08), "the longer sound is cut"


@pytest.mark.parametrize(("speaker", "speaks_right"), [("all", True), (7, None)])
async def test_a_speaker_may_be_chosen(
    dubs: Dubs, looked: Footage, good: GoodFilm, speaker: object, speaks_right: bool | None
) -> None:
    footage = looked
    voice = good.voice[BEGIN * RATE // 25 :][: 3 * RATE]
    render_id = dubs.again(footage, voice, speaker=speaker, keep_background_audio=True)
    end = await dubs.make(render_id)
    assert end is not None
    if speaks_right is None:
        assert end.error is not None and end.error.code == "speaker_not_found"
        return
    differs = changed(dubs, footage)
    assert differs[footage.two][:, :, 320:].any() == speaks_right
    late = len(footage.planes) - SCENE // 2
    assert not differs[late:].any(), "a shot after the sound's end is left alone"
    with av.open(str(dubs.folder.result(render_id, RenderFormat.MP4))) as film:
        heard = np.concatenate([frame.to_ndarray()[0] for frame in film.decode(audio=0)])
    assert len(heard) / RATE == pytest.approx(len(footage.planes) / 25, abs=0.08)
    assert np.abs(heard[len(voice) + RATE // 4 :]).max() > 0.001, (
        "the footage's own sound goes on, lowered under its speech"
    )


async def test_what_a_dead_worker_made_stays(dubs: Dubs, looked: Footage, good: GoodFilm) -> None:
    voice = np.concatenate([good.voice] * 2)
    whole = dubs.again(looked, voice)
    await dubs.make(whole)
    first = dict(dubs.frames)
    dubs.frames.clear()
    render_id = dubs.again(looked, voice)
    await dubs.jobs.do(RenderTicket(render_id=render_id))
    parts = dubs.folder.path(render_id) / "parts"
    working = asyncio.create_task(dubs.jobs.do(dubs.tickets[0]))
    dubs.on_turn = lambda: working.cancel() if list(parts.glob("0*")) else None
    with pytest.raises(asyncio.CancelledError):
        await working
    dubs.on_turn = lambda: None
    assert not list((dubs.folder.path(render_id) / "dub").glob(".made*"))
    while dubs.tickets:
        await dubs.jobs.do(dubs.tickets.pop(0))
    ended = dubs.folder.ended(render_id)
    assert ended is not None and ended.state is RenderState.DONE
    assert all(np.array_equal(dubs.frames[k], first[k]) for k in first)


async def test_a_dub_that_is_cancelled_while_it_looks_stops(dubs: Dubs, footage: Footage) -> None:
    render_id = dubs.dub(footage.path, np.zeros(RATE))
    cancelled = RenderEnd(state=RenderState.CANCELLED, at=1.0)
    dubs.on_turn = lambda: dubs.folder.end(render_id, cancelled) if dubs.turns > 3 else None
    await dubs.jobs.do(RenderTicket(render_id=render_id))
    assert dubs.folder.ended(render_id) == cancelled and dubs.tickets == []
    assert {path.name for path in dubs.folder.path(render_id).iterdir()} == {"order.json", "end.json", "looked"}
    assert 0 < dubs.folder.looked(render_id) < 1


async def test_footage_without_a_face_and_without_frames(dubs: Dubs, tmp_path: Path) -> None:
    path = write_video(tmp_path / "wall.mp4", [np.full((64, 64, 3), 90, np.uint8)] * 10)
    end = await dubs.make(dubs.dub(path, np.zeros(RATE)))
    assert end is not None and end.error is not None and end.error.code == "no_face_in_video"
    (tmp_path / "text.mp4").write_text("no film")
    end = await dubs.make(dubs.dub(tmp_path / "text.mp4", np.zeros(RATE)))
    assert end is not None and end.error is not None and end.error.code == "video_unreadable"
    end = await dubs.make(dubs.order(np.zeros(RATE), video_url="http://127.0.0.1/a.mp4", width=None, height=None))
    assert end is not None and end.error is not None and end.error.code == "video_url_forbidden"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"video_url": "http://a/b.mp4", "avatar_id": "demo"}, "not both"),
        ({"video_url": "http://a/b.mp4", "fps": 30}, "leave them out"),
        (
            {"video_url": "http://a/b.mp4", "avatar_settings": {"background": "blur"}},
            "a dub keeps what its video shows",
        ),
        ({"avatar_id": "demo", "speaker": "all"}, "belong to a dub"),
        ({"video_url": "http://a/b.mp4", "speaker": "loudest"}, "speaker"),
        ({"video_url": "http://a/b.mp4", "speaker": -1}, "speaker"),
    ],
)
def test_orders_that_make_no_sense_are_refused(fields: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        RenderRequest.model_validate({"text": "x", **fields})
    assert RenderRequest.model_validate_json(RenderRequest(text="x", video_url="a").model_dump_json()).fps == 25

"""Clips in films: `[wave]` in a text is played at its word, goes on over parts that are made apart, and ends within the film."""

from __future__ import annotations

import functools
import hashlib
import json
import zipfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from musetalk_agent.avatars.library import AvatarLibrary
from musetalk_agent.errors import AvatarNotFound
from musetalk_agent.media_types import Pcm, Pixels
from musetalk_agent.protocol.render_queue import RenderTicket
from musetalk_agent.protocol.renders import RenderFormat, RenderMark, RenderPlan, RenderState
from musetalk_agent.renders.film_actions import mark_times
from musetalk_agent.renders.known_speech import FilmWord
from tests.musetalk_agent.avatars.clips import archive, encoded, face
from tests.musetalk_agent.measure.test_measure_sync import speech

from .test_render_job import RATE, Bench, bursts, worked

SIDE, FPS = 160, 25
WORDS = [("one", 0.1, 0.5), ("two", 1.5, 1.9), ("three", 5.0, 5.5)]
CLIP_FRAMES = 70


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clips, prepared by the first test that needs them."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
async def bench(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(AvatarLibrary, "warm", lambda self: None)  # nearly all find their clips
    async with worked(tmp_path, "warp", cache) as made:
        yield made


@functools.cache
def clip(corner: int, count: int) -> bytes:
    """The face, with a corner of this grey: by it one knows which clip is shown."""
    picture = face(SIDE).copy()
    picture[:12, :12] = corner
    frames = []
    for k in range(count):
        turned = np.array([[1, 0, 0.02 * k], [0, 1, 0]])
        frames.append(cv2.warpAffine(picture, turned, (SIDE, SIDE), borderMode=cv2.BORDER_REPLICATE))
    return archive([(f"{k}.png", encoded(frame)) for k, frame in enumerate(frames)])


async def sent(library: AvatarLibrary, data: bytes) -> str:
    """The clip's `avatar_id`. One that is there is not sent again: a process would be started to look into it."""
    known = f"sha256:{hashlib.sha256(data).hexdigest()}"
    try:
        await library.source(known)
    except AvatarNotFound:
        return await library.add(data)
    return known


async def ordered(
    bench: Bench, marks: Sequence[RenderMark], seconds: int = 6, words: bool = True, sound: Pcm | None = None
) -> str:
    library = bench.jobs.factory.library
    clips = {"idle": await sent(library, clip(40, 8)), "wave": await sent(library, clip(220, CLIP_FRAMES))}
    heard = bursts(seconds) if sound is None else sound
    render_id = bench.order(
        heard, marks, clips, text="one two three", engine="warp", avatar_id=clips["idle"], width=None, height=None,
        format="png",
    )  # fmt: skip
    if words:
        (bench.folder.path(render_id) / "words.json").write_text(json.dumps(WORDS))
    return render_id


def pictures(bench: Bench, render_id: str) -> list[Pixels]:
    with zipfile.ZipFile(bench.folder.result(render_id, RenderFormat.PNG)) as frames:
        names = sorted(name for name in frames.namelist() if name.endswith(".png"))
        return [cv2.imdecode(np.frombuffer(frames.read(name), np.uint8), cv2.IMREAD_COLOR) for name in names]


def corners(shown: list[Pixels]) -> np.ndarray:
    return np.array([picture[2:10, 2:10].mean() for picture in shown])


async def planned(bench: Bench, render_id: str) -> RenderPlan:
    await bench.jobs.do(RenderTicket(render_id=render_id))
    plan = bench.folder.plan(render_id)
    assert plan is not None, bench.folder.ended(render_id)
    return plan


async def test_a_clip_is_played_at_its_word_while_the_mouth_speaks(bench: Bench) -> None:
    render_id = await ordered(bench, [RenderMark(name="wave", letters=3)], sound=speech()[: 6 * RATE])
    end = await bench.make(render_id)
    assert end is not None and end.state is RenderState.DONE, end
    plan = bench.folder.plan(render_id)
    assert plan is not None and plan.frames == 6 * FPS
    (action,) = plan.actions
    assert action.leave is not None and 0 <= action.enter[0] - (1.5 - 0.2) * FPS < 11
    shown = pictures(bench, render_id)
    bright, found = corners(shown), range(action.enter[0] + action.enter[2], action.leave[0])
    assert (bright[: action.enter[0]] < 60).all() and (bright[list(found)] > 200).all()
    assert (bright[action.leave[0] + action.leave[2] :] < 60).all() and len(found) > 10
    mouth, brow = (
        np.array([shown[k][rows, 60:100] for k in found]).std(0).mean() for rows in (slice(95, 125), slice(30, 50))
    )
    assert mouth > 3 * brow, "the mouth rests over the clip"


async def test_parts_of_a_passage_that_are_made_apart_are_the_same(bench: Bench) -> None:
    """The passage begins in the film's first part, at 3.9 s, and goes on in the second, which another worker makes."""
    mark = [RenderMark(name="wave", letters=3)]
    whole, apart = await ordered(bench, mark, words=False), await ordered(bench, mark, words=False)
    for render_id in (whole, apart):
        (bench.folder.path(render_id) / "words.json").write_text(json.dumps([WORDS[0], ("two", 4.05, 4.4)]))
    (action,) = (await planned(bench, whole)).actions
    assert action.enter[0] < 4 * FPS < action.enter[0] + action.enter[2]
    await bench.make(whole)
    plan = await planned(bench, apart)
    bench.tickets.clear()
    order = bench.folder.order(apart)
    assert order is not None
    for part in (1, 0):
        await bench.jobs._make(order, plan, [part])
    await bench.make(apart)
    for one, other in zip(pictures(bench, whole), pictures(bench, apart), strict=True):
        assert np.array_equal(one, other)


async def test_a_clip_after_the_last_word_is_seen_whole(bench: Bench) -> None:
    render_id = await ordered(bench, [RenderMark(name="wave", letters=11)])
    end = await bench.make(render_id)
    assert end is not None and end.state is RenderState.DONE, end
    plan = bench.folder.plan(render_id)
    assert plan is not None and plan.frames > 6 * FPS and end.seconds == pytest.approx(plan.frames / FPS)
    bright = corners(pictures(bench, render_id))
    assert len(bright) == plan.frames and bright.max() > 200 and bright[-1] < 60


async def test_idle_ends_what_plays(bench: Bench) -> None:
    render_id = await ordered(bench, [RenderMark(name="wave", letters=0), RenderMark(name="idle", letters=6)])
    plan = await planned(bench, render_id)
    assert [action.name for action in plan.actions] == ["wave", "idle"]
    assert plan.actions[1].leave is None and plan.frames == 6 * FPS


async def test_a_worker_gets_the_clips_that_it_lacks(bench: Bench, tmp_path: Path) -> None:
    render_id = await ordered(bench, [RenderMark(name="wave", letters=3)])
    sources = bench.folder.sources(render_id)
    sources.mkdir()
    order = bench.folder.order(render_id)
    assert order is not None
    for source in order.clips.values():
        path = await bench.jobs.factory.library.source(source)
        (sources / source.removeprefix("sha256:")).write_bytes(path.read_bytes())
    async with worked(tmp_path / "other", "warp") as other:
        other.folder, other.jobs = bench.folder, type(other.jobs)(
            other.jobs.factory, bench.folder, other._put, other._turn
        )  # fmt: skip
        end = await other.make(render_id)
    assert end is not None and end.state is RenderState.DONE, end
    assert not sources.exists()


def test_marks_stand_at_their_words_or_at_their_share_of_the_letters() -> None:
    marks = [RenderMark(name="wave", letters=0), RenderMark(name="nod", letters=4), RenderMark(name="bye", letters=11)]
    words = [FilmWord(*word) for word in WORDS]
    assert mark_times(marks, "one two three", words, 6.0) == [("wave", 0.1), ("nod", 1.5), ("bye", 5.5)]
    assert mark_times(marks, "one two three", [], 5.5) == [("wave", 0.0), ("nod", 2.0), ("bye", 5.5)]


async def test_a_film_of_the_pattern_has_no_clips(bench: Bench, tmp_path: Path) -> None:
    async with worked(tmp_path / "other", "pattern") as other:
        render_id = other.order(bursts(2), [RenderMark(name="wave", letters=0)], {"wave": "sha256:" + "0" * 64})
        end = await other.make(render_id)
    assert end is not None and end.state is RenderState.DONE, end
    with av.open(str(other.folder.result(render_id, RenderFormat.MP4))) as container:
        assert sum(1 for _ in container.decode(video=0)) == 2 * FPS

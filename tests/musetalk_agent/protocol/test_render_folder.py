"""The folder of renders: an order once, an end once, whoever comes."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from pydantic import ValidationError

from musetalk_agent.protocol.renders import (
    RenderEnd,
    RenderFolder,
    RenderFormat,
    RenderOrder,
    RenderPlan,
    RenderRequest,
    RenderState,
    new_render_id,
)


def ordered(folder: RenderFolder, key: str = "shop") -> str:
    render_id = new_render_id(key, None)
    request = RenderRequest(avatar_id="demo", text="hello")
    assert folder.create(RenderOrder(render_id=render_id, key=key, created_at=1.0, request=request))
    return render_id


def test_an_order_is_kept_once(tmp_path: Path) -> None:
    folder = RenderFolder(tmp_path)
    render_id = ordered(folder)
    order = folder.order(render_id)
    assert order is not None and order.request.text == "hello"
    assert not folder.create(order.model_copy(update={"key": "other"}))
    assert folder.order(render_id) == order
    assert folder.ids() == [render_id]


def test_of_many_that_end_a_render_one_does(tmp_path: Path) -> None:
    folder = RenderFolder(tmp_path)
    render_id = ordered(folder)
    won: list[int] = []
    start = threading.Barrier(8)

    def end(number: int) -> None:
        start.wait()
        if folder.end(render_id, RenderEnd(state=RenderState.DONE, at=float(number))):
            won.append(number)

    threads = [threading.Thread(target=end, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ended = folder.ended(render_id)
    assert len(won) == 1 and ended is not None and ended.at == won[0]
    assert sorted(path.name for path in folder.path(render_id).iterdir()) == ["end.json", "order.json"]


def test_a_render_that_is_cancelled_leaves_no_film(tmp_path: Path) -> None:
    folder = RenderFolder(tmp_path)
    render_id = ordered(folder)
    folder.result(render_id, RenderFormat.MP4).write_bytes(b"half")
    assert folder.end(render_id, RenderEnd(state=RenderState.CANCELLED, at=1.0))
    assert not folder.result(render_id, RenderFormat.MP4).exists()
    assert folder.parts(render_id) == set() and folder.tried(render_id, 0) == 1


def test_parts_cover_the_film_once() -> None:
    plan = RenderPlan(avatar_id="demo", engine="warp", width=64, height=64, fps=25, frames=3210, begun_at=0.0)
    assert [frame for part in range(plan.parts) for frame in plan.part(part)] == list(range(3210))
    assert [part for span in range(plan.spans) for part in plan.span(span)] == list(range(plan.parts))


@pytest.mark.parametrize("bad", ["", "..", "ren_..", "ren_" + "0" * 25, "ren_" + "G" * 24, "ren_" + "0" * 24 + "/.."])
def test_no_other_folder_can_be_named(tmp_path: Path, bad: str) -> None:
    with pytest.raises(ValueError, match="is no id of a render"):
        RenderFolder(tmp_path).path(bad)


def test_what_another_version_wrote_is_not_there(tmp_path: Path) -> None:
    folder = RenderFolder(tmp_path)
    render_id = ordered(folder)
    (folder.path(render_id) / "plan.json").write_text('{"frames": "many"}')
    assert folder.plan(render_id) is None


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"avatar_id": "demo"}, "give either audio_url or text"),
        ({"avatar_id": "demo", "text": "a", "audio_url": "http://a"}, "give either audio_url or text"),
        ({"text": "a"}, "give avatar_id, idle_video_url or frames_zip_url"),
        ({"avatar_id": "demo", "audio_url": "http://a", "voice": "v"}, "voice"),
        ({"avatar_id": "demo", "text": "a", "width": 64}, "width and height together"),
        ({"avatar_id": "demo", "text": "a", "width": 1921, "height": 64}, "1920"),
        ({"avatar_id": "demo", "text": "a", "smooth": True}, "smooth"),
    ],
)
def test_an_order_that_cannot_be_made_is_refused(fields: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        RenderRequest.model_validate(fields)


def test_an_idempotency_key_is_a_callers_own() -> None:
    assert new_render_id("shop", "1") == new_render_id("shop", "1")
    assert len({new_render_id("shop", "1"), new_render_id("other", "1"), new_render_id("shop", None)}) == 3


def test_what_was_looked_at_never_shrinks(tmp_path: Path) -> None:
    folder = RenderFolder(tmp_path)
    render_id = ordered(folder)
    assert folder.looked(render_id) == 0.0
    for share, kept in ((0.25, 0.25), (0.125, 0.25), (0.5, 0.5)):
        folder.write_looked(render_id, share)
        assert folder.looked(render_id) == kept


def test_tickets_that_begin_with_shots_hold_every_frame_once() -> None:
    plan = RenderPlan(
        avatar_id="", engine="warp", width=64, height=64, fps=25, frames=700, begun_at=0.0, starts=[0, 130, 333]
    )
    spans = [[plan.part(part) for part in plan.span(span)] for span in range(plan.spans)]
    assert [(parts[0].start, parts[-1].stop) for parts in spans] == [(0, 130), (130, 333), (333, 700)]
    frames = [frame for parts in spans for part in parts for frame in part]
    assert frames == list(range(700)) and plan.parts == 2 + 3 + 4

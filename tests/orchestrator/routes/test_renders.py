"""`/renders`: orders, their owners, what their owners see, and their films. The worker's part is played by the test."""

from __future__ import annotations

import json
import time
import wave
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from musetalk_agent.protocol.render_queue import RenderQueue, RenderTicket, default_target
from musetalk_agent.protocol.renders import (
    RenderEnd,
    RenderFailure,
    RenderFolder,
    RenderFormat,
    RenderMark,
    RenderPlan,
    RenderState,
)
from orchestrator import render_orders
from orchestrator.tts.voices import Voices
from tests.fakes.stage import Stage, stage
from tests.fakes.tone_voice import TonePerWord
from tests.waiting import until

KEYS = [
    {"name": "shop", "scope": "starter", "key": "mtk_shopshopshopshop", "max_renders": 2},
    {"name": "other", "scope": "starter", "key": "mtk_otherotherother0"},
    {"name": "viewer", "scope": "viewer", "key": "mtk_viewerviewerview"},
]
BODY = {"avatar_id": "demo", "audio_url": "http://example.com/a.wav"}


@pytest.fixture
def folder(tmp_path: Path) -> RenderFolder:
    return RenderFolder(tmp_path / "renders")


@pytest.fixture
async def rendering(tmp_path: Path, folder: RenderFolder) -> AsyncIterator[Stage]:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps(KEYS))
    voices = Voices("tone:one", synthesizers=[TonePerWord()])
    async with stage(voices=voices, renders_dir=folder.root, orchestrator_keys_file=keys) as ready:
        yield ready


def by(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {next(each['key'] for each in KEYS if each['name'] == key)}"}


async def ticket(folder: RenderFolder) -> RenderTicket:
    with RenderQueue(default_target(folder.root)) as queue:
        await until(lambda: queue.waiting() > 0)
        taken = queue.take("test")
        assert taken is not None
        queue.done("test", taken)
        return taken.ticket


def finish(folder: RenderFolder, render_id: str, body: bytes = bytes(range(200))) -> None:
    folder.write_plan(render_id, plan())
    folder.result(render_id, RenderFormat.MP4).write_bytes(body)
    assert folder.end(render_id, RenderEnd(state=RenderState.DONE, at=time.time(), bytes=len(body), seconds=10.0))


def plan() -> RenderPlan:
    return RenderPlan(avatar_id="demo", engine="warp", width=64, height=64, fps=25, frames=250, begun_at=time.time())


async def test_an_order_waits_and_its_ticket_is_in_the_queue(rendering: Stage, folder: RenderFolder) -> None:
    answer = await rendering.http.post("/renders", json=BODY)
    assert answer.status_code == 202
    view = answer.json()
    assert (view["state"], view["progress"], view["result"], view["error"]) == ("queued", 0.0, None, None)
    assert await ticket(folder) == RenderTicket(render_id=view["render_id"])


async def test_a_text_is_spoken_before_it_is_queued(rendering: Stage, folder: RenderFolder) -> None:
    body = {"avatar_id": "demo", "text": "Three short words"}
    view = (await rendering.http.post("/renders", json=body)).json()
    made = folder.path((await ticket(folder)).render_id)
    assert made.name == view["render_id"]
    with wave.open(str(made / "voice.wav")) as voice:
        rate, samples = voice.getframerate(), voice.getnframes()
    assert samples > 0
    cues = json.loads((made / "cues.json").read_text())
    assert cues[-1][2] == pytest.approx(samples * 16_000 / rate, abs=2)


async def test_a_voice_that_is_unknown_fails_the_render(rendering: Stage) -> None:
    body = {"avatar_id": "demo", "text": "hello", "voice": "nobody"}
    view = (await rendering.http.post("/renders", json=body)).json()

    async def failed() -> bool:
        view.update((await rendering.http.get(f"/renders/{view['render_id']}")).json())
        return bool(view["state"] == "failed")

    await until(failed)
    assert view["error"]["code"] == "voice_unknown"


async def test_the_same_key_and_body_are_the_same_render(rendering: Stage, folder: RenderFolder) -> None:
    headers = {"Idempotency-Key": "once"}
    first = await rendering.http.post("/renders", json=BODY, headers=headers)
    again = await rendering.http.post("/renders", json=BODY, headers=headers)
    assert first.json()["render_id"] == again.json()["render_id"]
    other = await rendering.http.post("/renders", json={**BODY, "fps": 30}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")
    theirs = await rendering.http.post("/renders", json=BODY, headers={**headers, **by("other")})
    assert theirs.json()["render_id"] != first.json()["render_id"]
    assert len(folder.ids()) == 2


async def test_a_full_deployment_refuses_new_renders_and_knows_the_old_ones(
    rendering: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render_orders, "OPEN_MOST", 1)
    headers = {"Idempotency-Key": "once"}
    first = await rendering.http.post("/renders", json=BODY, headers=headers)
    assert first.status_code == 202
    refused = await rendering.http.post("/renders", json=BODY)
    assert (refused.status_code, refused.json()["code"], refused.json()["limit"]) == (503, "at_capacity", 1)
    again = await rendering.http.post("/renders", json=BODY, headers=headers)
    assert (again.status_code, again.json()["render_id"]) == (202, first.json()["render_id"])


async def test_old_results_are_deleted_while_the_service_runs(
    rendering: Stage, folder: RenderFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    render_id = (await rendering.http.post("/renders", json=BODY)).json()["render_id"]
    folder.end(render_id, RenderEnd(state=RenderState.CANCELLED, at=0.0))
    monkeypatch.setattr(render_orders, "_DELETE_EVERY_S", 0.0)
    rendering.app.state.context.renders._delete_at = 0.0  # the next look deletes
    await until(lambda: render_id not in folder.ids())


async def test_progress_is_that_of_finished_parts(rendering: Stage, folder: RenderFolder) -> None:
    render_id = (await rendering.http.post("/renders", json=BODY)).json()["render_id"]
    folder.write_plan(render_id, plan())
    (folder.path(render_id) / "parts" / "000000.mp4").touch()
    (folder.path(render_id) / "parts" / ".000001.half").touch()
    view = (await rendering.http.get(f"/renders/{render_id}")).json()
    assert (view["state"], view["progress"], view["frames_done"], view["frames"]) == ("running", 0.4, 100, 250)
    assert view["eta_s"] >= 0


async def test_a_film_is_there_once_it_is_done(rendering: Stage, folder: RenderFolder) -> None:
    render_id = (await rendering.http.post("/renders", json=BODY)).json()["render_id"]
    early = await rendering.http.get(f"/renders/{render_id}/result.mp4")
    assert (early.status_code, early.json()["code"]) == (409, "render_not_done")
    finish(folder, render_id)
    view = (await rendering.http.get(f"/renders/{render_id}")).json()
    assert (view["state"], view["progress"]) == ("done", 1.0)
    assert view["result"] == {
        "url": f"/renders/{render_id}/result.mp4",
        "bytes": 200,
        "seconds": 10.0,
        "judge": None,
        "captions": None,
        "warnings": [],
    }
    whole = await rendering.http.get(view["result"]["url"])
    assert whole.content == bytes(range(200)) and whole.headers["content-type"] == "video/mp4"
    part = await rendering.http.get(view["result"]["url"], headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, bytes(range(10, 20)))
    wrong = await rendering.http.get(f"/renders/{render_id}/result.zip")
    assert (wrong.status_code, wrong.json()["code"]) == (404, "render_not_found")


async def test_captions_lie_beside_the_film(rendering: Stage, folder: RenderFolder) -> None:
    render_id = (await rendering.http.post("/renders", json=BODY)).json()["render_id"]
    for suffix in ("mp4", "srt", "vtt"):
        (folder.path(render_id) / f"result.{suffix}").write_text(suffix)
    warning = RenderFailure(code="captions_unavailable", detail="No words.")
    folder.end(
        render_id,
        RenderEnd(
            state=RenderState.DONE,
            at=time.time(),
            bytes=3,
            seconds=1.0,
            captions=True,
            timing="letters",
            warnings=[warning],
        ),
    )
    view = (await rendering.http.get(f"/renders/{render_id}")).json()
    assert view["result"]["captions"]["timing"] == "letters"
    assert view["result"]["warnings"] == [{"code": "captions_unavailable", "detail": "No words."}]
    for suffix, kind in (("srt", "application/x-subrip"), ("vtt", "text/vtt")):
        answer = await rendering.http.get(view["result"]["captions"][suffix])
        assert (answer.status_code, answer.text) == (200, suffix) and answer.headers["content-type"].startswith(kind)
    other = (await rendering.http.post("/renders", json=BODY)).json()["render_id"]
    finish(folder, other)
    assert (await rendering.http.get(f"/renders/{other}/result.srt")).status_code == 404


async def test_a_render_is_its_owners(rendering: Stage) -> None:
    render_id = (await rendering.http.post("/renders", json=BODY, headers=by("shop"))).json()["render_id"]
    for address, method in ((f"/renders/{render_id}", "GET"), (f"/renders/{render_id}/cancel", "POST")):
        answer = await rendering.http.request(method, address, headers=by("other"))
        assert (answer.status_code, answer.json()["code"]) == (404, "render_not_found"), address
    assert (await rendering.http.get("/renders", headers=by("other"))).json() == {"renders": [], "next": None}
    assert (await rendering.http.get(f"/renders/{render_id}", headers=by("shop"))).status_code == 200
    assert (await rendering.http.get(f"/renders/{render_id}")).status_code == 200  # an operator's key
    assert (await rendering.http.post("/renders", json=BODY, headers=by("viewer"))).status_code == 403


async def test_a_key_has_so_many_renders_and_no_more(rendering: Stage, folder: RenderFolder) -> None:
    made = [await rendering.http.post("/renders", json=BODY, headers=by("shop")) for _ in range(3)]
    assert [each.status_code for each in made] == [202, 202, 429]
    assert made[2].json()["code"] == "quota_exceeded"
    finish(folder, made[0].json()["render_id"])

    async def room() -> bool:
        return (await rendering.http.post("/renders", json=BODY, headers=by("shop"))).status_code == 202

    await until(room)


async def test_a_list_is_read_in_pages(rendering: Stage) -> None:
    ids = [(await rendering.http.post("/renders", json=BODY)).json()["render_id"] for _ in range(3)]
    first = (await rendering.http.get("/renders", params={"limit": 2})).json()
    assert [each["render_id"] for each in first["renders"]] == ids[:0:-1]
    second = (await rendering.http.get("/renders", params={"limit": 2, "after": first["next"]})).json()
    assert [each["render_id"] for each in second["renders"]] == ids[:1] and second["next"] is None
    wrong = await rendering.http.get("/renders", params={"after": "ren_x"})
    assert wrong.status_code == 422


async def test_a_cancelled_render_has_ended(rendering: Stage, folder: RenderFolder) -> None:
    render_id = (await rendering.http.post("/renders", json=BODY)).json()["render_id"]
    assert (await rendering.http.post(f"/renders/{render_id}/cancel")).json()["state"] == "cancelled"
    assert not folder.end(render_id, RenderEnd(state=RenderState.DONE, at=1.0))
    assert (await rendering.http.post(f"/renders/{render_id}/cancel")).json()["state"] == "cancelled"


async def test_an_end_is_reported_once(rendering: Stage, folder: RenderFolder) -> None:
    reported: list[dict[str, object]] = []
    rendering.app.state.context.events.listen(lambda event: reported.append(json.loads(event.text)))
    done, failed = [(await rendering.http.post("/renders", json=BODY)).json()["render_id"] for _ in range(2)]
    finish(folder, done)
    error = RenderFailure(code="audio_unreadable", detail="It is no sound.")
    folder.end(failed, RenderEnd(state=RenderState.FAILED, at=time.time(), error=error))
    await until(lambda: len(reported) == 2)
    data = {str(each["type"]): each["data"] for each in reported}
    assert data["render.finished"]["render_id"] == done and data["render.finished"]["result"]["bytes"] == 200
    assert data["render.failed"] == {
        "render_id": failed,
        "state": "failed",
        "result": None,
        "error": {"code": "audio_unreadable", "detail": "It is no sound."},
    }
    assert folder.marked(done, "reported") and folder.marked(failed, "reported")


async def test_what_an_orchestrator_left_unqueued_is_queued_by_the_next(tmp_path: Path, folder: RenderFolder) -> None:
    async with stage(renders_dir=folder.root) as first:
        render_id = (await first.http.post("/renders", json=BODY)).json()["render_id"]
        assert (await ticket(folder)).render_id == render_id
        await until(lambda: folder.marked(render_id, "queued"))
    (folder.path(render_id) / "queued").unlink()  # as if it had died before
    async with stage(renders_dir=folder.root):
        assert (await ticket(folder)).render_id == render_id


async def test_without_a_folder_there_are_no_renders(running: Stage) -> None:
    answer: httpx.Response = await running.http.post("/renders", json=BODY)
    assert (answer.status_code, answer.json()["code"]) == (503, "renders_unavailable")
    assert (await running.http.get("/renders/ren_" + "0" * 24)).status_code == 503


async def test_marks_of_a_text_become_actions_and_workers_get_the_clips(rendering: Stage, folder: RenderFolder) -> None:
    avatar_id = (await rendering.http.post("/avatars", content=b"idle", headers={"X-Filename": "a.mp4"})).json()[
        "avatar_id"
    ]
    put = await rendering.http.put(
        f"/avatars/{avatar_id}/clips/wave", content=b"waving", headers={"X-Filename": "w.mp4"}
    )
    assert put.status_code == 201, put.text
    body = {"avatar_id": avatar_id, "text": "Hello [wave] there [sic]."}
    view = (await rendering.http.post("/renders", json=body)).json()
    order = folder.order((await ticket(folder)).render_id)
    assert order is not None and order.render_id == view["render_id"]
    assert order.request.text == "Hello there [sic]."
    assert order.marks == [RenderMark(name="wave", letters=5)]
    assert set(order.clips) == {"idle", "wave"} and order.request.avatar_id == order.clips["idle"]
    copied = {path.read_bytes() for path in folder.sources(order.render_id).iterdir()}
    assert copied == {b"idle", b"waving"}
    empty = await rendering.http.post("/renders", json={**body, "text": "[wave]"})
    assert (empty.status_code, empty.json()["field"]) == (422, "text")
    said = {"avatar_id": avatar_id, "audio_url": "http://example.com/a.wav", "transcript": "[wave] hello"}
    await rendering.http.post("/renders", json=said)
    by_sound = folder.order((await ticket(folder)).render_id)
    assert by_sound is not None and by_sound.request.transcript == "hello" and by_sound.marks[0].letters == 0

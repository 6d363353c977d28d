"""`/avatars`: an avatar's life, whose it is, and what is refused."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import httpx
import pytest

from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from tests.fakes.agent_avatars import POSTER
from tests.fakes.stage import Stage, stage
from tests.waiting import turns, until

CLIP = bytes(range(256)) * 40
DIGEST = "sha256:" + hashlib.sha256(CLIP).hexdigest()
KEYS = (
    '[{"name": "ann", "key": "a-key-of-ann-with-enough-bits", "scope": "starter"},'
    ' {"name": "bob", "key": "b-key-of-bob-with-enough-bits", "scope": "starter"}]'
)
ANN, BOB = (
    {"Authorization": f"Bearer {key}"} for key in ("a-key-of-ann-with-enough-bits", "b-key-of-bob-with-enough-bits")
)


async def made(running: Stage, content: bytes = CLIP, **headers: str) -> str:
    answer = await running.http.post("/avatars", content=content, headers={"X-Filename": "Ada L.mp4", **headers})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["avatar_id"])


async def settled(running: Stage, avatar_id: str) -> dict[str, Any]:
    async def over() -> dict[str, Any] | None:
        body = (await running.http.get(f"/avatars/{avatar_id}")).json()
        return body if body["state"] != "preparing" else None

    found = await until(over)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        ("Zo%C3%AB%20%E4%BD%90.mp4", "Zoë 佐"),
        ("50%.mp4", "50%"),
        ("%00%0A.mp4", "Avatar"),
        ("%FF.mp4", "\ufffd"),
        ("a%2Fb.png", "b"),
    ],
)
async def test_a_file_name_may_be_percent_encoded(running: Stage, filename: str, name: str) -> None:
    answer = await running.http.post("/avatars", content=CLIP, headers={"X-Filename": filename})
    assert answer.json()["name"] == name


async def test_an_avatar_is_prepared_shown_changed_and_deleted() -> None:
    async with stage() as running:
        running.agent.avatars.may_prepare.clear()
        avatar_id = await made(running)
        begun = (await running.http.get(f"/avatars/{avatar_id}")).json()
        assert (begun["name"], begun["state"], begun["report"], begun["error"]) == ("Ada L", "preparing", None, None)
        assert (await running.http.get(f"/avatars/{avatar_id}/poster.jpg")).status_code == 404
        running.agent.avatars.may_prepare.set()
        ready = await settled(running, avatar_id)
        assert (ready["state"], ready["progress"]) == ("ready", 1.0)
        assert ready["clips"] == [{"name": "idle", "frames": 100, "cached": True}]
        assert ready["report"]["avatar_id"] == avatar_id
        assert running.agent.avatars.prepared[-1].avatar.avatar_id == DIGEST
        poster = await running.http.get(f"/avatars/{avatar_id}/poster.jpg")
        assert (poster.headers["content-type"], poster.content) == ("image/jpeg", POSTER)
        changed = await running.http.patch(
            f"/avatars/{avatar_id}", json={"name": "Ada", "settings": {"mouth_gain": 1.5, "voice": "piper:x"}}
        )
        assert (changed.json()["name"], changed.json()["settings"]["mouth_gain"]) == ("Ada", 1.5)
        assert [each["avatar_id"] for each in (await running.http.get("/avatars")).json()["avatars"]] == [avatar_id]
        assert (await running.http.delete(f"/avatars/{avatar_id}")).status_code == 204
        assert (await running.http.delete(f"/avatars/{avatar_id}")).status_code == 404
        assert (await running.http.get("/avatars")).json() == {"avatars": [], "next": None}
        assert not list(running.settings.avatars_dir.rglob("*.json")), "nothing of it is left"
        assert not list((running.settings.avatars_dir / "sources").iterdir())


async def test_a_session_gets_the_clip_the_settings_and_the_voice() -> None:
    async with stage() as running:
        avatar_id = await made(running)
        await settled(running, avatar_id)
        await running.http.patch(f"/avatars/{avatar_id}", json={"settings": {"mouth_gain": 1.5, "sharpen": 0.5}})
        started = await running.start(avatar_id=avatar_id, avatar_settings={"sharpen": 0.25})
        request = running.agent.only.request
        assert request.avatar.avatar_id == DIGEST
        assert (request.avatar_settings.mouth_gain, request.avatar_settings.sharpen) == (1.5, 0.25)
        assert started["avatar"]["avatar_id"] == avatar_id
        path = f"/session/{started['session_id']}"
        assert (await running.http.get(path)).json()["avatar_id"] == avatar_id
        refused = await running.http.delete(f"/avatars/{avatar_id}")
        assert (refused.status_code, refused.json()["code"]) == (409, "avatar_in_use")
        await running.http.post(f"{path}/stop")
        assert (await running.http.delete(f"/avatars/{avatar_id}")).status_code == 204


async def test_an_agent_that_lost_the_clip_gets_it_again() -> None:
    async with stage() as running:
        avatar_id = await made(running)
        await settled(running, avatar_id)
        running.agent.avatars.clips.clear()
        running.agent.avatars.needs_clips = True
        await running.start(avatar_id=avatar_id)
        assert running.agent.avatars.clips == {DIGEST: CLIP}


async def test_an_address_is_fetched_by_the_agent_and_kept() -> None:
    async with stage() as running:
        order = {"url": "https://example.com/a/Eve.mp4?x=1", "settings": {"mouth_gain": 0.8}}
        running.agent.avatars.at_address = CLIP
        answer = await running.http.post("/avatars", json=order)
        assert (answer.status_code, answer.json()["name"]) == (201, "Eve")
        ready = await settled(running, answer.json()["avatar_id"])
        assert (ready["state"], ready["settings"]["mouth_gain"]) == ("ready", 0.8)
        kept = list((running.settings.avatars_dir / "sources").iterdir())
        assert [path.read_bytes() for path in kept] == [CLIP]


async def test_a_clip_that_cannot_be_used_has_failed_and_says_why() -> None:
    async with stage() as running:
        running.agent.avatars.prepare_error = ProblemError(ErrorCode.NO_FACE_IN_AVATAR, "No face.")
        avatar_id = await made(running)
        failed = await settled(running, avatar_id)
        assert (failed["state"], failed["error"]["code"]) == ("failed", "no_face_in_avatar")
        start = await running.http.post("/session/start", json={"room": "r", "avatar_id": avatar_id})
        assert (start.status_code, start.json()["code"], start.json()["field"]) == (
            422,
            "no_face_in_avatar",
            "avatar_id",
        )


async def test_avatars_are_their_makers(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(KEYS)
    async with stage(orchestrator_keys_file=keys, avatars_max=1) as running:
        avatar_id = await made(running, **ANN)
        for method, path in (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("GET", "/poster.jpg")):
            body = {"json": {"name": "x"}} if method == "PATCH" else {}
            answer = await running.http.request(method, f"/avatars/{avatar_id}{path}", headers=BOB, **body)
            assert (answer.status_code, answer.json()["code"]) == (404, "avatar_not_found")
        assert (await running.http.get("/avatars", headers=BOB)).json()["avatars"] == []
        start = {"room": "r", "avatar_id": avatar_id}
        assert (await running.http.post("/session/start", json=start, headers=BOB)).status_code == 404
        more = await running.http.post("/avatars", content=CLIP, headers=ANN)
        assert (more.status_code, more.json()["code"], more.json()["limit"]) == (429, "quota_exceeded", 1)
        assert await made(running, **BOB) != avatar_id


async def test_a_key_makes_one_avatar_of_one_body_also_after_a_restart(tmp_path: Path) -> None:
    async def add(running: Stage, content: bytes) -> httpx.Response:
        return await running.http.post("/avatars", content=content, headers={"Idempotency-Key": "k"})

    async with stage(avatars_dir=tmp_path) as running:
        first = (await add(running, CLIP)).json()["avatar_id"]
        assert (await add(running, CLIP)).json()["avatar_id"] == first
        other = await add(running, CLIP + b"x")
        assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")
        await settled(running, first)
    async with stage(avatars_dir=tmp_path) as running:
        assert (await running.http.get(f"/avatars/{first}")).json()["state"] == "ready"
        assert (await add(running, CLIP)).json()["avatar_id"] == first


async def test_a_preparation_goes_on_after_a_restart(tmp_path: Path) -> None:
    async with stage(avatars_dir=tmp_path) as running:
        running.agent.avatars.may_prepare.clear()
        avatar_id = await made(running)
    async with stage(avatars_dir=tmp_path) as running:
        assert (await settled(running, avatar_id))["state"] == "ready"
        assert running.agent.avatars.clips == {DIGEST: CLIP}, "another agent gets the clip"


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"mouth_gain": 40}, "settings.mouth_gain"),
        ({"background": "black"}, "settings.background"),
        ({"background": "image:file:///etc/passwd"}, "settings.background"),
        ({"background": "#12345"}, "settings.background"),
        ({"smile": 1}, "settings.smile"),
        ({"av_offset_ms": -201}, "settings.av_offset_ms"),
    ],
)
async def test_settings_that_are_none_are_named(settings: dict[str, Any], field: str) -> None:
    async with stage() as running:
        avatar_id = await made(running)
        refused = await running.http.patch(f"/avatars/{avatar_id}", json={"settings": settings})
        assert (refused.status_code, refused.json()["code"], refused.json()["field"]) == (422, "invalid_request", field)
        order = {"url": "https://example.com/a.mp4", "settings": settings}
        refused = await running.http.post("/avatars", json=order)
        assert (refused.status_code, refused.json()["field"]) == (422, field)


async def test_other_artefacts_are_made_before_it_is_ready_again() -> None:
    async with stage() as running:
        avatar_id = await made(running)
        await settled(running, avatar_id)
        running.agent.avatars.may_prepare.clear()
        changed = await running.http.patch(f"/avatars/{avatar_id}", json={"settings": {"bbox_shift": 7}})
        assert changed.json()["state"] == "preparing"
        running.agent.avatars.may_prepare.set()
        await settled(running, avatar_id)
        assert running.agent.avatars.prepared[-1].avatar_settings.bbox_shift == 7
        back = await running.http.patch(f"/avatars/{avatar_id}", json={"settings": {"bbox_shift": None}})
        assert back.json()["settings"]["bbox_shift"] is None
        await settled(running, avatar_id)


async def test_the_list_is_paged() -> None:
    async with stage() as running:
        ids = [await made(running, CLIP + bytes([n])) for n in range(3)]
        page = (await running.http.get("/avatars", params={"limit": 2})).json()
        assert [each["avatar_id"] for each in page["avatars"]] == [ids[2], ids[1]]
        rest = (await running.http.get("/avatars", params={"limit": 2, "after": page["next"]})).json()
        assert ([each["avatar_id"] for each in rest["avatars"]], rest["next"]) == ([ids[0]], None)
        wrong = await running.http.get("/avatars", params={"after": "ava_0"})
        assert (wrong.status_code, wrong.json()["field"]) == (422, "after")


async def test_one_that_is_deleted_while_it_is_prepared_is_gone() -> None:
    async with stage() as running:
        running.agent.avatars.may_prepare.clear()
        avatar_id = await made(running)
        await until(lambda: running.agent.avatars.prepared)
        assert (await running.http.delete(f"/avatars/{avatar_id}")).status_code == 204
        running.agent.avatars.may_prepare.set()
        assert (await running.http.get(f"/avatars/{avatar_id}")).status_code == 404


async def test_another_avatar_is_shown_in_the_session_and_after_a_move() -> None:
    async with stage(agents=2) as running:
        first, second = await made(running), await made(running, CLIP + b"2")
        await settled(running, first), await settled(running, second)
        await running.http.patch(f"/avatars/{second}", json={"settings": {"mouth_gain": 1.4, "av_offset_ms": 90}})
        started = await running.start(avatar_id=first, avatar_settings={"av_offset_ms": 40})
        path = f"/session/{started['session_id']}"
        answer = await running.http.post(f"{path}/avatar", json={"avatar_id": second})
        assert (answer.status_code, answer.json()["avatar"]["avatar_id"]) == (200, second)
        (shown,) = running.agent.avatars.shown
        assert (shown.avatar_settings.mouth_gain, shown.avatar_settings.av_offset_ms) == (1.4, 40)
        assert (await running.http.get(path)).json()["avatar_id"] == second
        assert (await running.http.delete(f"/avatars/{first}")).status_code == 204
        assert (await running.http.delete(f"/avatars/{second}")).json()["code"] == "avatar_in_use"
        running.agent.sessions.clear()  # the agent has forgotten it
        await running.agent.cut()

        async def moved() -> bool:
            return (await running.http.get(path)).json()["moves"] == 1 and bool(running.agent.sessions)

        for socket in list(running.agent.every_socket):
            await socket.close(1012)
        await until(moved)
        assert running.agent.only.request.avatar == shown.avatar, "it moves with the face that it shows"


async def test_what_cannot_be_shown_leaves_the_old_avatar() -> None:
    async with stage() as running:
        avatar_id = await made(running)
        await settled(running, avatar_id)
        path = f"/session/{(await running.start(avatar_id=avatar_id))['session_id']}"
        for body, code in (
            ({}, "avatar_missing"),
            ({"avatar_id": "ava_000000000000000000000000"}, "avatar_not_found"),
            ({"avatar_id": avatar_id, "avatar_settings": {"mouth_gain": 9}}, "invalid_request"),
        ):
            assert (await running.http.post(f"{path}/avatar", json=body)).json()["code"] == code
        running.agent.avatars.needs_clips = True
        gone = await running.http.post(f"{path}/avatar", json={"avatar_id": "sha256:00"})
        assert (gone.status_code, gone.json()["code"]) == (404, "avatar_not_found")
        assert running.agent.avatars.shown == []
        assert (await running.http.get(path)).json()["avatar_id"] == avatar_id
        running.agent.avatars.clips.clear()
        assert (await running.http.post(f"{path}/avatar", json={"avatar_id": avatar_id})).status_code == 200
        await running.http.post(f"{path}/stop")
        over = await running.http.post(f"{path}/avatar", json={"avatar_id": avatar_id})
        assert (over.status_code, over.json()["code"]) == (409, "session_ended")


async def test_two_changes_at_once_come_one_after_the_other() -> None:
    async with stage() as running:
        ids = [await made(running, CLIP + bytes([n])) for n in range(3)]
        for each in ids:
            await settled(running, each)
        path = f"/session/{(await running.start(avatar_id=ids[0]))['session_id']}"
        running.agent.avatars.may_show.clear()
        first = asyncio.create_task(running.http.post(f"{path}/avatar", json={"avatar_id": ids[1]}))
        second = asyncio.create_task(running.http.post(f"{path}/avatar", json={"avatar_id": ids[2]}))
        running.agent.avatars.may_show.set()
        assert [(await each).status_code for each in (first, second)] == [200, 200]
        last = running.agent.avatars.shown[-1].avatar.avatar_id
        clips = {path.name: path.read_bytes() for path in (running.settings.avatars_dir / "sources").iterdir()}
        shown = (await running.http.get(path)).json()["avatar_id"]
        assert clips[str(last).removeprefix("sha256:")][-1] == ids.index(shown), "what is said is what is shown"


async def test_a_clip_is_compared_kept_played_and_removed() -> None:
    async with stage() as running:
        avatar_id = await made(running)
        await settled(running, avatar_id)
        clips = f"/avatars/{avatar_id}/clips"
        first = await running.http.put(f"{clips}/wave", content=b"waving", headers={"X-Filename": "w.mp4"})
        assert first.status_code == 201, first.text
        assert first.json()["clips"][1:] == [{"name": "wave", "frames": 100, "cached": True}]
        asked = running.agent.avatars.prepared[-1]
        assert asked.clip_of is not None and asked.clip_of.avatar_id == DIGEST
        running.agent.avatars.at_address = b"waving better"
        again = await running.http.put(f"{clips}/wave", json={"url": "https://example.com/wave.mp4"})
        assert (again.status_code, len(again.json()["clips"])) == (200, 2)
        sources = running.settings.avatars_dir / "sources"
        assert sorted(path.read_bytes() for path in sources.iterdir()) == sorted([CLIP, b"waving better"])
        path = f"/session/{(await running.start(avatar_id=avatar_id))['session_id']}"
        played = await running.http.post(f"{path}/action", json={"name": "wave", "loop": True})
        assert (played.status_code, played.json()["loop"]) == (202, True)
        wave = "sha256:" + hashlib.sha256(b"waving better").hexdigest()
        assert [(a.avatar.avatar_id, a.loop) for a in running.agent.avatars.played] == [(wave, True)]
        assert (await running.http.post(f"{path}/action", json={"name": "idle"})).status_code == 202
        assert running.agent.avatars.played[-1].avatar.empty
        running.agent.avatars.clips.clear()
        running.agent.avatars.needs_clips = True
        assert (await running.http.post(f"{path}/action", json={"name": "wave"})).status_code == 202, "it gets the clip"
        assert (await running.http.delete(f"{clips}/wave")).status_code == 204
        for answer in (
            await running.http.delete(f"{clips}/wave"),
            await running.http.post(f"{path}/action", json={"name": "wave"}),
        ):
            assert (answer.status_code, answer.json()["code"]) == (404, "clip_not_found")
        assert [path.read_bytes() for path in sources.iterdir()] == [CLIP]


async def test_a_clip_that_does_not_fit_leaves_nothing() -> None:
    async with stage() as running:
        avatar_id = await made(running)
        await settled(running, avatar_id)
        clips = f"/avatars/{avatar_id}/clips"
        running.agent.avatars.prepare_error = ProblemError(ErrorCode.CLIP_MISMATCH, "Somebody else.")
        refused = await running.http.put(f"{clips}/wave", content=b"waving")
        assert (refused.status_code, refused.json()["code"]) == (422, "clip_mismatch")
        assert len(list((running.settings.avatars_dir / "sources").iterdir())) == 1
        for name in ("idle", "Wave", "w" * 33):
            wrong = await running.http.put(f"{clips}/{name}", content=b"waving")
            assert (wrong.status_code, wrong.json()["field"]) == (422, "name")
        assert (await running.http.delete(f"{clips}/idle")).status_code == 422


async def test_an_avatar_that_is_not_of_the_library_has_no_clips() -> None:
    async with stage() as running:
        path = f"/session/{(await running.start(avatar_id='demo'))['session_id']}"
        answer = await running.http.post(f"{path}/action", json={"name": "wave"})
        assert (answer.status_code, answer.json()["code"]) == (404, "clip_not_found")


async def test_clips_follow_the_conversation() -> None:
    async with stage() as running:
        avatar_id = await made(running)
        await settled(running, avatar_id)
        names = {}
        for name in ("listening", "thinking"):
            await running.http.put(f"/avatars/{avatar_id}/clips/{name}", content=name.encode())
            names["sha256:" + hashlib.sha256(name.encode()).hexdigest()] = name
        session_id = (await running.start(avatar_id=avatar_id))["session_id"]
        publish, played = running.app.state.context.events.publish, running.agent.avatars.played

        def seen() -> list[str]:
            return [names.get(action.avatar.avatar_id or "", "idle") for action in played]

        publish(session_id, "reply.started", {})
        story: list[str] = []
        for kind, data, clip in (
            ("user.started", {}, "listening"),
            ("conversation.state", {"state": "thinking"}, "thinking"),
            ("conversation.state", {"state": "speaking"}, "idle"),
            ("user.started", {}, "listening"),
            ("conversation.state", {"state": "listening"}, "idle"),
        ):
            publish(session_id, kind, data)
            story.append(clip)
            await until(lambda: len(played) >= len(story))
        assert seen() == story
        assert [action.loop for action in played] == [clip != "idle" for clip in story]


async def test_an_avatar_without_such_clips_stays_idle() -> None:
    async with stage() as running:
        avatar_id = await made(running)
        await settled(running, avatar_id)
        session_id = (await running.start(avatar_id=avatar_id))["session_id"]
        for kind in ("user.started", "reply.started"):
            running.app.state.context.events.publish(session_id, kind, {})
        await turns()
        await running.http.get(f"/session/{session_id}")
        assert running.agent.avatars.played == []


async def test_an_avatar_that_is_transparent_in_films_is_shown_in_sessions_as_it_is() -> None:
    async with stage() as running:
        avatar_id = await made(running)
        changed = await running.http.patch(f"/avatars/{avatar_id}", json={"settings": {"background": "transparent"}})
        assert changed.status_code == 200 and changed.json()["state"] == "preparing", "it needs a matte"
        await settled(running, avatar_id)
        assert running.agent.avatars.prepared[-1].avatar_settings.background == "transparent"
        started = await running.start(avatar_id=avatar_id)
        assert running.agent.only.request.avatar_settings.background == "keep" and started["alpha"] is None
        asked = await running.http.post(
            f"/session/{started['session_id']}/avatar",
            json={"avatar_id": avatar_id, "avatar_settings": {"background": "transparent"}},
        )
        assert (asked.status_code, asked.json()["field"]) == (422, "avatar_settings.background")
        blurred = await running.http.patch(f"/avatars/{avatar_id}", json={"settings": {"background": "blur"}})
        assert blurred.json()["state"] == "ready", "the same matte serves"

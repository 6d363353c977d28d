"""Films of whole rooms: LiveKit's Egress on the wire, by the same routes as the avatar's film."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from livekit import api

from orchestrator.recording import films, room_films
from orchestrator.recording.film_store import FolderStore, StoreFailed
from tests.fakes.film_parts import part
from tests.fakes.stage import Stage, stage
from tests.waiting import until

ROOM = {"state": "recording", "of": "room"}
STOPPED = {"state": "stopped"}
FILM = part().header + b"".join(part().fragments)


@pytest.fixture
async def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    monkeypatch.setattr(room_films, "LOOK_S", 0.01)
    (tmp_path / "egress").mkdir()
    async with stage(egress_dir=tmp_path / "egress", recording_dir=tmp_path / "films") as running:
        running.rooms.egress = FILM
        yield running


async def recorded(here: Stage, session_id: str, **body: Any) -> dict[str, Any]:
    """The answer of one that is taken."""
    answer = await here.http.post(f"/session/{session_id}/recording", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def refused(here: Stage, session_id: str, **body: Any) -> dict[str, Any]:
    """The problem of one that is not."""
    answer = await here.http.post(f"/session/{session_id}/recording", json=body)
    assert answer.status_code >= 400, answer.text
    return dict(answer.json())


async def test_a_room_is_recorded_and_its_film_is_fetched_as_the_avatars(here: Stage, tmp_path: Path) -> None:
    session_id = (await here.start(room="shop"))["session_id"]
    assert (await here.http.get(f"/session/{session_id}/recording")).json()["choices"] == ["avatar", "room"]
    reported = await recorded(here, session_id, **ROOM)
    assert (reported["state"], reported["of"], reported["url"], reported["error"]) == ("recording", "room", None, None)
    assert await recorded(here, session_id, **ROOM) == reported
    (asked,) = here.rooms.egresses.values()
    (output,) = asked.room_composite.file_outputs
    assert asked.room_name == "shop" and output.file_type == api.EncodedFileType.MP4
    assert output.filepath == str(tmp_path / "egress" / f"{session_id}.mp4")
    reported = await recorded(here, session_id, **STOPPED)
    assert (reported["state"], reported["seconds"], reported["bytes"], reported["parts"]) == (
        "stopped",
        12.5,
        len(FILM),
        1,
    )
    film = await here.http.get(reported["url"])
    assert film.content == FILM and not Path(output.filepath).exists()
    some = await here.http.get(reported["url"], headers={"Range": "bytes=10-19"})
    assert (some.status_code, some.content) == (206, FILM[10:20])


async def test_one_session_has_one_film_until_it_is_deleted(here: Stage) -> None:
    session_id = (await here.start())["session_id"]
    await recorded(here, session_id, **ROOM)
    problem = await refused(here, session_id, state="recording")
    assert problem["code"] == "session_conflict" and "of its room" in problem["detail"]
    await recorded(here, session_id, **STOPPED)
    assert (await refused(here, session_id, **ROOM))["code"] == "session_conflict"
    assert (await here.http.delete(f"/session/{session_id}/recording")).status_code == 204
    await recorded(here, session_id, state="recording")
    here.agent.films.grow(5)
    assert (await refused(here, session_id, **ROOM))["code"] == "session_conflict"


async def test_a_recording_that_cannot_be_stored_is_not_begun(here: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: object) -> None:
        raise StoreFailed("no space left on device")

    session_id = (await here.start(room="shop"))["session_id"]
    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "save", full)
        await refused(here, session_id, **ROOM)
    (egress,) = here.rooms.egresses.values()
    assert egress.status != api.EgressStatus.EGRESS_ACTIVE, "it would record until its room is empty"
    assert (await recorded(here, session_id, **ROOM))["state"] == "recording"


async def test_one_that_is_deleted_while_it_is_recorded_is_ended(here: Stage) -> None:
    session_id = (await here.start())["session_id"]
    await recorded(here, session_id, **ROOM)
    assert (await here.http.delete(f"/session/{session_id}/recording")).status_code == 204
    assert (await here.http.get(f"/session/{session_id}/recording")).json()["state"] == "none"
    reported = await recorded(here, session_id, **ROOM)
    assert reported["state"] == "recording" and len(here.rooms.egresses) == 2


async def test_the_session_ends_and_the_film_comes_when_egress_has_written_it(
    here: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(films, "END_S", 0.05)
    session_id = (await here.start())["session_id"]
    await recorded(here, session_id, **ROOM)
    ready = here.app.state.context.events.subscribe(session_id)
    here.rooms.egress_writes = False
    assert (await here.http.post(f"/session/{session_id}/stop")).status_code == 200
    reported = (await here.http.get(f"/session/{session_id}/recording")).json()
    assert (reported["state"], reported["url"]) == ("stopped", None)
    here.rooms.egress_writes = True

    async def there() -> bool:
        return bool((await here.http.get(f"/session/{session_id}/recording")).json()["bytes"])

    await until(there)
    assert (await here.http.get(f"/session/{session_id}/recording.mp4")).content == FILM
    assert [event for event in ready._waiting if "recording.ready" in event.text]


async def test_another_process_fetches_what_the_first_one_could_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(films, "END_S", 0.05)
    (tmp_path / "egress").mkdir()
    settings: dict[str, Any] = {"egress_dir": tmp_path / "egress", "recording_dir": tmp_path / "films"}
    async with stage(**settings) as first:
        first.rooms.egress, first.rooms.egress_writes = FILM, False
        session_id = (await first.start())["session_id"]
        await recorded(first, session_id, **ROOM)
        await first.http.post(f"/session/{session_id}/stop")
        egresses = first.rooms.egresses
    async with stage(**settings) as second:
        second.rooms.egress, second.rooms.egresses = FILM, egresses
        store = second.app.state.context.films

        async def there() -> bool:
            found = await store.find(session_id)
            return found is not None and found.size == len(FILM)

        await until(there)


async def test_a_film_that_egress_could_not_make_says_why(here: Stage) -> None:
    session_id = (await here.start())["session_id"]
    await recorded(here, session_id, **ROOM)
    here.rooms.egress_error = "no space left on device"
    reported = await recorded(here, session_id, **STOPPED)
    assert reported["state"] == "stopped" and reported["url"] is None and "no space left on device" in reported["error"]
    assert (await here.http.get(f"/session/{session_id}/recording.mp4")).status_code == 404
    assert (await here.http.delete(f"/session/{session_id}/recording")).status_code == 204
    here.rooms.egress_error = ""
    assert (await recorded(here, session_id, **ROOM))["state"] == "recording"


async def test_a_deployment_without_egress_says_so(here: Stage) -> None:
    session_id = (await here.start())["session_id"]
    here.rooms.egress = None
    problem = await refused(here, session_id, **ROOM)
    assert (problem["code"], problem["field"]) == ("recording_unavailable", "of")
    assert "no Redis" in problem["detail"] and "leave `of` out" in problem["detail"]
    assert (await here.http.get(f"/session/{session_id}/recording")).json()["state"] == "none"
    here.rooms.egress = FILM
    assert (await recorded(here, session_id, **ROOM))["state"] == "recording"


async def test_without_its_folder_no_room_is_recorded(running: Stage) -> None:
    session_id = (await running.start())["session_id"]
    problem = await refused(running, session_id, **ROOM)
    assert problem["code"] == "recording_unavailable" and "EGRESS_DIR" in problem["detail"]

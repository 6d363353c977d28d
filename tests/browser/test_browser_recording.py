"""The page's buttons record a session and save its film, in a real Chromium, with an agent whose film grows on demand."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from orchestrator.audio.heard_speech import HeardPcm
from orchestrator.recording import films
from orchestrator.recording.film_joiner import FilmJoiner
from orchestrator.recording.speech_encoder import encode_speech
from tests.browser.chromium import Page
from tests.fakes.film_parts import part, watch
from tests.fakes.stage import API_KEY, Stage, stage
from tests.waiting import until

pytestmark = pytest.mark.browser

OPEN = """(async () => {
  const { AvatarClient } = await import(new URL('avatar-client.js', %(base)s));
  const { Recording } = await import(new URL('recording.js', %(base)s));
  globalThis.thrown = null;
  globalThis.client = new AvatarClient({ token: %(key)s });
  globalThis.recording = new Recording({ client, showError: (error) => { globalThis.thrown = error.code; } });
  recording.open(%(session)s);
  document.getElementById('controls').hidden = false;
  const make = URL.createObjectURL;
  URL.createObjectURL = (blob) => {
    void blob.arrayBuffer().then((bytes) => { globalThis.savedFilm = btoa(String.fromCharCode(...new Uint8Array(bytes))); });
    return make(blob);
  };
  HTMLAnchorElement.prototype.click = function () { globalThis.savedName = this.download; };
})()"""
# A conflict may pass, so that the page asks again, else for half a minute.
IMPATIENT = """import(new URL('retries.js', document.querySelector('script[src*=app]').src)).then(
  ({RETRIES}) => { RETRIES.call.total_s = 0.5; })"""
PLAY = """(() => {
  const bytes = Uint8Array.from(atob('%s'), (letter) => letter.charCodeAt(0));
  globalThis.video = document.createElement('video');
  video.muted = true;
  video.src = URL.createObjectURL(new Blob([bytes], { type: 'video/mp4' }));
  document.body.append(video);
  void video.play();
})()"""
PRESSED = "document.getElementById('record').getAttribute('aria-pressed') === '%s' && !document.getElementById('record').disabled"
HIDDEN = "String(document.getElementById('%s').hidden) === '%s'"
TEXT = "document.getElementById(%r).textContent"


async def opened(page: Page, here: Stage) -> str:
    """A session, and the page with its buttons for it."""
    session_id = str((await here.start())["session_id"])
    await page.open(f"{here.url}/")
    base = "document.querySelector('script[src*=app]').src"
    await page.run(OPEN % {"base": base, "key": json.dumps(API_KEY), "session": json.dumps(session_id)})
    return session_id


async def saved(page: Page) -> tuple[str, bytes]:
    """What the download button saves: name and bytes."""
    await page.run("globalThis.savedFilm = globalThis.savedName = null, document.getElementById('film').click()")
    name, content = await page.until(
        "globalThis.savedFilm && globalThis.savedName && [globalThis.savedName, globalThis.savedFilm]"
    )
    return name, base64.b64decode(content)


async def test_record_download_stop_and_download_again(page: Page) -> None:
    async with stage() as here:
        session_id = await opened(page, here)
        assert await page.run(TEXT % "record") == "Record" and await page.run("document.getElementById('film').hidden")
        await page.click("#record")
        await page.until(PRESSED % "true")
        assert await page.run(TEXT % "record") == "Stop recording"
        here.agent.films.grow(13)
        await page.until("!document.getElementById('film').hidden")  # the page looks by itself
        name, growing = await saved(page)
        assert name == f"{session_id}.mp4" and len(watch(growing).times) == 26
        here.agent.films.grow(13)
        await page.until(PRESSED % "true")
        await page.click("#record")
        await page.until(PRESSED % "false")
        assert "2 s" in await page.run(TEXT % "film")
        await here.http.post(f"/session/{session_id}/stop")
        await page.run("recording.close()")
        _, whole = await saved(page)  # after the session's end
        assert whole.startswith(growing) and len(watch(whole).times) == 52
        await page.run(f"client.deleteRecording({session_id!r})")
        assert (await here.http.get(f"/session/{session_id}/recording.mp4")).status_code == 404
        await page.run("document.getElementById('film').click()")
        await page.until("thrown === 'recording_not_found'")


async def test_a_film_is_deleted_by_pressing_twice(page: Page) -> None:
    async with stage() as here:
        session_id = await opened(page, here)
        await page.click("#record")
        await page.until(PRESSED % "true")
        here.agent.films.grow(13)
        await page.until(HIDDEN % ("film-delete", "false"))
        await page.click("#record")
        await page.until(PRESSED % "false")
        await page.click("#film-delete")
        assert await page.run(TEXT % "film-delete") == "Delete the film for good"
        assert (await here.http.get(f"/session/{session_id}/recording.mp4")).status_code == 200
        await page.click("#film-delete")
        await page.until(HIDDEN % ("film-delete", "true"))
        assert await page.run("document.getElementById('film').hidden")
        assert (await here.http.get(f"/session/{session_id}/recording.mp4")).status_code == 404


async def test_a_session_that_ends_while_it_is_recorded_leaves_its_film(page: Page) -> None:
    async with stage() as here:
        session_id = await opened(page, here)
        await page.click("#record")
        await page.until(PRESSED % "true")
        here.agent.films.grow(13)

        async def grown() -> bool:
            return bool((await here.http.get(f"/session/{session_id}/recording")).json()["bytes"])

        await until(grown)
        await here.http.post(f"/session/{session_id}/stop")
        await page.run("recording.close()")
        await page.until(PRESSED % "false")
        assert len(watch((await saved(page))[1]).times) == 26


async def test_a_room_is_recorded_where_the_deployment_can(page: Page, tmp_path: Path) -> None:
    made = part()
    film = made.header + b"".join(made.fragments)
    (tmp_path / "egress").mkdir()
    async with stage(egress_dir=tmp_path / "egress", recording_dir=tmp_path / "films") as here:
        here.rooms.egress = film
        session_id = await opened(page, here)
        await page.until(HIDDEN % ("record-room", "false"))
        await page.click("#record-room")
        await page.until(PRESSED % "true")
        assert await page.run(TEXT % "record") == "Stop recording"
        assert await page.run("document.getElementById('record-room').hidden"), "one thing is recorded at a time"
        assert (await here.http.get(f"/session/{session_id}/recording")).json()["of"] == "room"
        await page.click("#record")
        await page.until(PRESSED % "false")
        await page.until(HIDDEN % ("film", "false"))
        assert (await saved(page))[1] == film
        await page.run(IMPATIENT)
        await page.click("#record")
        await page.until("thrown === 'session_conflict'")  # a session has one film


async def test_a_film_of_a_room_that_never_comes_is_an_error_on_the_page(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(films, "END_S", 0.05)
    (tmp_path / "egress").mkdir()
    async with stage(egress_dir=tmp_path / "egress", recording_dir=tmp_path / "films") as here:
        here.rooms.egress, here.rooms.egress_error, here.rooms.egress_writes = b"film", "the disk is full", False
        await opened(page, here)
        await page.until(HIDDEN % ("record-room", "false"))
        await page.click("#record-room")
        await page.until(PRESSED % "true")
        await page.click("#record")
        await page.until(PRESSED % "false")
        assert await page.run("document.getElementById('film').hidden"), "Egress has not written it"
        here.rooms.egress_writes = True
        await page.until("thrown === 'recording_unavailable'")  # the page goes on looking


@pytest.mark.network
async def test_a_room_is_not_offered_where_there_is_no_egress(page: Page) -> None:
    async with stage() as here:
        await opened(page, here)
        await page.until("recording.reported !== null")
        assert await page.run("document.getElementById('record-room').hidden")


@pytest.mark.network
async def test_a_film_plays_over_speech_that_no_agent_showed(page: Page) -> None:
    made, joiner = part(), FilmJoiner()
    film = joiner.begin(made.header) + b"".join(map(joiner.add, made.fragments[:10]))
    film += joiner.say(encode_speech([HeardPcm(1, 16_000, 0, bytes(2 * 2 * 16_000))]))
    film += joiner.begin(made.header) + b"".join(map(joiner.add, made.fragments))
    await page.open("about:blank")
    await page.run(PLAY % base64.b64encode(film).decode())
    ended, error, seconds, at = await page.until(
        "(video.ended || video.error) && [video.ended, !!video.error, video.duration, video.currentTime]"
    )
    assert ended and not error and seconds == at == pytest.approx(0.8 + 2.0 + 3.0, abs=0.15)

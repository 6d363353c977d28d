"""What the agent records: its encoder process, what is cleared, what is left out, and what happens when it dies."""

from __future__ import annotations

import asyncio
import io
import json
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from musetalk_agent.clock import MonotonicClock
from musetalk_agent.errors import RecordingFailed
from musetalk_agent.protocol.http import FILM_CLOCK, FILM_ENTRY, FILM_LOG, FILM_SPOKEN, FilmEntry, FilmPart
from musetalk_agent.publishers.film import film as film_module
from musetalk_agent.publishers.film import recorder
from musetalk_agent.publishers.film.film import SessionFilm
from musetalk_agent.publishers.film.fragment_log import FragmentLog
from musetalk_agent.publishers.film.recorder import PartOptions, part_bitrate
from musetalk_agent.publishers.film.worker import IdleCut, PieceSplitter, encode
from musetalk_agent.publishers.stream.encoder import QueuedAudio, QueuedFrame
from musetalk_agent.publishers.stream.records import audio_record, bitrate_record, end_record, frame_head, read_records
from tests.fakes.film_parts import FPS, HEIGHT, RATE, WIDTH, part, picture, pieces, sound, watch
from tests.musetalk_agent.service.served import agent
from tests.waiting import NEVER_S, until

OPTIONS = PartOptions(WIDTH, HEIGHT, FPS)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is waited for."""
    monkeypatch.setattr(recorder, "_READY_S", NEVER_S)


@asynccontextmanager
async def filming(options: PartOptions = OPTIONS) -> AsyncIterator[SessionFilm]:
    film = SessionFilm(MonotonicClock())
    try:
        await film.record(options)
        yield film
    finally:
        await film.aclose()


async def offer(film: SessionFilm, seconds: float, begun: float, *, silent: bool = False) -> None:
    """Tones and pictures in real time, sound 60 ms ahead, as a publisher has them."""
    clock = MonotonicClock()
    for number in range(round(seconds * FPS)):
        at = begun + number / FPS
        await clock.sleep_until(at)
        block = sound(at + 0.06, RATE // FPS, begun)
        film.offer_audio(at + 0.06, 0 * block if silent else block)
        film.offer_video(at, picture(at, begun))


def encoders() -> set[int]:
    """Ids of this process's encoders of films that run."""
    return {
        child.pid
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and "musetalk_agent.publishers.film.worker" in child.cmdline()
    }


def bytes_of(film: SessionFilm) -> bytes:
    return b"".join(e.payload for e in film.entries.after(0) if e.kind in (FilmEntry.HEADER, FilmEntry.FRAGMENT))


async def test_what_is_heard_and_seen_is_in_the_film_in_step() -> None:
    async with filming() as film:
        await offer(film, 2.1, MonotonicClock().now())
    kinds = [entry.kind for entry in film.entries.after(0)]
    assert kinds[0] is FilmEntry.HEADER and kinds[-2:] == [FilmEntry.END, FilmEntry.CLOSED]
    reported = FilmPart.model_validate_json(film.entries.after(0)[-2].payload)
    seen = watch(bytes_of(film))
    assert len(seen.times) == reported.frames
    assert len(seen.bursts) == 4 and reported.lost_audio == 0
    if not reported.dropped:  # a machine that is too busy drops pictures, and counts them
        assert max(map(abs, seen.skews_ms)) <= 40


async def test_what_is_cleared_before_it_is_heard_is_in_no_film() -> None:
    async with filming() as film:
        now = MonotonicClock().now()
        film.offer_audio(now + 30, sound(0.25, RATE // 25))
        film.clear_audio(now + 1)
        film.offer_video(now, picture(0.0))
    assert watch(bytes_of(film)).bursts == []


async def test_idle_time_is_left_out_where_that_is_asked_for() -> None:
    async with filming(PartOptions(WIDTH, HEIGHT, FPS, skip_idle=True)) as film:
        begun = MonotonicClock().now()
        await offer(film, 1.0, begun, silent=True)
        await offer(film, 0.6, begun + 1.0)
        await offer(film, 2.0, begun + 1.6, silent=True)
    seen = watch(bytes_of(film))
    assert seen.bursts and seen.times[-1] < 2.0


def test_the_encoder_tells_when_what_is_heard() -> None:
    source, target = io.BytesIO(), io.BytesIO()
    shape = {"width": WIDTH, "height": HEIGHT, "fps": FPS, "bitrate": 1_000_000}
    source.write(json.dumps({"shape": shape, "skip_idle": True}).encode() + b"\n")
    for number in range(50):
        at = 7.0 + number / FPS + (60.0 if number >= 25 else 0.0)
        source.write(audio_record(QueuedAudio(at, sound(number / FPS, RATE // FPS))))
        source.write(frame_head(QueuedFrame(at, picture(0.0))) + picture(0.0).i420.tobytes())
    source.write(end_record())
    source.seek(0)
    encode(source, target)
    reported = [FILM_CLOCK.unpack(each) for each in pieces(target.getvalue()).clocks]
    assert [pytest.approx(each, abs=0.002) for each in reported] == [(0.0, 7.0), (1.0, 67.0)]


async def test_the_log_says_which_speech_is_heard_when() -> None:
    async with filming() as film:
        film.note_spoken(10.0, 1, 0.0)
        film.note_spoken(10.04, 1, 0.04)
        film.note_spoken(10.085, 1, 0.08)  # the clock is known to some milliseconds
        film.note_spoken(math.inf, 1, 0.12)
        film.note_spoken(10.5, 1, 0.12)  # a pause
        film.note_spoken(11.0, 2, 3.0)
        await film.stop()
        film.note_spoken(12.0, 3, 0.0)
        await film.record(OPTIONS)
    reported = [FILM_SPOKEN.unpack(e.payload) for e in film.entries.after(0) if e.kind is FilmEntry.SPOKEN]
    assert reported == [(0.0, 0, 0.0), (10.0, 1, 0.0), (10.5, 1, 0.12), (11.0, 2, 3.0), (12.0, 3, 0.0)]


def test_gaps_are_cut_out_and_both_tracks_with_them() -> None:
    cut = IdleCut()
    assert cut.place(10.0, 0.04) == 10.0
    assert cut.place(10.04, 0.02) == 10.04
    assert cut.place(15.0, 0.04) == pytest.approx(10.06)
    assert cut.place(15.01, 0.04) == pytest.approx(10.07)
    assert cut.place(14.99, 0.04) == pytest.approx(10.05)  # a little earlier than what came before


async def test_an_encoder_that_is_killed_is_started_again_with_another_part() -> None:
    async with filming() as film:
        clock = MonotonicClock()
        await offer(film, 0.6, clock.now())
        recorder = film._part
        assert recorder is not None and recorder._process is not None
        recorder._process.kill()
        await until(lambda: film._part is not recorder)
        await offer(film, 0.6, clock.now())
    kinds = [entry.kind for entry in film.entries.after(0)]
    assert kinds.count(FilmEntry.HEADER) == kinds.count(FilmEntry.END) == 2


async def test_recording_twice_is_one_part_and_after_the_end_there_is_none() -> None:
    async with filming() as film:
        await film.record(OPTIONS)
        assert film.recording
        await film.stop()
        await film.stop()
        assert not film.recording
        film.offer_video(0.0, picture(0.0))  # nobody takes it
    await film.record(OPTIONS)
    assert not film.recording and film.entries.closed
    assert [e.kind for e in film.entries.after(0)][-1] is FilmEntry.CLOSED


@pytest.mark.parametrize("point", ["before the process", "while it starts", "before it is ready"])
async def test_a_start_that_is_cancelled_leaves_no_process(point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    film, before, reached, create = (
        SessionFilm(MonotonicClock()),
        encoders(),
        asyncio.Event(),
        asyncio.create_subprocess_exec,
    )

    async def creating(*command: Any, **given: Any) -> asyncio.subprocess.Process:
        if point == "before it is ready":
            process = await create(*command, **given)
            reached.set()
            return process
        reached.set()
        if point == "before the process":
            await asyncio.Event().wait()
        return await create(*command, **given)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", creating)
    starting = asyncio.create_task(film.record(OPTIONS))
    await reached.wait()
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    assert starting.cancelled() and not film.recording
    await film.aclose()
    await until(lambda: encoders() == before)


async def test_an_encoder_that_is_not_ready_in_time_is_refused_and_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recorder, "_READY_S", 0.0)
    film, before = SessionFilm(MonotonicClock()), encoders()
    with pytest.raises(RecordingFailed, match="did not start"):
        await film.record(OPTIONS)
    assert encoders() == before and not film.recording
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "film-reader"]
    await film.aclose()


async def not_begun(monkeypatch: pytest.MonkeyPatch) -> SessionFilm:
    """A film from the start of a session, whose encoder is never ready in time and started again at once."""
    monkeypatch.setattr(film_module, "_AGAIN_S", 0.0)
    monkeypatch.setattr(recorder, "_READY_S", 0.0)
    film = SessionFilm(MonotonicClock())
    with pytest.raises(RecordingFailed):
        await film.record(OPTIONS, again=True)
    return film


async def test_a_session_whose_encoder_did_not_start_is_recorded_from_the_next_start_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = encoders()
    film = await not_begun(monkeypatch)
    assert film.recording
    monkeypatch.setattr(recorder, "_READY_S", NEVER_S)
    await until(lambda: film._part is not None)
    await film.aclose()
    kinds = [entry.kind for entry in film.entries.after(0)]
    assert kinds[-2:] == [FilmEntry.END, FilmEntry.CLOSED] and kinds.count(FilmEntry.SPOKEN) == 1
    assert encoders() == before and not film.recording


async def test_an_encoder_that_never_starts_is_given_up_and_may_be_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = encoders()
    film = await not_begun(monkeypatch)
    await until(lambda: not film.recording)
    with pytest.raises(RecordingFailed):
        await film.record(OPTIONS)
    await film.aclose()
    assert encoders() == before and [entry.kind for entry in film.entries.after(0)] == [FilmEntry.CLOSED]


def test_the_log_holds_so_much_and_says_what_is_gone() -> None:
    log = FragmentLog(most=100)
    for number in range(1, 8):
        log.add(FilmEntry.FRAGMENT, bytes([number]) * 30)
    assert [entry.number for entry in log.after(0)] == [5, 6, 7]
    log.forget(5)
    assert [entry.number for entry in log.after(0)] == [6, 7] and log.last == 7
    log.add(FilmEntry.CLOSED)
    log.add(FilmEntry.FRAGMENT, b"too late")
    assert log.after(7)[0].kind is FilmEntry.CLOSED and log.last == 8


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_pieces_are_found_in_any_portions(step: int) -> None:
    made = part()
    whole, splitter = made.header + b"".join(made.fragments[:3]), PieceSplitter()
    found = [piece for at in range(0, len(whole), step) for piece in splitter.push(whole[at : at + step])]
    assert [piece for _, piece in found] == [made.header, *made.fragments[:3]]
    with pytest.raises(ValueError, match="box"):
        list(PieceSplitter().push(bytes(8)))


def test_records_are_read_as_they_were_written_and_a_broken_one_is_the_end() -> None:
    frame = picture(0.0)
    written = audio_record(QueuedAudio(1.5, sound(0.25, 480))) + bitrate_record(9000)
    written += frame_head(QueuedFrame(2.5, frame, key=True)) + frame.i420.tobytes()

    def read(data: bytes) -> Iterator[QueuedAudio | QueuedFrame | int]:
        return read_records(io.BytesIO(data))

    heard, bitrate, seen = read(written + end_record() + b"more")
    assert isinstance(heard, QueuedAudio) and heard.at == 1.5 and len(heard.block) == 480
    assert isinstance(seen, QueuedFrame) and (seen.at, seen.key, seen.frame.width) == (2.5, True, WIDTH)
    assert bitrate == 9000
    assert len(list(read(written[:-1]))) == 2


def test_frames_of_another_size_are_scaled_to_the_films() -> None:
    source, target = io.BytesIO(), io.BytesIO()
    shape = {"width": 128, "height": 96, "fps": FPS, "bitrate": part_bitrate(128, 96)}
    source.write(json.dumps({"shape": shape, "skip_idle": False}).encode() + b"\n")
    for number in range(10):
        frame = picture(0.0)
        source.write(frame_head(QueuedFrame(number / FPS, frame)) + frame.i420.tobytes())
    source.seek(0)
    encode(source, target)
    made = pieces(target.getvalue())
    assert len(watch(made.header + b"".join(made.fragments)).times) == 10


async def test_the_agents_routes(tmp_path: Path) -> None:
    async with agent(tmp_path) as here:
        await here.start(film={"width": 64, "height": 64})
        address = "/session/s1/recording"
        again = await here.http.post(address, json={"state": "recording"})
        assert again.status_code == 200 and again.json()["entries"] >= 1

        async def stored() -> httpx.Response:
            return await here.http.get(address)

        first = await stored()
        log_id = first.headers[FILM_LOG]
        number, kind, size = FILM_ENTRY.unpack_from(first.content)
        assert (number, kind) == (1, FilmEntry.HEADER) and size > 500
        ended = (await here.http.post(address, json={"state": "stopped"})).json()
        assert ended["log_id"] == log_id
        rest = await here.http.get(address, params={"after": ended["entries"] - 1, "log_id": log_id})
        number, kind, size = FILM_ENTRY.unpack_from(rest.content)
        assert (number, kind) == (ended["entries"], FilmEntry.END)
        assert FilmPart.model_validate_json(rest.content[FILM_ENTRY.size :][:size]).frames > 0
        await here.http.post("/session/s1/stop")
        last = await stored()  # after the end, too
        assert FILM_ENTRY.unpack_from(last.content, len(last.content) - FILM_ENTRY.size)[1] == FilmEntry.CLOSED
        assert (await here.http.post(address, json={"state": "sideways"})).status_code == 422
        assert (await here.http.get("/session/nobody/recording")).status_code == 404

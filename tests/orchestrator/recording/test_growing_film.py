"""A film while it grows: which entries become bytes, what a store that fails leaves, and how far the speech is in it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from musetalk_agent.protocol.http import FILM_CLOCK, FILM_SPOKEN, FilmEntry, FilmPart
from orchestrator.recording import growing_film
from orchestrator.recording.film_joiner import SILENCE
from orchestrator.recording.film_store import FilmIndex, FolderStore, StoreFailed
from orchestrator.recording.growing_film import GrowingFilm
from tests.fakes.film_parts import part, watch

NAME = "ses_1"
LOG = "log_1"


class Store(FolderStore):
    """A folder that fails as often as is asked, before it keeps an append or an index; `holds` makes it wait."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.appends = self.saves = 0
        self.fails: dict[str, int] = {"append": 0, "save": 0}
        self.holds: asyncio.Event | None = None
        self.reached = asyncio.Event()

    async def append(self, name: str, at: int, data: bytes) -> None:
        self.appends += 1
        await self._may("append")
        await super().append(name, at, data)

    async def save(self, index: FilmIndex) -> None:
        self.saves += 1
        await self._may("save")
        await super().save(index)

    async def _may(self, call: str) -> None:
        if self.holds is not None:
            self.reached.set()
            await self.holds.wait()
        if self.fails[call]:
            self.fails[call] -= 1
            raise StoreFailed("the disk is full")


def growing(tmp_path: Path) -> tuple[GrowingFilm, Store]:
    store = Store(tmp_path)
    film = GrowingFilm(FilmIndex(session_id=NAME), store)
    film.new_log(LOG)
    return film, store


def begun(film: GrowingFilm, fragments: int = 5, first: int = 1) -> int:
    """A part's header and fragments are taken; returns the number of the last entry."""
    made = part()
    film.take(first, FilmEntry.HEADER, made.header)
    for number, fragment in enumerate(made.fragments[:fragments], first + 1):
        film.take(number, FilmEntry.FRAGMENT, fragment)
    return first + fragments


async def whole(film: GrowingFilm) -> bytes:
    return await film.read(0, film.size)


async def test_a_header_alone_is_no_film_and_a_fragment_makes_it_one(tmp_path: Path) -> None:
    film, store = growing(tmp_path)
    film.take(1, FilmEntry.HEADER, part().header)
    assert film.size == 0 and not film.due and film.index.parts == 0
    film.take(2, FilmEntry.FRAGMENT, part().fragments[0])
    assert film.size > len(part().header) and film.index.parts == 1 and film.seconds > 0
    assert watch(await whole(film)).times
    await store.aclose()


async def test_an_entry_that_comes_twice_is_taken_once(tmp_path: Path) -> None:
    film, store = growing(tmp_path)
    last, size = begun(film), film.size
    for number in (last, last - 1, 1, 0):
        film.take(number, FilmEntry.FRAGMENT, part().fragments[0])
    assert (film.entry, film.size, film.index.lost) == (last, size, 0)
    await store.aclose()


async def test_entries_that_are_missing_are_counted_and_what_follows_plays(tmp_path: Path) -> None:
    film, store = growing(tmp_path)
    last = begun(film, 5)
    film.take(last + 4, FilmEntry.FRAGMENT, part().fragments[9])
    assert film.index.lost == 3 and film.entry == last + 4
    assert len(watch(await whole(film)).times) > 5
    await store.aclose()


async def test_what_cannot_be_joined_is_left_out_counted_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    film, store = growing(tmp_path)
    last, size = begun(film, 3), film.size
    film.take(last + 1, FilmEntry.FRAGMENT, b"no fragment")
    film.take(last + 2, FilmEntry.END, b"no part")
    film.take(last + 3, FilmEntry.CLOCK, b"short")
    film.take(last + 4, FilmEntry.SPOKEN, b"short")
    assert film.index.lost == 1, "only a fragment is a piece of the film"
    assert film.size == size and film.entry == last + 4
    said = [record for record in caplog.records if record.getMessage() == "a piece of a film is left out"]
    assert len(said) == 4 and all(record.__dict__["session_id"] == NAME for record in said)
    await store.aclose()


async def test_a_part_whose_header_is_of_another_film_is_left_out_whole(tmp_path: Path) -> None:
    film, store = growing(tmp_path)
    last, size = begun(film, 3), film.size
    other = part().header.replace((90_000).to_bytes(4, "big"), (12_800).to_bytes(4, "big"))
    film.take(last + 1, FilmEntry.HEADER, other)
    for number in range(last + 2, last + 5):
        film.take(number, FilmEntry.FRAGMENT, part().fragments[0])
    assert film.size == size and film.index.lost == 3 and film.index.parts == 1
    assert begun(film, 2, last + 5) and film.index.parts == 2 and film.size > size, "the next one is joined again"
    await store.aclose()


async def test_the_end_of_a_part_says_what_its_encoder_left_out(tmp_path: Path) -> None:
    film, store = growing(tmp_path)
    last = begun(film, 2)
    for number in (1, 2):
        ended = FilmPart(frames=50, dropped=3, lost_audio=2).model_dump_json().encode()
        film.take(last + number, FilmEntry.END, ended)
    assert (film.index.frames, film.index.dropped_frames, film.index.lost_audio) == (100, 6, 4)
    await store.aclose()


async def test_what_is_stored_and_what_waits_is_one_film(tmp_path: Path) -> None:
    film, store = growing(tmp_path)
    last = begun(film, 4)
    await film.flush()
    stored = film.index.size
    assert stored == film.size and film.stored_entry == last and not film.due
    for number, fragment in enumerate(part().fragments[4:8], last + 1):
        film.take(number, FilmEntry.FRAGMENT, fragment)
    assert film.index.size == stored < film.size and film.stored_entry == last
    data = await whole(film)
    assert len(data) == film.size
    for begin, end in ((0, 10), (stored - 5, stored + 5), (stored, stored + 9), (stored + 3, film.size + 100)):
        assert await film.read(begin, end) == data[begin:end]
    await film.flush()
    assert await whole(film) == data == (tmp_path / f"{NAME}.mp4").read_bytes()
    await store.aclose()


@pytest.mark.parametrize("fails", ["append", "save"])
async def test_a_store_that_fails_loses_nothing_and_is_asked_again(tmp_path: Path, fails: str) -> None:
    film, store = growing(tmp_path)
    begun(film, 4)
    data = await whole(film)
    store.fails[fails] = 2
    for _ in range(2):
        with pytest.raises(StoreFailed, match="the disk is full"):
            await film.flush()
        assert film.index.size == 0 and film.stored_entry == 0 and await whole(film) == data
    await film.flush()
    assert film.index.size == len(data) and (tmp_path / f"{NAME}.mp4").read_bytes() == data
    kept = await store.load(NAME)
    assert kept is not None and (kept.size, kept.log_id, kept.entry) == (len(data), LOG, film.entry)
    await store.aclose()


async def test_a_flush_that_is_cancelled_is_made_again_and_what_came_meanwhile_waits(tmp_path: Path) -> None:
    film, store = growing(tmp_path)
    last = begun(film, 3)
    store.holds = asyncio.Event()
    flushing = asyncio.create_task(film.flush())
    await store.reached.wait()
    film.take(last + 1, FilmEntry.FRAGMENT, part().fragments[3])
    data = await whole(film)
    flushing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await flushing
    assert film.index.size == 0 and await whole(film) == data
    store.holds.set()
    await film.flush()
    assert (tmp_path / f"{NAME}.mp4").read_bytes() == data
    await store.aclose()


async def test_two_flushes_at_once_write_one_after_the_other(tmp_path: Path) -> None:
    film, store = growing(tmp_path)
    begun(film, 4)
    data = await whole(film)
    await asyncio.gather(film.flush(), film.flush())
    assert (tmp_path / f"{NAME}.mp4").read_bytes() == data
    assert (store.appends, store.saves) == (1, 2), "the second has nothing left to append"
    await store.aclose()


async def test_a_film_goes_on_where_another_orchestrator_stored_it(tmp_path: Path) -> None:
    film, store = growing(tmp_path)
    last = begun(film, 10)
    await film.flush()
    film.take(last + 1, FilmEntry.FRAGMENT, part().fragments[10])  # comes again, for it was not stored
    kept = await store.load(NAME)
    assert kept is not None
    next_one = GrowingFilm(kept, store)
    assert (next_one.log_id, next_one.entry) == (LOG, last)
    last = begun(next_one, 10, last + 1)
    await next_one.flush()
    assert next_one.index.parts == 2 and len(watch(await whole(next_one)).times) > len(watch(await whole(film)).times)
    await store.aclose()


async def test_it_is_due_by_its_age_or_its_size_and_full_beyond_what_may_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(growing_film, "time", SimpleNamespace(monotonic=lambda: clock.now, time=lambda: clock.now))
    film, store = growing(tmp_path)
    clock.now += 60
    assert not film.due, "there is nothing to store"
    await film.flush()
    film.extend(b"x")
    assert not film.due and not film.full
    clock.now += store.flush_s
    assert film.due
    await film.flush()
    film.extend(bytes(store.flush_bytes))
    assert film.due and not film.full
    monkeypatch.setattr(growing_film, "WAITING_BYTES", store.flush_bytes)
    assert not film.full
    film.extend(b"x")
    assert film.full
    await store.aclose()


def spoken(film: GrowingFilm, number: int, *, clock_s: float, mark_s: float, segment: int, second: float) -> None:
    """The agent says that its part's second 0 is heard at `clock_s`, and which speech is heard from `mark_s` on."""
    film.take(number, FilmEntry.CLOCK, FILM_CLOCK.pack(0.0, clock_s))
    film.take(number + 1, FilmEntry.SPOKEN, FILM_SPOKEN.pack(mark_s, segment, second))


async def test_speech_is_in_the_film_as_far_as_its_sound_has_come(tmp_path: Path) -> None:
    film, store = growing(tmp_path)
    assert film.spoken == (0, 0.0)
    film.take(1, FilmEntry.HEADER, part().header)
    spoken(film, 2, clock_s=1000.0, mark_s=1000.2, segment=3, second=0.5)
    assert film.spoken == (0, 0.0), "it begins 0.2 s into the part, of which nothing has come"
    for number, fragment in enumerate(part().fragments[:10], 4):
        film.take(number, FilmEntry.FRAGMENT, fragment)
    segment, second = film.spoken
    heard_s = film._joiner.part_audio_s
    assert heard_s > 0.5 and (segment, second) == (3, pytest.approx(0.5 + heard_s - 0.2))
    film.take(14, FilmEntry.SPOKEN, FILM_SPOKEN.pack(1000.0 + heard_s + 5, 4, 0.0))
    assert film.spoken == (segment, second), "what is said later is not in it"
    film.take(15, FilmEntry.SPOKEN, FILM_SPOKEN.pack(1000.0 + heard_s, 5, 0.0))
    assert film.spoken == (5, 0.0)
    await store.aclose()


async def test_the_position_never_goes_back_where_an_agent_follows_another(tmp_path: Path) -> None:
    film, store = growing(tmp_path)
    film.take(1, FilmEntry.HEADER, part().header)
    spoken(film, 2, clock_s=10.0, mark_s=10.0, segment=2, second=1.0)
    for number, fragment in enumerate(part().fragments[:5], 4):
        film.take(number, FilmEntry.FRAGMENT, fragment)
    reached = film.spoken
    film.new_log("log_2")
    assert film.spoken == reached and film.entry == 0 and film.stored_entry == 0
    film.take(1, FilmEntry.HEADER, part().header)
    spoken(film, 2, clock_s=500.0, mark_s=500.0, segment=2, second=0.2)
    assert film.spoken == reached, "the next agent says a part of it again"
    film.say([], (2, 9.0))
    assert film.spoken == (2, 9.0)
    film.say([], (1, 99.0))
    assert film.spoken == (2, 9.0)
    await store.aclose()


async def test_speech_that_no_part_has_is_said_after_a_picture_and_not_before(tmp_path: Path) -> None:
    film, store = growing(tmp_path)
    frames = [SILENCE] * 20
    film.say(frames, (1, 0.5))
    assert film.size == 0 and film.spoken == (1, 0.5), "before the first picture it is left out"
    begun(film, 5)
    size, pictures = film.size, len(watch(await whole(film)).times)
    film.say(frames, (1, 1.0))
    assert film.size > size and film.spoken == (1, 1.0) and len(watch(await whole(film)).times) == pictures
    await store.aclose()

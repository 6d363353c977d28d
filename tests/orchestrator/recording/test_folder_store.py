"""Films in a folder: bytes that are appended once however often it is tried, an index that is whole, and what is too old."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.recording import film_store
from orchestrator.recording.film_store import FilmIndex, FolderStore, StoreFailed, StoreThreads, film_name, is_name

NAME = "ses_1"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FolderStore]:
    made = FolderStore(tmp_path / "films")
    yield made
    await made.aclose()


async def test_bytes_that_are_written_twice_are_there_once(store: FolderStore) -> None:
    """An append whose answer was lost is made again, at the same place."""
    await store.append(NAME, 0, b"header")
    await store.append(NAME, 6, b"one and a half")
    await store.append(NAME, 6, b"one")
    assert await store.read(NAME, 0, 100) == b"headerone"
    assert await store.read(NAME, 3, 8) == b"deron" and await store.read(NAME, 50, 60) == b""
    assert await store.read(NAME, 5, 2) == b""


async def test_a_film_that_is_not_there_cannot_be_read_and_has_no_index(store: FolderStore) -> None:
    assert await store.load(NAME) is None
    with pytest.raises(StoreFailed, match=r"No such file or directory: .*ses_1\.mp4"):
        await store.read(NAME, 0, 1)
    assert await store.expired(float("inf")) == [], "nor is there a folder"


async def test_the_index_comes_back_as_it_was_and_is_replaced_whole(store: FolderStore, tmp_path: Path) -> None:
    index = FilmIndex(session_id=NAME, key="key one", size=42, log_id="log", entry=7, width=640)
    await store.save(index)
    assert await store.load(NAME) == index
    await store.save(index.model_copy(update={"size": 43}))
    assert (await store.load(NAME) or index).size == 43
    assert [path.name for path in (tmp_path / "films").iterdir()] == ["ses_1.json"], "no draft is left"


@pytest.mark.parametrize("content", [b"", b"{", b'{"size": 1}', b"\xff\xfe"])
async def test_an_index_that_cannot_be_read_is_none(store: FolderStore, tmp_path: Path, content: bytes) -> None:
    await store.append(NAME, 0, b"film")
    (tmp_path / "films" / "ses_1.json").write_bytes(content)
    assert await store.load(NAME) is None


async def test_only_its_owner_may_look_into_the_folder(store: FolderStore, tmp_path: Path) -> None:
    await store.append(NAME, 0, b"film")
    assert (tmp_path / "films").stat().st_mode & 0o777 == 0o700


async def test_a_film_is_deleted_whole_and_any_number_of_times(store: FolderStore, tmp_path: Path) -> None:
    await store.append(NAME, 0, b"film")
    await store.save(FilmIndex(session_id=NAME))
    (tmp_path / "films" / "ses_1.tmp").write_text("a draft that was left")
    await store.append("ses_12", 0, b"another")
    for _ in range(2):
        await store.delete(NAME)
    assert [path.name for path in (tmp_path / "films").iterdir()] == ["ses_12.mp4"]


async def test_a_film_is_as_old_as_the_last_of_its_files(store: FolderStore, tmp_path: Path) -> None:
    folder = tmp_path / "films"
    for name, film_at, index_at in (("old", 10, 20), ("grows", 200, 20), ("ended", 10, 200), ("no-film", 10, 10)):
        folder.mkdir(exist_ok=True)
        for kind, at in (("mp4", film_at), ("json", index_at)):
            (folder / f"{name}.{kind}").touch()
            os.utime(folder / f"{name}.{kind}", (at, at))
    (folder / "notes.txt").touch()
    assert await store.expired(100) == ["old"], "what has a name that no film has is no film"
    assert sorted(await store.expired(201)) == ["ended", "grows", "old"]


async def test_a_film_that_goes_while_the_others_are_looked_at_is_passed_over(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orchestrators that share a folder delete what is too old, each for itself."""
    for name in ("gone", "stays"):
        await store.append(name, 0, b"film")
    stat = Path.stat

    def stat_of_some(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if path.stem == "gone":
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return stat(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", stat_of_some)
    assert await store.expired(float("inf")) == ["stays"]


@given(st.text(max_size=90))
def test_a_name_never_leads_out_of_the_folder(name: str) -> None:
    if is_name(name):
        assert film_name(name) == name == Path(name).name and len(name) <= 80 and name.isascii()
    else:
        with pytest.raises(StoreFailed, match="is no name of a film"):
            film_name(name)


@pytest.mark.parametrize("name", ["", "..", "a/b", "a.b", "é", "a\n", "a" * 81])
async def test_every_call_refuses_what_is_no_name(store: FolderStore, name: str) -> None:
    for call in (
        store.append(name, 0, b""),
        store.read(name, 0, 1),
        store.load(name),
        store.delete(name),
        store.save(FilmIndex(session_id=name)),
    ):
        with pytest.raises(StoreFailed, match="is no name of a film"):
            await call


async def test_a_folder_that_cannot_be_written_is_said_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "films").write_text("a file where the folder should be")
    store = FolderStore(tmp_path / "films")
    try:
        for call in (store.append(NAME, 0, b"film"), store.save(FilmIndex(session_id=NAME))):
            with pytest.raises(StoreFailed, match=f"{tmp_path / 'films'}"):
                await call
    finally:
        await store.aclose()


async def test_a_disk_that_does_not_answer_is_given_up_and_holds_up_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(film_store, "_CALL_S", 0.01)
    threads, answers = StoreThreads("a store"), threading.Event()
    try:
        with pytest.raises(StoreFailed, match=r"no answer within 0\.01 s"):
            await threads.run(answers.wait)
        monkeypatch.setattr(film_store, "_CALL_S", 60)
        assert await threads.run(lambda: 7) == 7, "another thread is free"
    finally:
        answers.set()
        threads.close()


async def test_a_call_that_is_cancelled_still_does_its_work(store: FolderStore) -> None:
    begun, goes_on, done = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        goes_on.wait()
        done.set()

    threads = StoreThreads("a store")
    try:
        call = asyncio.create_task(threads.run(work))
        await asyncio.to_thread(begun.wait)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        goes_on.set()
        assert await asyncio.to_thread(done.wait, 120)
    finally:
        goes_on.set()
        threads.close()

"""Films in a store that speaks S3: moto's server, over real sockets."""

from __future__ import annotations

import time

import pytest

from orchestrator.recording.film_store import FilmIndex, StoreFailed
from tests.fakes.film_parts import watch
from tests.fakes.stage import stage
from tests.waiting import until

pytest.importorskip("obstore")
pytest.importorskip("moto")

from orchestrator.recording.s3_store import S3FilmStore

NAME = "ses_abcdefghijklmnop"


async def test_bytes_are_appended_and_read_by_whoever_asks(bucket: str) -> None:
    store, other = S3FilmStore(bucket), S3FilmStore(bucket)
    data = bytes(range(256)) * 10
    await store.append(NAME, 0, data[:1000])
    await store.append(NAME, 1000, data[1000:1001])
    assert await other.read(NAME, 990, 1001) == data[990:1001]
    await store.append(NAME, 1001, data[1001:])
    for reader in (store, other):
        assert await reader.read(NAME, 0, len(data)) == data
        assert await reader.read(NAME, 998, 1003) == data[998:1003]
        assert await reader.read(NAME, 2000, 10**9) == data[2000:]
        assert await reader.read(NAME, len(data), len(data) + 5) == b""
    await other.append(NAME, 1000, b"again")  # a process went on from what was stored: what lay behind is passed over
    assert await other.read(NAME, 998, 1005) == data[998:1000] + b"again"


async def test_the_index_the_end_and_what_is_too_old(bucket: str) -> None:
    store = S3FilmStore(bucket)
    assert await store.load(NAME) is None
    index = FilmIndex(session_id=NAME, key="shop", size=7)
    await store.append(NAME, 0, b"1234567")
    await store.save(index)
    assert await store.load(NAME) == index
    assert await store.expired(time.time() - 60) == []
    assert await store.expired(time.time() + 60) == [NAME]
    await store.delete(NAME)
    await store.delete(NAME)
    assert await store.load(NAME) is None and await store.read(NAME, 0, 7) == b""
    with pytest.raises(StoreFailed, match="no name"):
        await store.append("../up", 0, b"")


async def test_a_bucket_that_is_not_there_is_said(bucket: str) -> None:
    store = S3FilmStore(bucket.replace("bucket-", "none-"))
    with pytest.raises(StoreFailed):
        await store.append(NAME, 0, b"x")
    with pytest.raises(ValueError, match="no address"):
        S3FilmStore("s4://nowhere")


async def test_a_film_in_a_bucket_plays_while_it_grows_and_afterwards(bucket: str) -> None:
    async with stage(recording_url=bucket) as here:
        session_id = (await here.start(record=True))["session_id"]
        here.agent.films.grow(13)
        address = f"/session/{session_id}/recording"

        async def grown() -> bool:
            return bool((await here.http.get(address)).json()["seconds"] > 1.0)

        await until(grown)
        assert len(watch((await here.http.get(f"{address}.mp4")).content).times) == 26  # from memory: it is not due
        here.agent.films.grow(99)
        reported = (await here.http.post(address, json={"state": "stopped"})).json()
        film = await here.http.get(f"{address}.mp4")
        assert len(film.content) == reported["bytes"] and len(watch(film.content).bursts) == 6
        part = await here.http.get(f"{address}.mp4", headers={"Range": "bytes=5-8"})
        assert part.content == film.content[5:9]
        stored = S3FilmStore(bucket)
        assert await stored.read(session_id, 0, 10**9) == film.content
        assert (await here.http.delete(address)).status_code == 204
        assert await stored.load(session_id) is None

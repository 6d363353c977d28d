"""Stored records that are damaged, hostile or of a newer version: they are set aside, and nothing else stops."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from orchestrator.audio.ingest import AudioLimits
from orchestrator.events import EventBus
from orchestrator.metrics import Metrics
from orchestrator.recovery import Reaper
from orchestrator.session.journal import from_record
from orchestrator.session.speech_pipeline import SpeechPipeline
from orchestrator.store.redis_store import RedisStore
from orchestrator.store.session_store import (
    MAX_RECORD,
    RecordReader,
    Seal,
    SessionStore,
    StoredSession,
    Unreadable,
    derive,
    parse,
)
from orchestrator.store.sqlite import SqliteStore
from tests.fakes.stage import stage
from tests.orchestrator.store.test_stores import stored
from tests.orchestrator.test_reaper import FakeRooms
from tests.servers.redis import redis_server
from tests.waiting import until

GOOD = json.loads(stored("ses_bad").model_dump_json())
BAD: dict[str, Any] = {
    "newer state": json.dumps(GOOD | {"state": "paused"}),
    "newer version": json.dumps(GOOD | {"version": 2}),
    "no json": "{",
    "list": "[]",
    "nothing": "",
    "no text": b"\xff\xfe",
    "deep": "[" * 100_000,
    "nan": json.dumps(GOOD | {"view": {"x": float("nan")}}),
    "no time": json.dumps(GOOD | {"created_at": 1e300}),
    "negative": json.dumps(GOOD | {"progress": {"segments": -1}}),
    "another": json.dumps(GOOD | {"session_id": "ses_other"}),
    "long": json.dumps(GOOD | {"room": "x" * MAX_RECORD}),
}
METRICS = Metrics()


@asynccontextmanager
async def holding(kind: str, path: Path, raw: Any) -> AsyncIterator[SessionStore]:
    """A store with a good record, `ses_good`, and a bad one, `ses_bad`."""
    if kind == "sqlite":
        first = SqliteStore(str(path), 600)
        await first.open()
        await first.save(stored("ses_good"))
        await first.aclose()
        with sqlite3.connect(path) as database:
            database.execute("INSERT INTO sessions VALUES ('ses_bad', ?, NULL, ?)", (time.time(), raw))
        database.close()
        store: SessionStore = SqliteStore(str(path), 600)
        await store.open()
        yield store
        await store.aclose()
        return
    async with redis_server() as server:
        store = RedisStore(server.url, 600)
        await store.open()
        await store.save(stored("ses_good"))
        redis: Redis = Redis.from_url(server.url)
        await redis.set("musetalk:session:ses_bad", raw)
        await redis.sadd("musetalk:sessions", "ses_bad", b"\xff\xff")
        yield store
        await redis.aclose()
        await store.aclose()


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_a_record_that_cannot_be_read_hides_no_other(kind: str, tmp_path: Path) -> None:
    for number, (name, raw) in enumerate(BAD.items()):
        if name == "nothing" and kind == "redis":
            continue  # that is no record there
        async with holding(kind, tmp_path / f"{number}.db", raw) as store:
            for _ in range(2):
                assert [one.session_id for one in await store.sessions()] == ["ses_good"], name
                assert "ses_bad" in store.reader.unreadable, name
            assert await store.load("ses_bad") is None and await store.load("ses_good") is not None
            assert await store.holders(["ses_good", "ses_bad"]) == {"ses_good": None, "ses_bad": None}
            later = stored("ses_bad", moves=2)
            assert await store.save(later)  # its owner, of a newer version perhaps, has written it again
            assert later in await store.sessions() and "ses_bad" not in store.reader.unreadable


async def test_a_key_of_another_kind_in_redis_is_one_records_trouble() -> None:
    async with redis_server() as server:
        store, redis = RedisStore(server.url, 600), Redis.from_url(server.url)
        await store.open()
        await store.save(stored("ses_good"))
        await redis.lpush("musetalk:session:ses_bad", "x")
        await redis.sadd("musetalk:sessions", "ses_bad")
        assert [one.session_id for one in await store.sessions()] == ["ses_good"]
        assert await store.load("ses_bad") is None and "ses_bad" in store.reader.unreadable
        assert await redis.pttl("musetalk:session:ses_bad") > 24 * 3600 * 1000, "it goes by itself in the end"
        assert await store.renew(["ses_bad", "ses_good"], "one", 5) == set()
        assert await store.save(stored("ses_bad")) and len(await store.sessions()) == 2
        await redis.aclose()
        await store.aclose()


async def test_the_service_starts_and_lists_and_adopts_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    async with holding("sqlite", path, BAD["newer state"]):
        pass
    async with stage(store_path=str(path)) as running:
        context = running.app.state.context

        async def over() -> bool:
            return (await running.http.get("/session/ses_good")).json()["state"] in ("failed", "stopped")

        await until(over)  # its agent is gone, and what was sealed cannot be read
        assert [one["session_id"] for one in (await running.http.get("/sessions")).json()["sessions"]] == ["ses_good"]
        unreadable = await running.http.get("/session/ses_bad")
        assert (unreadable.status_code, unreadable.json()["code"]) == (503, "store_unavailable")
        assert context.metrics.registry.get_sample_value("avatar_store_unreadable") == 1
        assert (await running.start())["state"] == "ready"


async def test_the_reaper_leaves_the_avatar_of_a_session_that_it_cannot_read(tmp_path: Path) -> None:
    rooms = FakeRooms({"r": ["avatar-ses_bad", "avatar-ses_orphan"]})
    async with holding("sqlite", tmp_path / "o.db", BAD["newer version"]) as store:
        await Reaper(store, rooms, None, set, Metrics(), second_look_s=0).sweep()  # type: ignore[arg-type]
    assert rooms.removed == [("r", "avatar-ses_orphan")]


def test_what_has_not_changed_is_not_parsed_again_and_what_is_gone_is_forgotten() -> None:
    reader = RecordReader()
    raw = stored("ses_a").model_dump_json().encode()
    assert reader.read("ses_a", raw) is reader.read("ses_a", bytes(raw))
    assert reader.read("ses_b", b"{") is None and reader.read("ses_b", b"{") is None
    assert (reader.skipped, set(reader.unreadable)) == (1, {"ses_b"})
    reader.keep(["ses_a"])
    assert reader.unreadable == {}


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_PROGRESS = st.fixed_dictionaries(
    {},
    optional={
        "segments": st.integers(-1, 2**60),
        "unfinished": st.dictionaries(st.integers(-1, 2**60).map(str), st.booleans(), max_size=5),
        "events_seen": st.integers(-1, 2**60),
        "sample_rate": st.integers(-1, 10**6) | st.none(),
        "received_samples": st.integers(-1, 2**60),
        "cleared_samples": st.integers(-1, 2**60),
    },
)


@given(
    changes=st.dictionaries(st.sampled_from([*GOOD, "surplus"]), _JSON, max_size=3),
    progress=_PROGRESS | _JSON,
    times=st.tuples(st.floats(), st.floats()),
)
@settings(deadline=None, max_examples=300)
def test_any_record_is_one_that_can_be_taken_or_set_aside(
    changes: dict[str, Any], progress: Any, times: tuple[float, float]
) -> None:
    known = GOOD | {"progress": progress, "created_at": times[0], "expires_at": times[1]} | changes
    check(json.dumps(known).encode())


@given(raw=st.binary(max_size=300) | _JSON.map(lambda value: json.dumps(value).encode()))
@settings(deadline=None, max_examples=150)
def test_any_bytes_are_set_aside(raw: bytes) -> None:
    check(raw)


def check(raw: bytes) -> None:
    try:
        record = parse("ses_bad", raw)
    except Unreadable:
        return
    asyncio.run(taken(record))


async def taken(record: StoredSession) -> None:
    """What an orchestrator does with a record: each step works, whatever is in it."""
    json.dumps(record.view, allow_nan=False)
    session = from_record(record, Seal(derive("secret", "sessions", "dep")))
    json.dumps(session.view(), allow_nan=False)
    live = SpeechPipeline("ses_bad", AudioLimits(), METRICS, EventBus(METRICS))
    live.inherit(record.progress)
    live.without_agent()
    session.live = live
    json.dumps(session.view(), allow_nan=False)
    StoredSession.model_validate_json(record.model_copy(update={"progress": live.progress()}).model_dump_json())

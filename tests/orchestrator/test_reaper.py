"""The reaper in a real livekit-server: which participants it removes, and which it must not touch."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from livekit import rtc

from musetalk_agent.protocol.http import SessionState
from musetalk_agent.protocol.problems import ProblemError
from musetalk_tools.livekit_server import LiveKitAccess
from orchestrator.livekit_rooms import LiveKitKeys, Rooms, TokenMinter
from orchestrator.metrics import Metrics
from orchestrator.recovery import MAX_ROOMS, Reaper
from orchestrator.store.session_store import StoredSession
from orchestrator.store.sqlite import MEMORY, SqliteStore
from tests.orchestrator.store.test_stores import stored
from tests.waiting import until


class Ingresses:
    """Records what is removed."""

    def __init__(self) -> None:
        self.removed: list[str] = []
        self.there: dict[str, str] = {}
        self.answers = True
        self.stuck: set[str] = set()

    async def ours(self) -> dict[str, str]:
        return self.there

    async def remove(self, ingress_id: str) -> bool:
        if not self.answers or ingress_id in self.stuck:
            return False
        self.removed.append(ingress_id)
        return True


@asynccontextmanager
async def opened_store(*records: StoredSession) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(MEMORY, 600)
    await store.open()
    try:
        for record in records:
            await store.save(record)
        yield store
    finally:
        await store.aclose()


@asynccontextmanager
async def joined(url: str, *tokens: str) -> AsyncIterator[list[rtc.Room]]:
    rooms = [rtc.Room() for _ in tokens]
    try:
        for room, token in zip(rooms, tokens, strict=True):
            await room.connect(url, token)
        yield rooms
    finally:
        for room in rooms:
            await room.disconnect()


@pytest.mark.livekit
async def test_only_orphans_of_this_deployment_are_removed(livekit_server: LiveKitAccess) -> None:
    access = livekit_server
    keys = LiveKitKeys(access.url, access.url, access.api_key, access.api_secret)
    minter, rooms, metrics = TokenMinter(keys), Rooms(keys), Metrics()
    await rooms.open()

    def token(identity: str, deployment_id: str) -> str:
        return TokenMinter(keys, lambda: deployment_id).avatar("r", identity, 60, name="Avatar", on_behalf_of=None)

    async with opened_store(stored("ses_known"), stored("ses_over", state=SessionState.FAILED)) as store:
        here = store.deployment_id
        stays = ["avatar-ses_known", "avatar-ses_local", "avatar-ses_theirs", "voice-ses_unmarked", "avatar-somebody"]
        tokens = [
            token("avatar-ses_known", here),
            token("avatar-ses_local", here),
            token("avatar-ses_theirs", "dep_another"),
            token("voice-ses_unmarked", ""),
            token("avatar-somebody", here),
            token("avatar-ses_orphan", here),
            token("avatar-ses_over", here),
            minter.viewer("r", "viewer", 60),
        ]
        reaper = Reaper(store, rooms, None, lambda: {"ses_local"}, metrics, second_look_s=0.1)
        try:
            async with joined(access.url, *tokens) as members:
                watcher = members[-1]
                await reaper.sweep()
                await until(lambda: len(watcher.remote_participants) <= len(stays))
                assert sorted(watcher.remote_participants) == sorted(stays)
                assert metrics.registry.get_sample_value("avatar_reaped_total", {"kind": "avatar"}) == 2
        finally:
            await rooms.aclose()


async def test_one_that_is_known_at_the_second_look_stays() -> None:
    async with opened_store() as store:

        class Refilled(FakeRooms):
            async def participants(self, room: str, deployment_id: str) -> list[str]:
                await store.save(
                    stored("ses_a")
                )  # after the first look at the store, as by a Redis that came back empty
                return await super().participants(room, deployment_id)

        rooms = Refilled({"r": ["avatar-ses_a", "voice-ses_b"]})
        await Reaper(store, rooms, None, set, Metrics(), second_look_s=0).sweep()  # type: ignore[arg-type]
        assert rooms.removed == [("r", "voice-ses_b")]


async def test_every_room_has_its_turn_and_known_ones_come_first() -> None:
    rooms = FakeRooms({f"r{n:03d}": [] for n in range(2 * MAX_ROOMS)})
    async with opened_store(stored(room="r399")) as store:
        reaper = Reaper(store, rooms, None, set, Metrics(), second_look_s=0)  # type: ignore[arg-type]
        for _ in range(3):
            await reaper.sweep()
            assert len(rooms.asked) == MAX_ROOMS and rooms.asked[0] == "r399"
            rooms.seen |= set(rooms.asked)
            rooms.asked.clear()
        assert len(rooms.seen) == 2 * MAX_ROOMS


async def test_ingresses_of_ended_sessions_go_once_and_those_of_running_ones_stay() -> None:
    ingresses = Ingresses()
    ended = stored("ses_b", state=SessionState.STOPPED, ingress_id="IN_b")
    async with opened_store(stored("ses_a", ingress_id="IN_a"), ended) as store:
        reaper = Reaper(store, FakeRooms({}), ingresses, set, Metrics())  # type: ignore[arg-type]
        await reaper.sweep()
        await reaper.sweep()
        assert ingresses.removed == ["IN_b"]


async def test_an_ingress_that_could_not_be_removed_is_asked_for_again() -> None:
    ingresses = Ingresses()
    ingresses.answers = False
    async with opened_store(stored("ses_b", state=SessionState.STOPPED, ingress_id="IN_b")) as store:
        reaper = Reaper(store, FakeRooms({}), ingresses, set, Metrics())  # type: ignore[arg-type]
        await reaper.sweep()
        ingresses.answers = True
        await reaper.sweep()
        assert ingresses.removed == ["IN_b"]


async def test_without_livekit_a_sweep_is_given_up() -> None:
    keys = LiveKitKeys("ws://127.0.0.1:9", "", "key", "secretsecretsecretsecretsecret00")
    rooms = Rooms(keys)
    await rooms.open()
    async with opened_store() as store:
        with pytest.raises(ProblemError, match="did not list its rooms"):
            await Reaper(store, rooms, None, set, Metrics()).sweep()
    await rooms.aclose()


class FakeRooms:
    """Rooms by name, with the identities of our participants."""

    def __init__(self, members: dict[str, list[str]]) -> None:
        self._members = members
        self.asked: list[str] = []
        self.seen: set[str] = set()
        self.removed: list[tuple[str, str]] = []

    async def names(self) -> list[str]:
        return list(self._members)

    async def participants(self, room: str, deployment_id: str) -> list[str]:
        self.asked.append(room)
        return self._members[room]

    async def remove(self, room: str, identity: str) -> None:
        self.removed.append((room, identity))


async def test_an_ingress_that_livekit_refuses_to_remove_holds_up_no_other_one() -> None:
    ingresses = Ingresses()
    ingresses.stuck = {"IN_a"}
    records = [stored(f"ses_{n}", state=SessionState.STOPPED, ingress_id=f"IN_{n}") for n in "ab"]
    async with opened_store(*records) as store:
        await Reaper(store, FakeRooms({}), ingresses, set, Metrics()).sweep()  # type: ignore[arg-type]
        assert ingresses.removed == ["IN_b"]


async def test_an_ingress_of_which_no_session_knows_is_removed() -> None:
    ingresses, metrics = Ingresses(), Metrics()
    ingresses.there = {f"IN_{name}": f"avatar-ses_{name}" for name in ("stored", "running", "lost", "over")}
    async with opened_store(stored("ses_stored"), stored("ses_over", state=SessionState.STOPPED)) as store:
        reaper = Reaper(store, FakeRooms({}), ingresses, lambda: {"ses_running"}, metrics, second_look_s=0)  # type: ignore[arg-type]
        await reaper.sweep()
    assert ingresses.removed == ["IN_lost", "IN_over"]
    assert metrics.registry.get_sample_value("avatar_reaped_total", {"kind": "ingress"}) == 2

"""Preparations: each once at a time, again where the avatar changed meanwhile, and what an agent or a disk that fails leaves."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from musetalk_agent.protocol.http import AvatarReport
from musetalk_agent.protocol.preparation_messages import AgentPrepareRequest, PreparedAvatar
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.agents.agent_client import AgentLease
from orchestrator.avatars import preparation
from orchestrator.avatars.avatar_folder import AvatarFolder
from orchestrator.avatars.avatar_record import AvatarRecord, AvatarState, ShownSettings
from orchestrator.avatars.preparation import AT_ONCE, Preparations
from tests.waiting import turns, until

CLIP = b"the bytes of a clip"
SOURCE = "sha256:" + hashlib.sha256(CLIP).hexdigest()
POSTER = b"a poster"
BUSY = ProblemError(ErrorCode.AT_CAPACITY, "All seats are taken.")
BAD = ProblemError(ErrorCode.NO_FACE_IN_AVATAR, "No face was found.", limit=1, value=0)


def avatar_id(number: int) -> str:
    return f"ava_{number:024x}"


@dataclass
class Agents:
    """Agents that prepare everything; `answers` are taken first, one a call: an error, or something to wait for."""

    answers: list[ProblemError | asyncio.Event] = field(default_factory=list)
    asked: list[tuple[str, AgentPrepareRequest]] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    poster: str = base64.b64encode(POSTER).decode()
    clip_bytes: bytes = CLIP
    now: int = 0
    most: int = 0

    async def prepare(
        self, lease: AgentLease, request: AgentPrepareRequest, progress: Callable[[float], None]
    ) -> PreparedAvatar:
        self.asked.append((lease.name, request))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            progress(0.5)
            if self.answers:
                answer = self.answers.pop(0)
                if isinstance(answer, ProblemError):
                    raise answer
                await answer.wait()
            progress(7.0)
            source = request.avatar.avatar_id if request.avatar is not None else "sha256:fetched"
            report = AvatarReport(avatar_id=source or "", frames=3, width=8, height=8, fps=25)
            return PreparedAvatar(report=report, poster=self.poster)
        finally:
            self.now -= 1

    async def clip(self, lease: AgentLease, clip: str) -> AsyncIterator[bytes]:
        yield self.clip_bytes[:5]
        yield self.clip_bytes[5:]

    async def upload(self, lease: AgentLease, blocks: object, headers: dict[str, str]) -> None:
        self.uploads.append(lease.name)


@dataclass
class Pool:
    """Two agents, the first of which is lent."""

    remembered: list[tuple[str, str]] = field(default_factory=list)

    def leases(self) -> list[AgentLease]:
        return [AgentLease("http://one"), AgentLease("http://two")]

    @asynccontextmanager
    async def borrow(self) -> AsyncIterator[AgentLease]:
        yield self.leases()[0]

    def remember_avatar(self, source: str, lease: AgentLease) -> None:
        self.remembered.append((source, lease.name))


@dataclass
class World:
    """The library's folder with one clip in it, and who prepares its avatars."""

    folder: AvatarFolder
    agents: Agents
    pool: Pool
    preparations: Preparations

    def add(self, number: int = 1, **fields: Any) -> str:
        """Stores an avatar that is to be prepared; returns its id."""
        known: dict[str, Any] = {"source": SOURCE, "key": "ann", "name": "Ada", "created_at": 1.0}
        self.folder.write(AvatarRecord(avatar_id=avatar_id(number), **(known | fields)))
        return avatar_id(number)

    def record(self, number: int = 1) -> AvatarRecord:
        found = self.folder.read(avatar_id(number))
        assert found is not None
        return found

    async def held(self) -> tuple[str, asyncio.Event]:
        """An avatar whose preparation waits at its agent, and what lets it go on."""
        gate = asyncio.Event()
        self.agents.answers = [gate]
        name = self.add()
        self.preparations.begin(name)
        await until(lambda: self.agents.asked)
        return name, gate

    async def over(self) -> None:
        """Returns when nothing is prepared any more."""
        await until(lambda: not self.preparations._running and not self.preparations._spreading)


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(preparation, "RETRY_S", 0.0)
    folder, agents, pool = AvatarFolder(tmp_path), Agents(), Pool()
    folder.make()
    incoming = folder.incoming()
    incoming.write(CLIP)
    incoming.keep()
    fakes: Any = (pool, agents)
    made = World(folder, agents, pool, Preparations(folder, *fakes, asyncio.Lock()))
    yield made
    await made.preparations.aclose()


async def test_an_avatar_is_prepared_at_one_agent_then_at_the_others(world: World) -> None:
    name = world.add()
    world.preparations.begin(name)
    await world.over()
    record, poster = world.record(), world.folder.poster(name)
    assert (record.state, record.agent, record.error) == (AvatarState.READY, "http://one", None)
    assert record.report is not None and record.report.frames == 3
    assert poster is not None and poster.read_bytes() == POSTER
    assert [lease for lease, _ in world.agents.asked] == ["http://one", "http://two"]
    assert world.pool.remembered == [(SOURCE, "http://one")]


async def test_progress_grows_and_is_never_more_than_all(world: World) -> None:
    assert world.preparations.progress(avatar_id(1)) == 0.0
    name, gate = await world.held()
    assert world.preparations.progress(name) == 0.5
    report = world.preparations._reporter(name)
    report(0.25)
    assert world.preparations.progress(name) == 0.5, "a second attempt begins again, and what is shown does not"
    report(3.0)
    assert world.preparations.progress(name) == 1.0
    gate.set()
    await world.over()
    assert world.preparations.progress(name) == 0.0, "nothing goes on"


async def test_one_that_is_begun_twice_is_prepared_once(world: World) -> None:
    """The second call has the record looked at once more, and that is ready."""
    name = world.add()
    for _ in range(3):
        world.preparations.begin(name)
    await world.over()
    assert [lease for lease, _ in world.agents.asked] == ["http://one", "http://two"]


async def test_settings_that_change_meanwhile_are_prepared_in_place_of_the_old_ones(world: World) -> None:
    _, gate = await world.held()
    before = world.record().settings
    world.add(settings=ShownSettings(background="blur"))
    assert world.record().settings.prepared_for != before.prepared_for, "it needs a matte"
    gate.set()
    await world.over()
    assert world.record().state is AvatarState.READY
    of_first = [request.avatar_settings.background for lease, request in world.agents.asked if lease == "http://one"]
    assert [str(each) for each in of_first][-1] == "blur" and len(of_first) == 2


async def test_no_more_are_prepared_at_once_than_agents_are_asked_for(world: World) -> None:
    gates = [asyncio.Event() for _ in range(AT_ONCE)]
    world.agents.answers = [*gates]
    for number in range(AT_ONCE + 3):
        world.preparations.begin(world.add(number))
    await until(lambda: len(world.agents.asked) == AT_ONCE)
    await turns()
    assert len(world.agents.asked) == AT_ONCE
    for gate in gates:
        gate.set()
    await world.over()
    states = Counter(world.record(number).state for number in range(AT_ONCE + 3))
    assert states == {AvatarState.READY: AT_ONCE + 3}


async def test_an_agent_that_is_busy_or_away_is_asked_again(world: World, caplog: pytest.LogCaptureFixture) -> None:
    away = ProblemError(ErrorCode.AGENT_UNAVAILABLE, "No agent answers.")
    world.agents.answers = [BUSY, away]
    world.preparations.begin(world.add())
    await world.over()
    assert world.record().state is AvatarState.READY
    waits = [record.__dict__["reason"] for record in caplog.records if "waits for an agent" in record.getMessage()]
    assert waits == ["All seats are taken.", "No agent answers."]


async def test_an_avatar_that_no_agent_takes_for_too_long_has_failed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "GIVE_UP_S", 0.0)
    world.agents.answers = [BUSY, BUSY]
    world.preparations.begin(world.add())
    await world.over()
    record = world.record()
    assert record.state is AvatarState.FAILED and record.error is not None
    assert (record.error.code, len(world.agents.asked)) == (ErrorCode.AT_CAPACITY, 1)


async def test_a_clip_that_cannot_be_used_has_failed_at_once_with_the_agents_words(world: World) -> None:
    world.agents.answers = [BAD]
    world.preparations.begin(world.add())
    await world.over()
    error = world.record().error
    assert world.record().state is AvatarState.FAILED and error is not None
    assert (error.code, error.detail, error.limit, error.value) == (BAD.code, BAD.detail, 1, 0)
    assert len(world.agents.asked) == 1 and world.pool.remembered == []


async def test_what_breaks_fails_one_avatar_and_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = world.add(1)
    write = world.folder.write_poster

    def write_poster(name: str, data: bytes) -> None:
        if name == broken:
            raise ValueError("a fault of ours")
        write(name, data)

    monkeypatch.setattr(world.folder, "write_poster", write_poster)
    world.preparations.begin(broken)
    world.preparations.begin(world.add(2))
    await world.over()
    error = world.record(1).error
    assert error is not None and (error.code, "ValueError" in error.detail) == (ErrorCode.INTERNAL, True)
    assert world.record(2).state is AvatarState.READY


async def test_a_poster_that_is_no_base64_is_the_agents_fault_and_asked_for_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "GIVE_UP_S", 0.0)
    world.agents.poster = "no base64!"
    world.preparations.begin(world.add())
    await world.over()
    error = world.record().error
    assert error is not None and error.code is ErrorCode.AGENT_UNAVAILABLE and "base64" in error.detail


async def test_an_agent_that_lacks_the_clip_gets_it_once(world: World) -> None:
    missing = ProblemError(ErrorCode.AVATAR_NOT_FOUND, "No such clip.")
    world.agents.answers = [missing]
    world.preparations.begin(world.add())
    await world.over()
    assert world.record().state is AvatarState.READY and world.agents.uploads == ["http://one"]
    world.agents.answers = [missing, missing]
    world.preparations.begin(world.add(2))
    await world.over()
    error = world.record(2).error
    assert error is not None and error.code is ErrorCode.AVATAR_NOT_FOUND, "one that never has it is not asked for ever"
    assert world.agents.uploads == ["http://one"] * 2


async def test_an_avatar_from_an_address_is_copied_from_the_agent_that_fetched_it(world: World) -> None:
    world.agents.clip_bytes = b"what lay at the address"
    name = world.add(source=None, url="https://host.example/face.mp4")
    world.preparations.begin(name)
    await world.over()
    record = world.record()
    assert record.state is AvatarState.READY and record.size == len(world.agents.clip_bytes)
    path = world.folder.source(record.source or "")
    assert path is not None and path.read_bytes() == world.agents.clip_bytes
    first, second = (request for lease, request in world.agents.asked if lease == "http://one")
    assert first.clip_url == "https://host.example/face.mp4" and second.avatar is not None
    assert second.avatar.avatar_id == record.source


async def test_a_copy_that_breaks_off_leaves_no_half_clip(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks(lease: AgentLease, clip: str) -> AsyncIterator[bytes]:
        yield b"half"
        raise ProblemError(ErrorCode.AGENT_UNAVAILABLE, "The agent went away.")

    monkeypatch.setattr(world.agents, "clip", breaks)
    with pytest.raises(ProblemError, match="went away"):
        await world.preparations.copy(AgentLease("http://one"), "sha256:x")
    assert [path.name for path in (tmp_path / "sources").iterdir()] == [SOURCE.removeprefix("sha256:")]


async def test_an_avatar_that_is_deleted_meanwhile_stays_deleted(world: World) -> None:
    name, gate = await world.held()
    world.folder.delete(name)
    gate.set()
    await world.over()
    assert world.folder.read(name) is None and world.folder.poster(name) is None
    assert world.pool.remembered == [] and len(world.agents.asked) == 1, "the other agent is spared"


async def test_one_that_is_ended_is_not_begun_again(world: World) -> None:
    name, _ = await world.held()
    world.preparations.begin(name)
    world.preparations.end(name)
    await world.over()
    assert world.record().state is AvatarState.PREPARING and len(world.agents.asked) == 1
    world.preparations.end(name)  # nothing goes on


async def test_the_others_may_refuse(world: World) -> None:
    gate = asyncio.Event()
    gate.set()
    world.agents.answers = [gate, BUSY]
    world.preparations.begin(world.add())
    await world.over()
    assert world.record().state is AvatarState.READY and len(world.agents.asked) == 2


async def test_a_disk_that_fails_leaves_it_for_the_next_start(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: str) -> None:
        raise OSError(5, "Input/output error")

    name = world.add()
    with monkeypatch.context() as patch:
        patch.setattr(world.folder, "read", broken)
        world.preparations.begin(name)
        await world.over()
    assert world.record().state is AvatarState.PREPARING
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == ["a preparation broke"]


async def test_waiting_ends_with_the_preparation_or_with_its_time(world: World) -> None:
    name, gate = await world.held()
    await world.preparations.wait(name, 0.01)
    assert world.record().state is AvatarState.PREPARING
    gate.set()
    while name in world.preparations._running:
        await world.preparations.wait(name, 60.0)
    assert world.record().state is AvatarState.READY
    await world.preparations.wait(name, 0.0)  # one that another orchestrator prepares


async def test_what_runs_ends_with_the_service(world: World) -> None:
    await world.held()
    await world.preparations.aclose()
    await world.over()
    await world.preparations.aclose()
    assert world.record().state is AvatarState.PREPARING, "the next process takes it up"

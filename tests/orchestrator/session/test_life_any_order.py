"""Sessions under any order of starts, speech, interruptions, lost agents and stops, on virtual time, against a simple model.

Whatever happens: states follow the table, every segment begins once and ends once, no sample that was not cleared goes unheard, a
session that has ended holds nothing, and whoever waited for a start has an answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from musetalk_agent.protocol.http import SessionState
from musetalk_agent.protocol.problems import ErrorCode, ProblemError
from orchestrator.audio.ingest import AudioFormat, PcmDecoder
from orchestrator.session.event_outbox import ClientQueue
from orchestrator.session.model import NEXT, ManagedSession
from tests.orchestrator.session.world import RATE, World, speech
from tests.virtual_loop import virtual_time

T = TypeVar("T")
MOST = 3
_REFUSED = frozenset(
    {ErrorCode.AT_CAPACITY, ErrorCode.AGENT_UNAVAILABLE, ErrorCode.SESSION_ENDED, ErrorCode.LIVEKIT_UNAVAILABLE}
)
_which = st.integers(0, MOST - 1)


@dataclass
class Tracked:
    """What the model knows of one session."""

    session: ManagedSession
    sent: dict[int, int] = field(default_factory=dict)
    """Samples of each segment."""
    cleared: set[int] = field(default_factory=set)
    open: int | None = None
    stopped: bool = False
    deaf_until: float = 0.0
    """PCM after a clear is dropped unless a new segment was asked for."""
    decoder: PcmDecoder = field(default_factory=lambda: PcmDecoder(AudioFormat.S16LE))
    lines: list[tuple[ClientQueue, list[Any]]] = field(default_factory=list)


class Life(RuleBasedStateMachine):
    """Three agents, up to three sessions at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.loop = self.stack.enter_context(virtual_time())
        patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        self.world = World(MOST)
        patch.setattr("orchestrator.agents.agent_link.connect", self.world.network.connect)
        for agent in self.world.agents.values():
            agent.sessions_max = 2
        self.known: list[Tracked] = []
        self.starting: list[asyncio.Task[ManagedSession]] = []
        self.run(self.world.open())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def pass_time(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))
        self.collect()

    def collect(self) -> None:
        """Starts that have an answer become sessions, or failed for a reason that there is."""
        for task in [task for task in self.starting if task.done()]:
            self.starting.remove(task)
            error = None if task.cancelled() else task.exception()
            if error is not None:
                assert isinstance(error, ProblemError) and error.code in _REFUSED, error
            elif not task.cancelled():
                self.known.append(Tracked(task.result()))

    @property
    def alive(self) -> list[Tracked]:
        return [tracked for tracked in self.known if not tracked.session.ended]

    def of(self, which: int) -> Tracked:
        return self.alive[which % len(self.alive)]

    def url(self, which: int) -> str:
        return list(self.world.agents)[which]

    # --- callers

    @precondition(lambda self: len(self.alive) + len(self.starting) < 2 * MOST)
    @rule(seconds=st.sampled_from([0.0, 1.0]))
    def start(self, seconds: float) -> None:
        self.starting.append(self.loop.create_task(self.world.start()))
        self.pass_time(seconds)

    @precondition(lambda self: self.starting)
    @rule(which=_which)
    def give_a_start_up(self, which: int) -> None:
        self.starting[which % len(self.starting)].cancel()
        self.pass_time(0.1)

    @precondition(lambda self: self.alive)
    @rule(which=_which, seconds=st.sampled_from([0.1, 0.7, 3.0]), ends=st.booleans())
    def speak(self, which: int, seconds: float, ends: bool) -> None:
        """A segment, or more of the open one."""
        tracked = self.of(which)
        if tracked.session.base_state not in (SessionState.READY, SessionState.RECOVERING):
            return
        live = tracked.session.running()
        if live._tracker.live is None:
            tracked.open = None  # also one that got nothing for EXPLICIT_END_S
        if tracked.open is None:
            live.audio_start()
            tracked.open = live.segments
            tracked.sent[tracked.open] = 0
        live.ingest.push(speech(seconds, tracked.open), tracked.decoder, RATE)
        tracked.sent[tracked.open] += round(seconds * RATE)
        if ends:
            live.audio_end()
            tracked.open = None
        self.pass_time(0.0)

    @precondition(lambda self: self.alive)
    @rule(which=_which)
    def interrupt(self, which: int) -> None:
        tracked = self.of(which)
        if tracked.session.live is None or tracked.session.base_state is SessionState.STARTING:
            return
        dropped = self.run(tracked.session.live.interrupt())
        assert 0 <= dropped <= sum(tracked.sent.values()) / RATE
        tracked.cleared |= tracked.sent.keys()
        tracked.open = None
        assert tracked.session.live is None or tracked.session.live.queues().audio_s == 0
        self.collect()

    @precondition(lambda self: self.alive)
    @rule(which=_which)
    def attach(self, which: int) -> None:
        tracked = self.of(which)
        if tracked.session.live is not None and tracked.session.base_state is not SessionState.STARTING:
            tracked.lines.append((tracked.session.live.connect(RATE), []))
            self.read(tracked)

    def read(self, tracked: Tracked) -> None:
        for connection, messages in tracked.lines:
            while connection.waiting:
                messages.append(self.run(connection.take()))

    @precondition(lambda self: self.alive)
    @rule(which=_which, times=st.integers(1, 3))
    def stop(self, which: int, times: int) -> None:
        tracked = self.of(which)
        tracked.stopped = True

        async def stopped() -> None:
            await asyncio.gather(*(self.world.sessions.stop(tracked.session) for _ in range(times)))

        self.run(stopped())
        assert tracked.session.ended
        self.collect()

    # --- agents and networks

    @rule(which=_which)
    def kill_or_restart(self, which: int) -> None:
        url = self.url(which)
        if url in self.world.network.dead:
            self.world.restart(url)
        else:
            self.world.network.kill(url)
        self.pass_time(0.0)

    @rule(which=_which)
    def cut(self, which: int) -> None:
        self.world.network.cut(self.url(which))
        self.pass_time(0.3)

    @rule(which=_which)
    def hang_or_wake(self, which: int) -> None:
        agent = self.world.agents[self.url(which)]
        agent.hung = not agent.hung
        self.pass_time(0.0)

    @rule(which=_which)
    def drain_or_not(self, which: int) -> None:
        agent = self.world.agents[self.url(which)]
        agent.draining = not agent.draining
        self.pass_time(0.0)

    @rule()
    def livekit_breaks_or_mends(self) -> None:
        self.world.rooms.broken = not self.world.rooms.broken

    @rule(seconds=st.sampled_from([0.2, 1.0, 4.0, 12.0]))
    def wait(self, seconds: float) -> None:
        self.pass_time(seconds)
        for tracked in self.known:
            self.read(tracked)

    # --- what holds at any moment

    @invariant()
    def states_follow_the_table(self) -> None:
        for tracked in self.known:
            state = SessionState.STARTING
            for name in self.world.states(tracked.session):
                assert SessionState(name) in NEXT[state], f"{state.value} became {name}"
                state = SessionState(name)
            assert state is tracked.session.base_state

    @invariant()
    def segments_begin_once_and_end_once(self) -> None:
        for tracked in self.known:
            started = [one["segment"] for one in self.world.events(tracked.session, "playback.started")]
            finished = [one["segment"] for one in self.world.events(tracked.session, "playback.finished")]
            assert len(set(started)) == len(started) and len(set(finished)) == len(finished)
            assert set(finished) <= set(tracked.sent)
            if tracked.session.ended:
                assert set(finished) == set(tracked.sent), "what was open is reported finished"

    @invariant()
    def an_ended_session_holds_nothing(self) -> None:
        for tracked in self.known:
            session = tracked.session
            if not session.ended:
                assert not tracked.stopped
                continue
            assert session.live is None and session.owner is not None
            assert session.end_reason == ("stopped" if tracked.stopped else session.end_reason)
            if tracked.stopped:
                assert session.base_state is SessionState.STOPPED and session.error is None
            else:
                assert session.end_reason == "agent_lost" and session.error is not None
            assert session.session_id not in self.world.pool._held
            assert self.world.rooms.removed.count((session.order.room, session.identity)) >= 1

    @invariant()
    def places_are_those_of_sessions_that_run(self) -> None:
        running = {session.session_id for session in self.world.sessions.registry.running()}
        assert set(self.world.pool._held) <= running

    @invariant()
    def a_sender_reads_events_in_order_and_the_newest_connection_only(self) -> None:
        for tracked in self.known:
            for _, messages in tracked.lines:
                ids = [message.id for message in messages if getattr(message, "id", None)]
                assert ids == sorted(set(ids))
                assert messages[0].type == "hello"
            open_lines = [connection for connection, _ in tracked.lines if not connection.closing]
            assert len(open_lines) <= (0 if tracked.session.ended else 1)

    # --- the end

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            self.stack.close()

    def settle(self) -> None:
        """Everything is mended and time passes: what is left is heard, then all is closed and nothing remains."""
        for which in range(MOST):
            url = self.url(which)
            if url in self.world.network.dead:
                self.world.restart(url)
            agent = self.world.agents[url]
            agent.hung = agent.draining = False
            agent.sessions_max = 8
        self.world.rooms.broken = False
        for tracked in self.alive:
            if tracked.open is not None and tracked.session.base_state in (SessionState.READY, SessionState.RECOVERING):
                tracked.session.running().audio_end()
        self.pass_time(60.0)
        self.pass_time(sum(sum(tracked.sent.values()) for tracked in self.alive) / RATE)
        assert not self.starting, "every start has its answer"
        for tracked in self.alive:
            assert tracked.session.base_state is SessionState.READY
            assert tracked.session.live is not None and tracked.session.live.quiet, (
                tracked.session.live and tracked.session.live.queues()
            )
            self.nothing_went_unheard(tracked)
        sessions = [tracked.session for tracked in self.known]
        self.run(self.world.aclose())
        assert all(session.ended for session in sessions)
        for url, agent in self.world.agents.items():
            assert agent.sessions == {}, f"{url} still has a session"
        assert self.world.pool._held == {}
        for session in sessions:
            record = self.world.store.records[session.session_id]
            assert record.ended and self.world.store._holder(session.session_id) is None

    def nothing_went_unheard(self, tracked: Tracked) -> None:
        """Of what was not cleared: the parts that agents played join without a gap, and the last one is whole."""
        finished = {one["segment"]: one for one in self.world.events(tracked.session, "playback.finished")}
        assert finished.keys() == tracked.sent.keys()
        for number, samples in tracked.sent.items():
            if number in tracked.cleared:
                continue
            assert not finished[number]["interrupted"]
            assert finished[number]["position_s"] == pytest.approx(samples / RATE, abs=0.002)
            parts = [
                segment
                for agent in self.world.agents.values()
                if (there := agent.sessions.get(tracked.session.session_id)) and (segment := there.segments.get(number))
            ]
            for part in parts:
                assert set(np.frombuffer(bytes(part.pcm), "<i2").tolist()) <= {number}, "no sample of another segment"


Life.TestCase.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
TestLife = Life.TestCase


def test_an_agent_that_hangs_when_its_session_is_stopped_is_asked_again() -> None:
    life = Life()
    try:
        life.start(seconds=0.0)
        life.cut(which=0)
        life.hang_or_wake(which=0)
        life.stop(which=0, times=1)
    finally:
        life.teardown()
